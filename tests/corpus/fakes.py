"""A fake encoder, small audio collections, and runs in separate processes that tests interrupt."""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from sctok.audio.windows import COLUMN_SAMPLES, PATCH_ROWS, WINDOW_SAMPLES
from sctok.corpus.engines.processes import RunResult
from sctok.corpus.extraction import ExtractionConfig, extract_features
from sctok.corpus.runs.events import RunEvent, ignore_events
from sctok.corpus.runs.sharding import Execution
from sctok.features.extractor import Extractor
from sctok.features.tokenizer import SemanticTokenizer
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.runtime.stages import Stage

WIDTH = 8
EXECUTION = ("devices", "batch_size", "workers", "retry_failed", "refresh", "rank", "world_size", "profile")
EXECUTION += ("ray_address",)


class FakeExtractor:
    """Embeds a patch of a window as the mean magnitudes of its eight sections."""

    name = "fake"
    hash = "0123456789abcdef"
    width = WIDTH
    precision = "fp32"
    device = "cpu"
    stage: Stage = nullcontext

    def __init__(self, delay: float = 0.0, padding: str = "keep") -> None:
        self.delay = delay
        self.padding = padding
        if padding == "cut":
            self.hash += "-cut"
        self.batches: list[int] = []

    def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return (w, 8 · columns, 8) float32."""
        self.batches.append(len(waves))
        time.sleep(self.delay * len(waves))
        columns = waves.shape[1] // COLUMN_SAMPLES
        heard = np.abs(waves[:, : columns * COLUMN_SAMPLES])
        sections = heard.reshape(len(waves), columns * PATCH_ROWS, WIDTH, -1).mean(axis=-1)
        return (sections + last[:, None, None]).astype(np.float32)


def make_fake(device: str) -> FakeExtractor:
    """Return the fake encoder, slow enough to be interrupted."""
    return FakeExtractor(delay=0.002)


def fake_codebook(k: int = 32, stack: int = 2, encoder_hash: str = FakeExtractor.hash) -> Codebook:
    """Return a codebook for features of the fake encoder."""
    centroids = np.random.default_rng(3).uniform(0, 0.4, (k, WIDTH * stack)).astype(np.float32)
    info = CodebookInfo("merged", (), stack, "fake", encoder_hash, n_vectors=k)
    return Codebook(centroids, np.ones(k, np.int64), info)


def write_audio(path: Path, samples: int, seed: int | None = None) -> Path:
    """Write a 16 kHz WAV file of noise with a varying level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(samples if seed is None else seed)
    level = np.repeat(rng.uniform(0.02, 0.5, samples // 1000 + 1), 1000)[:samples]
    soundfile.write(path, rng.uniform(-1, 1, samples) * level, 16_000, subtype="PCM_16")
    return path


def write_collection(folder: Path, files: int = 10) -> Path:
    """Write `files` readable files of 0.06 ms to 25 s in nested folders, and three unreadable files."""
    rng = random.Random(1)
    lengths = [1, 1000, WINDOW_SAMPLES, WINDOW_SAMPLES + 2561, 400_000]
    lengths += [rng.randrange(2_000, 60_000) for _ in range(files)]
    for index, samples in enumerate(lengths[:files]):
        write_audio(folder / f"part {index % 3}" / f"clïp{index}.wav", samples, seed=index)
    (folder / "part 0" / "text.wav").write_text("this is no audio\n")
    (folder / "part 1" / "empty.wav").touch()
    whole = (folder / "part 1" / "clïp4.wav").read_bytes() if files > 4 else b"RIFF"
    (folder / "part 1" / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_quick(device: str) -> FakeExtractor:
    """Return the fake encoder without a delay."""
    return FakeExtractor()


def make_cut(device: str) -> FakeExtractor:
    """Return the fake encoder that cuts padding."""
    return FakeExtractor(padding="cut")


def run_command(command: str, inputs: list[str | Path], folder: Path, **settings: Any) -> RunResult[Any]:
    """Extract or tokenize with the fake encoder; settings are those of Execution and of the configurations."""
    execution = {name: settings.pop(name) for name in EXECUTION if name in settings}
    execution = {"workers": 0, "batch_size": 3, **execution}
    settings = {"files_per_shard": 3, **settings}
    make, progress = settings.pop("make", make_fake), settings.pop("progress", ignore_events)
    if command == "extract":
        config = ExtractionConfig("speech", **settings)
        return extract_features(inputs, folder, make, config, Execution(**execution), progress)
    from sctok.corpus.tokenization import TokenizationConfig

    targets = {folder: fake_codebook(encoder_hash=make("cpu").hash)}
    config = TokenizationConfig(**settings)
    return tokenize_with_books(inputs, targets, make, config, Execution(**execution), progress)[0]


def tokenize_with_books(
    inputs: Sequence[str | Path],
    targets: Mapping[Path, Codebook],
    make_extractor: Callable[[str], Extractor],
    *settings: Any,
    **options: Any,
) -> list[RunResult[Any]]:
    """Tokenize with a feature encoder and one codebook for each run folder."""
    from sctok.corpus.tokenization import tokenize_corpus

    make = partial(make_semantic, make_extractor, list(targets.values()))
    return tokenize_corpus(inputs, list(targets), make, *settings, **options)


def make_semantic(
    make_extractor: Callable[[str], Extractor], books: Sequence[Codebook], device: str
) -> SemanticTokenizer:
    """Return the tokenizer of a feature encoder and codebooks."""
    return SemanticTokenizer(make_extractor(device), books)


def print_event(event: RunEvent) -> None:
    """Print an event as a line of JSON."""
    print(json.dumps({"event": type(event).__name__, **asdict(event)}), flush=True)


def _kill_often(command: str, audio: str, folder: str, kills: str, seed: str, workers: str) -> None:
    """Run the command, kill it at random moments, then let it end; print the number of kills before its end."""
    rng = random.Random(int(seed))
    run_command(command, [audio], Path(folder).with_name("imports"), workers=int(workers))
    start = time.monotonic()
    run_command(command, [audio], Path(folder).with_name("timing"), workers=int(workers))
    duration = time.monotonic() - start
    hits = 0
    for _ in range(int(kills)):
        child = os.fork()
        if not child:
            run_command(command, [audio], Path(folder), workers=int(workers))
            os._exit(0)
        time.sleep(rng.uniform(0, duration / 3))
        os.kill(child, signal.SIGKILL)
        hits += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run_command(command, [audio], Path(folder), workers=int(workers))
    print(hits)


def _run(command: str, audio: str, folder: str, workers: str, devices: str) -> None:
    """Run the command once, with one file in each shard."""
    run_command(
        command,
        [audio],
        Path(folder),
        workers=int(workers),
        devices=tuple(devices.split(",")),
        files_per_shard=1,
        progress=print_event,
    )


def make_doomed(device: str) -> FakeExtractor:
    """Return the fake encoder in the first process, and kill any other process."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_fake(device)


def _doomed(audio: str, folder: str) -> None:
    """Extract on two devices, one of which loses its process."""
    settings = {"files_per_shard": 1, "devices": ("cpu", "cpu"), "make": make_doomed, "progress": print_event}
    run_command("extract", [audio], Path(folder), **settings)


class DyingExtractor(FakeExtractor):
    """Kills its process at its third batch, but only once."""

    def __init__(self, marker: Path) -> None:
        super().__init__(delay=0.002)
        self.marker = marker

    def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
        if len(self.batches) == 2 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(waves, last)


def make_dying(marker: Path, device: str) -> DyingExtractor:
    """Return the fake encoder that dies once."""
    return DyingExtractor(marker)


def _limited(command: str, audio: str, folder: str, limit: str) -> None:
    """Run the command under a limit on the size of files, which makes writing fail as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        run_command(command, [audio], Path(folder))
    except OSError as error:
        print(error)
        sys.exit(3)


def _forked(action: Callable[[], object]) -> int:
    """Run an action in a fork of this process; return its exit code."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_at(count: int) -> None:
    """End this process, as if killed, before it syncs, renames or removes a file for the `count`-th time."""
    left = count

    def ending(work: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                os._exit(9)
            return work(*arguments, **options)

        return wrapper

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink")):
        setattr(owner, name, ending(getattr(owner, name)))


def _kill_refreshes(command: str, audio: str, old: str, clean: str, again: str, stride: str) -> None:
    """Refresh copies of a run, kill each at another write, and run again; print the number of the last write.

    again: "refresh" runs again with it; "plain" without, once the refresh has been written down. stride: of the writes.
    """
    run_command(command, [audio], Path(old).with_name("imports"), workers=0, make=make_quick)
    wanted, folder, kill = tree(Path(clean)), Path(old).with_name("killed"), 1

    def run(refresh: bool, until: int | None = None) -> None:
        if until is not None:
            _end_at(until)
        run_command(command, [audio], folder, workers=0, make=make_quick, refresh=refresh)

    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
        if _forked(partial(run, True, kill)) == 0:
            break
        begun = (folder / ".manifest.jsonl").exists() or tree(folder)["manifest.jsonl"] == wanted["manifest.jsonl"]
        assert _forked(partial(run, again == "refresh" or not begun)) == 0, kill
        assert tree(folder) == wanted, kill
        kill += int(stride)
    print(kill)


if __name__ == "__main__":
    commands = {"refresh": _kill_refreshes, "kill": _kill_often}
    {**commands, "run": _run, "limited": _limited, "doomed": _doomed}[sys.argv[1]](*sys.argv[2:])
