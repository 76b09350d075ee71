"""Windows of many files: their order, contents and memory, and the end of the workers."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk, LoaderError, load_windows
from sctok.audio.pieces import cut_pieces
from sctok.audio.windows import WINDOW_SAMPLES, WINDOW_SPAN, window_count

RATE = 16_000


def write_noise(path: Path, samples: int, seed: int = 0, rate: int = RATE) -> AudioItem:
    noise = np.random.default_rng(seed).integers(-20_000, 20_000, samples, dtype=np.int16)
    soundfile.write(path, noise, rate)
    return AudioItem(path.stem, str(path), suffix=path.suffix, metadata={"seed": seed})


def expected_windows(audio: np.ndarray) -> np.ndarray:
    count = window_count(len(audio))
    padded = np.zeros(count * WINDOW_SAMPLES + WINDOW_SPAN, np.float32)
    padded[: len(audio)] = audio
    return np.stack([padded[w * WINDOW_SAMPLES :][:WINDOW_SPAN] for w in range(count)])


def by_file(chunks: Iterator[Chunk]) -> list[tuple[str, list[Chunk]]]:
    return [(key, list(group)) for key, group in itertools.groupby(chunks, lambda chunk: chunk.item.key)]


def wait_until(done: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
    return done()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between the opening and the reading
        return False


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    total=st.sampled_from([0, 1, 239, 240, 241]).flatmap(
        lambda extra: st.integers(0, 5).map(lambda windows: windows * WINDOW_SAMPLES + extra)
    ),
    block=st.sampled_from([60_000, 163_840, 1_000_000]),
    piece_windows=st.integers(1, 4),
)
def test_pieces_hold_every_window(total: int, block: int, piece_windows: int) -> None:
    audio = np.arange(1, total + 1, dtype=np.float32)
    pieces = list(cut_pieces((audio[i : i + block] for i in range(0, total, block)), piece_windows))
    assert [piece.samples for piece in pieces] == [None] * (len(pieces) - 1) + [total]
    assert sum(piece.windows for piece in pieces) == window_count(total)
    first = 0
    for piece in pieces:
        assert 1 <= piece.windows <= piece_windows
        end = (first + piece.windows - 1) * WINDOW_SAMPLES + WINDOW_SPAN
        np.testing.assert_array_equal(piece.audio, audio[first * WINDOW_SAMPLES : end])
        first += piece.windows


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_files_of_awkward_lengths_give_their_windows_in_order(tmp_path: Path, workers: int) -> None:
    lengths = [1, 5 * WINDOW_SAMPLES + 100, WINDOW_SAMPLES, 3 * WINDOW_SAMPLES, 2 * WINDOW_SAMPLES + 240, 16_000, 7]
    items = [write_noise(tmp_path / f"{i}.wav", length, i) for i, length in enumerate(lengths)]
    files = by_file(load_windows(iter(items), workers=workers, chunk_windows=2, ahead=2))
    assert [key for key, _ in files] == [item.key for item in items]
    for item, length, (_, chunks) in zip(items, lengths, files, strict=True):
        assert all(chunk.item is item and chunk.error is None for chunk in chunks)
        assert all(1 <= len(chunk.waves) <= 2 for chunk in chunks)
        assert [chunk.first_window for chunk in chunks] == list(range(0, window_count(length), 2))
        assert [(chunk.last, chunk.samples) for chunk in chunks] == [(False, None)] * (len(chunks) - 1) + [
            (True, length)
        ]
        waves = np.concatenate([chunk.waves for chunk in chunks])
        assert waves.dtype == np.float32
        np.testing.assert_array_equal(waves, expected_windows(read_audio(item.path)))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_do_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    good = [write_noise(tmp_path / f"good{i}.wav", 1_000, i) for i in range(3)]
    (tmp_path / "text.wav").write_text("text")
    broken = write_noise(tmp_path / "broken.flac", 40 * RATE)
    Path(broken.path).write_bytes(Path(broken.path).read_bytes()[:-100_000])
    missing, text = (AudioItem(name, str(tmp_path / f"{name}.wav"), suffix=".wav") for name in ("missing", "text"))
    items = [missing, good[0], text, broken, good[1], good[2]]
    files = dict(by_file(load_windows(items, workers=workers, chunk_windows=1)))
    assert list(files) == [item.key for item in items]
    for item in good:
        assert files[item.key][0].samples == 1_000
    for key, words in [("missing", "no such file"), ("text", "Format not recognised"), ("broken", "truncated")]:
        end = files[key][-1]
        assert end.error is not None
        assert f"{key}." in end.error
        assert words in end.error
        assert (end.last, end.samples, end.waves.shape) == (True, None, (0, WINDOW_SPAN))
    assert [len(chunk.waves) for chunk in files["broken"]] == [1] * (len(files["broken"]) - 1) + [0]
    assert len(files["broken"]) > 2


@pytest.mark.parametrize("workers", [0, 1])
def test_channel_is_passed_on(tmp_path: Path, workers: int) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (1_000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    item = AudioItem("a", str(tmp_path / "a.wav"), suffix=".wav")
    (chunk,) = load_windows([item], workers=workers, channel=1)
    np.testing.assert_array_equal(chunk.waves[0, :1_000], wave[:, 1])
    (chunk,) = load_windows([item], workers=workers, channel=2)
    assert "no channel 2" in (chunk.error or "")


@pytest.mark.parametrize(
    "settings", [{"workers": -1}, {"workers": 1, "ahead": 0}, {"workers": 1, "chunk_windows": 0}, {"channel": -1}]
)
def test_settings_out_of_range_are_refused_at_once(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        load_windows([], **{"workers": 1, **settings})


def test_no_items() -> None:
    assert list(load_windows([], workers=1)) == []


def test_items_are_consumed_as_needed(tmp_path: Path) -> None:
    item = write_noise(tmp_path / "a.wav", 100)
    taken: list[int] = []

    def endless() -> Iterator[AudioItem]:
        for number in itertools.count():
            taken.append(number)
            yield item

    chunks = load_windows(endless(), workers=2, ahead=3)
    assert not taken
    for _ in range(10):
        next(chunks)
    assert len(taken) == 2 * 3 + 9
    chunks.close()


def test_error_of_the_listing_passes_through_and_ends_the_workers(tmp_path: Path) -> None:
    def listing() -> Iterator[AudioItem]:
        yield write_noise(tmp_path / "a.wav", 100)
        raise AudioError("list.csv", "is bad")

    with pytest.raises(AudioError, match=r"list\.csv: is bad"):
        list(load_windows(listing(), workers=1))
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    items = [write_noise(tmp_path / f"{i}.flac", 20 * WINDOW_SAMPLES, i) for i in range(2)]
    chunks = load_windows(items, workers=2, ahead=1, chunk_windows=1)
    next(chunks)
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 2
    chunks.close()
    assert not any(is_running(pid) for pid in workers if pid)


def test_killed_worker_is_reported_with_its_file(tmp_path: Path) -> None:
    items = [write_noise(tmp_path / f"{i}.flac", 20 * WINDOW_SAMPLES, i) for i in range(2)]
    chunks = load_windows(items, workers=1, ahead=1, chunk_windows=1)
    next(chunks)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(LoaderError, match=r"0\.flac: the worker process .* was killed by SIGKILL"):
        list(chunks)
    assert not multiprocessing.active_children()


def run_script(folder: Path, body: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, resource, signal, sys
            from sctok.audio.loader import load_windows
            from sctok.audio.inputs.sources import list_audio

            def main():
            """
        )
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\nif __name__ == '__main__':\n    main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


WAITING = """
    chunks = load_windows(list_audio([sys.argv[1]]), workers=2, ahead=1, chunk_windows=1)
    next(chunks)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # not to be interrupted on the way to the waiting
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    signal.sigwait({signal.SIGINT})
    print("interrupted", sum(chunk.last for chunk in chunks), len(multiprocessing.active_children()), flush=True)
"""

# Both workers have been started when the files are asked for, and are still importing.
STARTING = """
    def listing():
        os.killpg(0, signal.SIGINT)
        yield from list_audio([sys.argv[1]])

    signal.signal(signal.SIGINT, lambda *_: None)
    print(sum(chunk.last for chunk in load_windows(listing(), workers=2)))
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    for i in range(3):
        write_noise(tmp_path / f"{i}.flac", 20 * WINDOW_SAMPLES, i)
    process = run_script(tmp_path, WAITING)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        workers = [int(word) for word in line.split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        yield process, workers
    finally:
        process.kill()
        process.communicate()


def test_workers_die_with_a_killed_parent(waiting: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = waiting
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(map(is_running, workers)))


def test_interrupt_reaches_only_the_parent(waiting: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = waiting
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert out.split() == ["interrupted", "3", "0"]
    assert err == ""
    assert not any(map(is_running, workers))


def test_interrupt_while_the_workers_start_reaches_only_the_parent(tmp_path: Path) -> None:
    for i in range(2):
        write_noise(tmp_path / f"{i}.wav", 100, i)
    assert run_script(tmp_path, STARTING).communicate(timeout=300) == ("2\n", "")


def test_workers_do_not_import_torch() -> None:
    code = "import sys, sctok.audio.loader; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


MEMORY = """
    samples = [chunk.samples for chunk in load_windows(list_audio([sys.argv[1]]), workers={workers}, ahead=2)]
    kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(samples[-1], *kilobytes)
"""


@pytest.mark.parametrize(("suffix", "workers"), [(".flac", 1), (".wav", 0)])
def test_memory_does_not_grow_with_duration(tmp_path: Path, suffix: str, workers: int) -> None:
    noise = np.random.default_rng(0).integers(-30, 30, (60 * 8_000, 1), dtype=np.int16)
    peaks = []
    for minutes in (3, 30):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        with soundfile.SoundFile(folder / f"a{suffix}", "w", 8_000, 1) as file:
            for _ in range(minutes):
                file.write(noise)
        out, err = run_script(folder, MEMORY.format(workers=workers)).communicate(timeout=300)
        assert err == ""
        samples, *kilobytes = map(int, out.split())
        assert samples == minutes * 60 * RATE
        peaks.append(max(kilobytes))
    assert peaks[1] - peaks[0] < 60_000
