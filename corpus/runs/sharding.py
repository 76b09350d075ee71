"""The loop of every corpus command: claim shards, encode their files, write each shard atomically."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import sctok
from sctok.audio.filterbank import SETTINGS
from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk, load_windows
from sctok.audio.packing import ClipT, Event, FileEnd, WindowResult, encode_files
from sctok.audio.transfer import Ends, Waves, lanes_for
from sctok.audio.windows import SAMPLE_RATE
from sctok.features.extractor import Extractor
from sctok.formats.files import FormatError, disk_errors
from sctok.runtime.stages import DECODING, WRITER_WAIT, WRITING, Stage, StageTimer

from .events import FileFinished, RunEvent, RunListener, ShardFinished, StagesTimed, WindowsEncoded
from .manifest import Failure
from .resume import Work, claim_work
from .run_folder import RunError, RunFolder
from .writer import ConsumerThread

LOCAL = "local"
_EVENTS_AHEAD = 32  # results of windows that may wait for the writer


MakeExtractor = Callable[[str], Extractor]  # device name -> encoder on it; picklable if there are several devices


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """Return the settings of an encoder that determine its features, for the configuration of a run."""
    return {
        "encoder": extractor.name,
        "encoder_hash": extractor.hash,
        "width": extractor.width,
        "filterbank": SETTINGS,
        "precision": extractor.precision,
        "sctok_version": sctok.__version__,
    }


def check_at_least(name: str, value: float | None, least: int) -> None:
    """Raise RunError if a setting is below its limit; None is always valid."""
    if value is not None and value < least:
        raise RunError(f"{name} must be at least {least}, not {value}")


def check_device(made: Mapping[str, Any], run: RunFolder, device: str) -> None:
    """Check that an encoder on a further device computes what the run was planned with.

    Args:
        made: settings of that encoder, under their names in the configuration of the run.

    Raises:
        RunError: a setting differs.
    """
    for name, value in made.items():
        if run.config[name] != value:
            raise RunError(
                f"{run.path} was planned with {name} {run.config[name]}, but the encoder on {device} has {value}"
            )


def describe_source(item: AudioItem) -> dict[str, Any]:
    """Return the metadata and the path of a file, as results store them."""
    return {**item.metadata, "path": item.path}


_ClipT_contra = TypeVar("_ClipT_contra", contravariant=True)


class ShardSink(Protocol[_ClipT_contra]):
    """An open shard. `take` and `finish` raise FormatError if the results of a file cannot be stored."""

    def take(self, clip: _ClipT_contra, window: int, values: Any) -> None:
        """Add the result of one window of a file."""

    def finish(self, clip: _ClipT_contra, samples: int) -> None:
        """Store a file of `samples` samples at 16 kHz after all its windows were added."""

    def discard(self, clip: _ClipT_contra) -> None:
        """Remove everything stored of a file that failed."""

    def copy(self, entry: Any) -> None:
        """Store a file from the previous version of the shard."""


class Job(Protocol[ClipT]):
    """What a command does with windows on one device; results go to one or several runs, numbered from 0.

    stage: called with the name of each stage of `encode`, returns the context to run it in. device: the torch device.
    cut: whether `encode` takes only the columns of a file's last window that get tokens.
    """

    stage: Stage
    device: Any
    cut: bool

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the windows of files as `encode` expects them."""

    def encode(self, waves: Waves, last: Ends) -> Iterable[Any]:
        """Return one result per window; on a GPU, the arguments are tensors on it."""

    def open_clip(self, item: AudioItem) -> ClipT:
        """Return a new record of a file."""

    def open_shard(self, path: Path, run: int) -> AbstractContextManager[ShardSink[ClipT]]:
        """Open a new shard of a run, which appears at `path` when the context ends without an error."""

    def read_shard(self, path: Path) -> AbstractContextManager[Iterator[tuple[str, Any]]]:
        """Open a finished shard; yields its files in order as (key, entry for `ShardSink.copy`)."""


@dataclass(frozen=True)
class Execution:
    """How a run is executed. Nothing here changes the results for given inputs.

    devices: one process runs on each, this process on the first. batch_size: windows per batch. workers: number of
    decoding processes on all devices together; 0 decodes between batches. retry_failed: also read inputs again that
    failed in finished shards. refresh: rewrite shards whose inputs changed or vanished. rank, world_size: work
    only on shards whose number is `rank` modulo `world_size`, for machines that cannot lock each other's files and for
    job arrays. profile: measure the time of each stage. ray_address: run on the Ray cluster at this address, or on one
    started for this run if it is LOCAL. Raises RunError for values out of range.
    """

    devices: tuple[str, ...] = ("cpu",)
    batch_size: int = 16
    workers: int = 1
    retry_failed: bool = False
    refresh: bool = False
    rank: int = 0
    world_size: int = 1
    profile: bool = False
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not self.devices:
            raise RunError("no device was given; name at least one, for instance cpu or cuda:0")
        check_at_least("batch size", self.batch_size, 1)
        check_at_least("workers", self.workers, 0)
        if not 0 <= self.rank < self.world_size:
            raise RunError(f"rank must be from 0 to {self.world_size - 1} (world size - 1), not {self.rank}")

    @property
    def workers_per_device(self) -> int:
        """Number of decoding processes for each device."""
        return -(-self.workers // len(self.devices))

    def mine(self, index: int) -> bool:
        """Return whether a shard belongs to this rank."""
        return index % self.world_size == self.rank


def process_shards(runs: Sequence[RunFolder], job: Job[ClipT], execution: Execution, progress: RunListener) -> None:
    """Process the shards of runs over one plan until each is finished or claimed by another process.

    Batches contain windows of several files and shards. A separate thread writes the shards. Reports WindowsEncoded,
    FileFinished, ShardFinished and, with `execution.profile`, StagesTimed at the end.

    Raises:
        DiskFullError: finished shards stay valid; the next run processes the others.
        ValueError: a decoding process died.
    """
    held: deque[Work] = deque()
    lock = threading.Lock()
    timer = StageTimer(execution.devices[0])
    job.stage = timer if execution.profile else nullcontext

    def report(event: RunEvent) -> None:
        with lock:
            progress(event)

    def claimed_items() -> Iterator[AudioItem]:
        for work in claim_work(runs, execution.mine):
            held.append(work)
            yield from work.items

    def encode(waves: Waves, last: Ends) -> Iterable[Any]:
        encoded = job.encode(waves, last)
        report(WindowsEncoded(len(waves)))
        return encoded

    def write(events: Iterator[Event[ClipT]]) -> None:
        while (event := next(events, None)) is not None:
            _write_shard(runs, job, held[0], event, events, timer, report)
            index = held[0].shard.index
            held.popleft().release()
            report(ShardFinished(index))

    chunks = load_windows(claimed_items(), workers=execution.workers_per_device, channel=runs[0].config["channel"])
    assert isinstance(chunks, Generator)  # so that closing it ends its workers
    decoded = timer.each(DECODING, job.prepare(chunks))
    try:
        with (
            closing(chunks),
            lanes_for(encode, execution.batch_size, job.device) as lanes,
            closing(encode_files(decoded, lanes, job.open_clip, cut=job.cut)) as events,
            ConsumerThread(write, _EVENTS_AHEAD) as writer,
        ):
            for event in events:
                with timer(WRITER_WAIT):
                    writer.put(event)
    finally:
        for work in held:
            work.release()
    if execution.profile:
        report(StagesTimed(dict(timer.seconds)))


def _write_shard(
    runs: Sequence[RunFolder],
    job: Job[ClipT],
    work: Work,
    event: Event[ClipT],
    events: Iterator[Event[ClipT]],
    timer: StageTimer,
    progress: RunListener,
) -> None:
    """Write a shard for each run that lacks it, from its first event and the following ones."""
    with timer(WRITING), ExitStack() as stack:
        parts = [stack.enter_context(_open_part(runs[place], job, place, work)) for place in work.wanted]
        expected = len(work.items)
        while True:
            if isinstance(event, WindowResult):
                for part in parts:
                    part.take(event)
            else:
                reasons = [part.end(event) for part in parts]
                reason = next(filter(None, reasons), None)
                progress(FileFinished(event.item.key, event.samples / SAMPLE_RATE, reason))
                expected -= 1
                if not expected:
                    return
            start = time.perf_counter()
            following = next(events, None)
            timer.seconds[WRITING] -= time.perf_counter() - start  # do not count waiting for the encoder
            if following is None:
                raise RuntimeError(f"{expected} files of shard {work.shard.index} were never decoded")
            event = following


@contextmanager
def _open_part(run: RunFolder, job: Job[ClipT], place: int, work: Work) -> Iterator["_Part[ClipT]"]:
    path, staged = run.shard_path(work.shard.index), run.staged_path(work.shard.index)
    try:
        with disk_errors(path):
            with ExitStack() as stack:
                wanted = work.wanted[place]
                old = iter(()) if wanted is None else stack.enter_context(job.read_shard(path))
                sink = stack.enter_context(job.open_shard(staged, place))
                part = _Part(sink, f"{staged}: ", work, wanted, old)
                yield part
                part.copy_rest()
            run.finish_shard(work.shard, part.keys, part.failures, work.contents)
    finally:
        staged.unlink(missing_ok=True)


class _Part(Generic[ClipT]):
    """The unfinished shard of one run. If a file cannot be stored, only that file fails."""

    def __init__(
        self,
        sink: ShardSink[ClipT],
        prefix: str,
        work: Work,
        wanted: frozenset[str] | None,
        old: Iterator[tuple[str, Any]],
    ) -> None:
        self.keys: list[str] = []
        self.failures: list[Failure] = []
        self._sink = sink
        self._prefix = prefix  # removed from reasons: the shard's own record need not name it
        self._wanted = wanted
        self._planned = iter(work.shard.items)
        self._old = old
        self._current: str | None = None
        self._reason: str | None = None

    def take(self, result: WindowResult[ClipT]) -> None:
        """Store the result of a window."""
        if self._begin(result.clip.item.key) and self._reason is None:
            self._try(lambda: self._sink.take(result.clip, result.window, result.values))

    def end(self, end: FileEnd[ClipT]) -> str | None:
        """Finish a file; return why it failed, or None."""
        if not self._begin(end.item.key):
            return None
        self._current = None
        if self._reason is None and end.reason is not None:
            self._reason = end.reason.removeprefix(f"{end.item.name}: ")
        if self._reason is None:
            self._try(lambda: self._sink.finish(end.clip, end.samples))
        reason, self._reason = self._reason, None
        if reason is None:
            self.keys.append(end.item.key)
        else:
            self._sink.discard(end.clip)
            self.failures.append(Failure(end.item.key, end.item.path, reason))
        return reason

    def copy_rest(self) -> None:
        """Copy the files after the last one that was read again from the previous version of the shard."""
        for item in self._planned:
            self._copy(item.key)

    def _begin(self, key: str) -> bool:
        """Copy the files that precede a file; return whether this run lacks the file."""
        if self._wanted is not None and key not in self._wanted:
            return False
        if key != self._current:
            self._current = key
            for item in self._planned:
                if item.key == key:
                    break
                self._copy(item.key)
        return True

    def _copy(self, key: str) -> None:
        entry = next((entry for found, entry in self._old if found == key), None)
        if entry is None:
            raise FormatError(f"{self._prefix}{key!r} is missing in the existing shard; delete the shard and run again")
        self._sink.copy(entry)
        self.keys.append(key)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except FormatError as error:
            self._reason = str(error).removeprefix(self._prefix)
