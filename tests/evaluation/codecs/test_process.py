"""Codecs in another process: their results, their errors, and the end of the process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main
from sctok.evaluation.codecs.process import CodecProcess
from sctok.evaluation.codecs.registry import CodecUnavailable, open_codec

# A module that replaces the package snac. Its codec writes a note whenever it is loaded, and ends the process, raises
# an error or prints text, depending on the peak of the wave.
DEADLY = """
import os, signal, sys
from pathlib import Path

class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class SNAC:
    sampling_rate, n_codebooks, codebook_size = 16_000, 1, 16

    @classmethod
    def from_pretrained(cls, folder):
        with (Path(folder) / "loaded").open("a") as file:
            file.write("x")
        return cls()

    def to(self, device):
        return self

    def eval(self):
        return self

    def encode(self, sound):
        peak = round(sound.abs().max().item(), 1)
        if peak == 0.9:
            os.kill(os.getpid(), signal.SIGSEGV)
        if peak == 0.8:
            os._exit(7)
        if peak == 0.7:
            raise OddError(1, 2)
        if peak == 0.6:
            print("a word")
        return [sound]

    def decode(self, codes):
        return codes[0]
"""


def wave(peak):
    return np.linspace(-peak, peak, 16_000, dtype=np.float32)


@pytest.fixture
def process():
    with CodecProcess("cpu") as process:
        yield process


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """Return the name of a codec that can end its process; a file in its folder counts how often it was loaded."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "snac.py").write_text(DEADLY)
    (tmp_path / "weights").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return f"snac,weights={tmp_path / 'weights'},name=deadly"


def test_a_codec_gives_the_same_results_as_in_this_process(process):
    there, here = (opened("lowpass:3500").roundtrip(wave(0.5), 16_000) for opened in (process.open, open_codec))
    assert process.open("lowpass:3500,name=dull").name == "dull"
    assert process.open("lowpass:3500").settings == open_codec("lowpass:3500").settings
    assert np.array_equal(there.samples, here.samples)
    assert (there.bytes, there.sample_rate) == (here.bytes, here.sample_rate)


def test_errors_are_the_same_as_in_this_process(process, tmp_path):
    with pytest.raises(ValueError, match="has no option 'x'"):
        process.open("lowpass:3500,x=1")
    with pytest.raises(CodecUnavailable, match="the program no-such-codec is missing"):
        process.open("cmd:x=no-such-codec {in} {out}")
    with pytest.raises(ValueError, match="has no decoded file a"):
        process.open(f"dir:{tmp_path}").roundtrip(wave(0.5), 16_000, key="a")


@pytest.mark.slow
def test_a_codec_whose_process_died_is_opened_again_for_the_next_file(process, deadly, tmp_path):
    codec, other = process.open(deadly), process.open("original")
    for _ in range(2):
        assert len(codec.roundtrip(wave(0.5), 16_000).samples) == 16_000
    assert (tmp_path / "weights" / "loaded").read_text() == "x"
    for peak, reason in ((0.9, "killed by SIGSEGV"), (0.8, "ended with exit code 7")):
        with pytest.raises(ValueError, match=f"its process (was )?{reason}"):
            codec.roundtrip(wave(peak), 16_000)
        assert len(other.roundtrip(wave(0.5), 16_000).samples) == 16_000
    with pytest.raises(ValueError, match="OddError: 1 and 2"):
        codec.roundtrip(wave(0.7), 16_000)
    assert len(codec.roundtrip(wave(0.5), 16_000).samples) == 16_000
    assert (tmp_path / "weights" / "loaded").read_text() == "xxx"


@pytest.mark.slow
def test_output_that_a_codec_prints_is_not_a_result(deadly, capfd):
    with CodecProcess("cpu") as process:
        process.open(deadly).roundtrip(wave(0.6), 16_000)
    out, err = capfd.readouterr()
    assert (out, "a word" in err) == ("", True)


@pytest.mark.slow
def test_a_codec_that_dies_when_it_is_opened_is_named(process, deadly, tmp_path):
    (tmp_path / "modules" / "snac.py").write_text("import os; os._exit(3)")
    with pytest.raises(ValueError, match=r"'snac,weights=.* cannot be opened: its process ended with exit code 3"):
        process.open(deadly)


def test_a_process_that_cannot_be_started_is_reported(process, monkeypatch):
    def start(self):
        raise OSError("no more processes")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    with pytest.raises(OSError, match="no more processes"), process:
        process.open("original")


def test_a_program_that_a_codec_runs_ends_with_the_process(tmp_path):
    note = tmp_path / "pid"
    command = f"sh -c 'sleep 1; echo $$ > {note}.new; mv {note}.new {note}; sleep 100' {{in}} {{out}}"
    with CodecProcess("cpu") as process:
        codec = process.open(f"cmd:slow={command}")
        assert process._worker is not None
        process._worker.send(
            (codec.spec, {"wave": wave(0.5), "sample_rate": 16_000})
        )  # like `roundtrip`, without waiting for the answer
        while not note.exists():
            os.sched_yield()
    killed = Path("/proc", note.read_text().strip())
    for _ in range(100):  # a killed process exists until the system has collected it
        if not killed.exists():
            return
        time.sleep(0.1)
    pytest.fail("the program still runs")


@pytest.mark.slow
def test_a_program_that_a_codec_runs_ends_when_the_first_process_is_killed(tmp_path):
    note = tmp_path / "pid"
    spec = f"cmd:slow=sh -c 'sleep 1; echo $$ > {note}.new; mv {note}.new {note}; sleep 100' {{in}} {{out}}"
    code = "import sys; import numpy as np; from sctok.evaluation.codecs.process import CodecProcess\n"
    code += "CodecProcess('cpu').open(sys.argv[1]).roundtrip(np.zeros(16_000, np.float32), 16_000)"
    with subprocess.Popen([sys.executable, "-c", code, spec]) as first:
        while not note.exists():
            assert first.poll() is None
            os.sched_yield()
        first.kill()
    program, deadline = Path("/proc", note.read_text().strip()), time.monotonic() + 20
    while program.exists() and time.monotonic() < deadline:
        os.sched_yield()
    assert not program.exists()


@pytest.mark.slow
def test_the_command_continues_after_a_codec_died(deadly, tmp_path, capsys):
    for name, peak in (("a", 0.9), ("b", 0.5)):
        path = tmp_path / "set" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wave(peak), 16_000)
    out = tmp_path / "run"
    arguments = ["--codec", deadly, "--codec", "original", "--metrics", "si_sdr", "--out", str(out)]
    assert main(["evaluate", str(tmp_path / "set"), *arguments]) == 0
    assert "codecs failed on 1 files" in capsys.readouterr().err
    rows = [line.split(",") for line in Path(out / "scores.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("deadly", "a", "its process was killed by SIGSEGV"),
        ("deadly", "b", ""),
        ("original", "a", ""),
        ("original", "b", ""),
    ]
