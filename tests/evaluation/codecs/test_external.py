"""Any program, and folders of decoded files, as codecs."""

import re
import sys

import numpy as np
import pytest
import soundfile

from sctok.evaluation.codecs.programs import run_tool
from sctok.evaluation.codecs.registry import CodecUnavailable, open_codec

RATE = 16_000
WAVE = (0.5 * np.sin(np.arange(RATE) * 0.05)).astype(np.float32)


def program(code):
    """Return a command that runs Python code with the names of the input, the output and the coded file."""
    return f"{sys.executable} -c '{code}' {{in}} {{out}} {{code}}"


COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
LEAVE = '; open(sys.argv[3], "wb").write(bytes(321))'


def test_a_program_is_given_the_wave_at_16_bits_and_gives_its_own():
    coded = open_codec("cmd:copy=cp {in} {out}").roundtrip(WAVE, RATE)
    np.testing.assert_allclose(coded.samples, WAVE, atol=1 / 32768)
    assert coded.sample_rate == RATE
    assert coded.bytes is None


def test_the_bytes_of_a_program_are_those_of_its_coded_file():
    codec = open_codec(f"cmd:copy={program(COPY + LEAVE)}")
    assert codec.roundtrip(WAVE, RATE).bytes == 321


def test_the_bit_rate_of_a_program_can_be_stated_and_its_sample_rate_chosen():
    coded = open_codec("cmd:x,kbps=1.5,rate=24000=cp {in} {out}").roundtrip(WAVE, RATE)
    assert (coded.bytes, coded.sample_rate, len(coded.samples)) == (188, 24_000, 24_000)


def test_a_program_that_writes_no_plain_file_is_not_waited_for():
    codec = open_codec(f"cmd:x={sys.executable} -c 'import os, sys; os.mkfifo(sys.argv[2])' {{in}} {{out}}")
    with pytest.raises(ValueError, match=r"wrote no \{out\}"):
        codec.roundtrip(np.zeros(160, np.float32), 16_000)


def test_what_a_program_leaves_running_is_not_waited_for(tmp_path):
    ended = tmp_path / "ended"
    detached = f"import os, time; os.setsid() if os.fork() == 0 else None; time.sleep(10); open({str(ended)!r}, 'w')"
    with pytest.raises(ValueError, match="was stopped after"):
        run_tool([sys.executable, "-c", detached], timeout=0.5)
    assert not ended.exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cmd:x=false {in} {out}", "false ended with exit code 1"),
        (f"cmd:x={sys.executable} -c \"import sys; sys.exit('no licence')\" {{in}} {{out}}", "exit code 1: no licence"),
        ("cmd:x=true {in} {out}", "wrote no {out}"),
        ("cmd:x=cp {in} {out} --suffix={code}", "wrote no {code}"),
        ("cmd:x=sh -c 'echo hello > {out}; : {in}'", "cannot be read as audio"),
        ("cmd:x,timeout=0.1=sh -c 'sleep 60; : {in} {out}'", "sh was stopped after 0.1 s"),
    ],
)
def test_a_program_that_fails_is_named_with_the_reason(spec, said):
    codec = open_codec(spec)
    with pytest.raises(ValueError, match=re.escape(said)):
        codec.roundtrip(WAVE, RATE)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cmd:x", "not of the form 'cmd:NAME=PROGRAM {in} {out}'"),
        ("cmd:two words=cp {in} {out}", "not of the form"),
        ("cmd:x=cp {in}", "does not say where {out} goes"),
        ("cmd:x=cp {out}", "does not say where {in} goes"),
        ('cmd:x=cp "{in} {out}', "cannot be split into words"),
        ("cmd:x,kbps=0=cp {in} {out}", "kbps must be above 0"),
        ("cmd:x,rate=1=cp {in} {out}", "rate must be between"),
        ("dir:", "nothing is no folder"),
        ("dir:/nowhere", "/nowhere is no folder"),
        ("dir:/nowhere,kps=3", "no option 'kps'"),
    ],
)
def test_what_cannot_be_run_or_read_is_refused(spec, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        open_codec(spec)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(CodecUnavailable, match="no program no-such-codec"):
        open_codec("cmd:x=no-such-codec {in} {out}")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", np.stack([WAVE, WAVE], axis=1), 24_000, "PCM_16")
    (tmp_path / "speech" / "a.bin").write_bytes(bytes(77))
    return tmp_path


def test_decoded_files_are_found_by_key_and_mixed_down(folder):
    coded = open_codec(f"dir:{folder},kbps=2,name=theirs").roundtrip(WAVE, RATE, key="speech/a")
    np.testing.assert_allclose(coded.samples, WAVE, atol=1 / 32768)
    assert (coded.sample_rate, coded.bytes) == (24_000, 250)
    assert coded.seconds_decode is None


def test_the_bytes_of_decoded_files_are_those_of_the_coded_files_beside_them(folder):
    assert open_codec(f"dir:{folder},code=.bin").roundtrip(WAVE, RATE, key="speech/a").bytes == 77


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ("", "speech/b", "holds no decoded speech/b"),
        ("", "", "cannot be a file there"),
        ("", "../speech/a", "cannot be a file there"),
        (",code=x", "speech/a", "a.x: is not"),
    ],
)
def test_a_missing_file_is_named(folder, options, key, said):
    codec = open_codec(f"dir:{folder}{options}")
    with pytest.raises(ValueError, match=re.escape(said)):
        codec.roundtrip(WAVE, RATE, key=key)
