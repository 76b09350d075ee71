"""External programs and folders of decoded audio as codecs."""

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
    """Return a command that runs Python code with the paths of the input, the output and the coded file."""
    return f"{sys.executable} -c '{code}' {{in}} {{out}} {{code}}"


COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
WRITE_CODE = '; open(sys.argv[3], "wb").write(bytes(321))'


def test_a_program_reads_a_16_bit_wave_and_its_output_is_returned():
    coded = open_codec("cmd:copy=cp {in} {out}").roundtrip(WAVE, RATE)
    np.testing.assert_allclose(coded.samples, WAVE, atol=1 / 32768)
    assert coded.sample_rate == RATE
    assert coded.bytes is None


def test_the_bytes_of_a_program_are_the_size_of_its_coded_file():
    codec = open_codec(f"cmd:copy={program(COPY + WRITE_CODE)}")
    assert codec.roundtrip(WAVE, RATE).bytes == 321


def test_the_bit_rate_and_sample_rate_of_a_program_can_be_given():
    coded = open_codec("cmd:x,kbps=1.5,rate=24000=cp {in} {out}").roundtrip(WAVE, RATE)
    assert (coded.bytes, coded.sample_rate, len(coded.samples)) == (188, 24_000, 24_000)


def test_a_program_whose_output_is_not_a_regular_file_does_not_block():
    codec = open_codec(f"cmd:x={sys.executable} -c 'import os, sys; os.mkfifo(sys.argv[2])' {{in}} {{out}}")
    with pytest.raises(ValueError, match=r"wrote no \{out\}"):
        codec.roundtrip(np.zeros(160, np.float32), 16_000)


def test_processes_that_a_program_detaches_do_not_block(tmp_path):
    ended = tmp_path / "ended"
    detached = f"import os, time; os.setsid() if os.fork() == 0 else None; time.sleep(10); open({str(ended)!r}, 'w')"
    with pytest.raises(ValueError, match="was stopped after"):
        run_tool([sys.executable, "-c", detached], timeout=0.5)
    assert not ended.exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cmd:x=false {in} {out}", "false ended with exit code 1"),
        (f"cmd:x={sys.executable} -c \"import sys; sys.exit('no licence')\" {{in}} {{out}}", "exit code 1: no licence"),
        ("cmd:x=true {in} {out}", "wrote no {out}"),
        ("cmd:x=cp {in} {out} --suffix={code}", "wrote no {code}"),
        ("cmd:x=sh -c 'echo hello > {out}; : {in}'", "cannot be read as audio"),
        ("cmd:x,timeout=0.1=sh -c 'sleep 60; : {in} {out}'", "sh was stopped after 0.1 s"),
    ],
)
def test_a_failing_program_is_named_with_the_reason(spec, message):
    codec = open_codec(spec)
    with pytest.raises(ValueError, match=re.escape(message)):
        codec.roundtrip(WAVE, RATE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cmd:x", "not of the form 'cmd:NAME=PROGRAM {in} {out}'"),
        ("cmd:two words=cp {in} {out}", "not of the form"),
        ("cmd:x=cp {in}", "the command lacks {out}"),
        ("cmd:x=cp {out}", "the command lacks {in}"),
        ('cmd:x=cp "{in} {out}', "cannot be split into words"),
        ("cmd:x,kbps=0=cp {in} {out}", "kbps must be above 0"),
        ("cmd:x,rate=1=cp {in} {out}", "rate must be between"),
        ("dir:", "'' is not a folder"),
        ("dir:/nowhere", "'/nowhere' is not a folder"),
        ("dir:/nowhere,kps=3", "no option 'kps'"),
    ],
)
def test_invalid_commands_and_folders_are_rejected(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_codec(spec)


def test_a_missing_program_is_named():
    with pytest.raises(CodecUnavailable, match="the program no-such-codec is missing"):
        open_codec("cmd:x=no-such-codec {in} {out}")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", np.stack([WAVE, WAVE], axis=1), 24_000, "PCM_16")
    (tmp_path / "speech" / "a.bin").write_bytes(bytes(77))
    return tmp_path


def test_decoded_files_are_found_by_key_and_mixed_to_mono(folder):
    coded = open_codec(f"dir:{folder},kbps=2,name=theirs").roundtrip(WAVE, RATE, key="speech/a")
    np.testing.assert_allclose(coded.samples, WAVE, atol=1 / 32768)
    assert (coded.sample_rate, coded.bytes) == (24_000, 250)
    assert coded.seconds_decode is None


def test_the_bytes_of_decoded_files_are_the_sizes_of_the_coded_files(folder):
    assert open_codec(f"dir:{folder},code=.bin").roundtrip(WAVE, RATE, key="speech/a").bytes == 77


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ("", "speech/b", "has no decoded file speech/b"),
        ("", "", "cannot be a file name"),
        ("", "../speech/a", "cannot be a file name"),
        (",code=x", "speech/a", "a.x is missing"),
    ],
)
def test_a_missing_file_is_named(folder, options, key, message):
    codec = open_codec(f"dir:{folder}{options}")
    with pytest.raises(ValueError, match=re.escape(message)):
        codec.roundtrip(WAVE, RATE, key=key)
