"""The loop that every corpus command runs: claim shards, encode their files, finish each shard atomically."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

import sctok
from sctok.audio.filterbank import SETTINGS
from sctok.audio.loader import load_windows
from sctok.audio.sources import AudioItem
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import FormatError, disk_errors

from .claims import Claim
from .manifest import Failure
from .packing import ClipT, FileEnd, WindowResult, encode_files
from .runs import Progress, RunError, RunFolder, Shard


class Extractor(Protocol):
    """A frozen encoder on one device, as `sctok.features.checkpoints.load_encoder` returns it."""

    @property
    def name(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def hash(self) -> str:
        """Hash of its weights."""
        ...

    @property
    def width(self) -> int:
        """Values of one patch embedding."""
        ...

    @property
    def precision(self) -> str:
        """Precision of its arithmetic: fp32, bf16 or fp16."""
        ...

    def embed(self, waves: npt.NDArray[np.float32], last: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Map windows (w, 164,080), and which of them end a file (w,), to patch embeddings (w, 512, width).

        What a window becomes does not depend on the others.
        """
        ...


MakeExtractor = Callable[[str], Extractor]  # device name -> encoder on that device; picklable for several devices


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """Return what of an encoder decides about its features, for the configuration of a run."""
    return {
        "encoder": extractor.name,
        "encoder_hash": extractor.hash,
        "width": extractor.width,
        "filterbank": SETTINGS,
        "precision": extractor.precision,
        "sctok_version": sctok.__version__,
    }


def check_extractor(extractor: Extractor, run: RunFolder, device: str) -> Extractor:
    """Return the encoder of a further device if it computes what the run was planned with.

    Raises:
        RunError: it has other weights or another precision.
    """
    for name, value in (("encoder_hash", extractor.hash), ("precision", extractor.precision)):
        if run.config[name] != value:
            raise RunError(f"the encoder on {device} has {name} {value}, that of {run.path} {run.config[name]}")
    return extractor


def describe_source(item: AudioItem) -> dict[str, Any]:
    """Return where a file came from and what was known of it, for the results."""
    return {**item.metadata, "path": item.path}


_ClipT_contra = TypeVar("_ClipT_contra", contravariant=True)


class ShardSink(Protocol[_ClipT_contra]):
    """An open shard. `take` and `finish` raise FormatError where a file's results cannot be stored."""

    def take(self, clip: _ClipT_contra, window: int, values: npt.NDArray[Any]) -> None:
        """Take the result of one window of a file."""
        ...

    def finish(self, clip: _ClipT_contra, samples: int) -> None:
        """Store a file of `samples` samples at 16 kHz, all of whose windows were taken."""
        ...

    def discard(self, clip: _ClipT_contra) -> None:
        """Leave no trace of a file that failed."""
        ...


class Job(Protocol[ClipT]):
    """What a command does with windows, on one device."""

    def encode(self, waves: npt.NDArray[np.float32], last: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return one result per window (w, …)."""
        ...

    def open_clip(self, item: AudioItem) -> ClipT:
        """Begin a file."""
        ...

    def open_shard(self, path: Path) -> AbstractContextManager[ShardSink[ClipT]]:
        """Begin a shard, which appears at `path` when the context ends well."""
        ...


@dataclass(frozen=True)
class Execution:
    """How a run is executed; nothing here changes its results.

    devices: one process each, the first being this one. batch_size: windows encoded at once. workers: decoding
    processes in all; 0 decodes between batches. Raises RunError for values out of range.
    """

    devices: tuple[str, ...] = ("cpu",)
    batch_size: int = 16
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.devices:
            raise RunError("no device was given; use for instance cpu or cuda:0")
        if self.batch_size < 1:
            raise RunError(f"batch size must be at least 1, not {self.batch_size}")
        if self.workers < 0:
            raise RunError(f"workers must be at least 0, not {self.workers}")

    @property
    def workers_per_device(self) -> int:
        """Decoding processes of each device's process."""
        return -(-self.workers // len(self.devices))


def process_shards(run: RunFolder, job: Job[ClipT], execution: Execution, progress: Progress) -> None:
    """Work on the shards of a run that nobody else has finished or claimed, until none is left.

    Windows are packed over the borders of files and shards. Reports `{"event": "windows", "count"}` for each batch,
    `{"event": "file", "key", "seconds", "reason"}` for each file and `{"event": "shard", "index"}` for each shard.

    Raises:
        DiskFullError: finished shards stay valid, the others are taken up by the next run.
        ValueError: a decoding process died.
    """
    held: deque[tuple[Shard, Claim]] = deque()

    def claimed_items() -> Iterator[AudioItem]:
        for shard, claim in run.claim_shards():
            held.append((shard, claim))
            yield from shard.items

    def encode(waves: npt.NDArray[np.float32], last: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        encoded = job.encode(waves, last)
        progress({"event": "windows", "count": len(waves)})
        return encoded

    chunks = load_windows(claimed_items(), workers=execution.workers_per_device, channel=run.config["channel"])
    assert isinstance(chunks, Generator)  # so that its workers can be ended
    try:
        with (
            closing(chunks),
            closing(encode_files(chunks, encode, execution.batch_size, job.open_clip)) as events,
        ):
            for event in events:
                shard, claim = held[0]
                _write_shard(run, job, shard, itertools.chain([event], events), progress)
                held.popleft()
                claim.release()
                progress({"event": "shard", "index": shard.index})
    finally:
        for _, claim in held:
            claim.release()


def _write_shard(
    run: RunFolder,
    job: Job[ClipT],
    shard: Shard,
    events: Iterable[WindowResult[ClipT] | FileEnd[ClipT]],
    progress: Progress,
) -> None:
    path = run.shard_path(shard.index)
    with disk_errors(path), job.open_shard(path) as sink:
        files = _Files(sink, f"{path}: ")
        expected = len(shard.items)
        for event in events:
            if isinstance(event, WindowResult):
                files.take(event)
                continue
            reason = files.end(event)
            progress({"event": "file", "key": event.item.key, "seconds": event.samples / SAMPLE_RATE, "reason": reason})
            expected -= 1
            if not expected:
                break
        if expected:
            raise RuntimeError(f"{expected} files of {path} were never decoded")
        # Before the shard appears, so that a finished shard always has its record.
        run.record_failures(shard.index, files.failures)


class _Files(Generic[ClipT]):
    """Passes results on to a shard, and turns what cannot be stored into failures of that file alone."""

    def __init__(self, sink: ShardSink[ClipT], prefix: str) -> None:
        self.failures: list[Failure] = []
        self._sink = sink
        self._prefix = prefix  # errors name the shard, which is no news in its own record and may have moved
        self._reason: str | None = None

    def take(self, result: WindowResult[ClipT]) -> None:
        if self._reason is None:
            self._try(lambda: self._sink.take(result.clip, result.window, result.values))

    def end(self, end: FileEnd[ClipT]) -> str | None:
        """Finish a file; return why it failed, or None."""
        if self._reason is None and end.reason is not None:
            self._reason = end.reason.removeprefix(f"{end.item.name}: ")
        if self._reason is None:
            self._try(lambda: self._sink.finish(end.clip, end.samples))
        reason, self._reason = self._reason, None
        if reason is not None:
            self._sink.discard(end.clip)
            self.failures.append(Failure(end.item.key, end.item.path, reason))
        return reason

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except FormatError as error:
            self._reason = str(error).removeprefix(self._prefix)
