"""The loop that every corpus command runs: claim shards, encode their files, finish each shard atomically."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from sctok.formats.files import FormatError, disk_errors

from .manifest import Failure
from .run_folder import Progress, RunError, RunFolder, Work, claim_work
from .stages import DECODE, WRITER_WAIT, WRITING, Stage, StageTimes
from .writer import ConsumerThread

LOCAL = "local"
_EVENTS_AHEAD = 32  # results of windows that wait for the writer


class Extractor(Protocol):
    """A frozen encoder on one device, as `sctok.features.extractor.load_encoder` returns it."""

    stage: Stage  # as of `Job`

    @property
    def device(self) -> Any:
        """The torch device, or its name."""
        ...

    @property
    def name(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def hash(self) -> str:
        """Hash of its weights, and of whether it cuts padding."""
        ...

    @property
    def width(self) -> int:
        """Values of one patch embedding."""
        ...

    @property
    def precision(self) -> str:
        """Precision of its arithmetic: fp32, bf16 or fp16."""
        ...

    @property
    def padding(self) -> str:
        """Whether it sees what fills up the last window of a file: keep, or cut."""
        ...

    def embed(self, waves: Any, last: Any) -> Any:
        """Map windows (w, 164,080), and which of them end a file (w,), to patch embeddings (w, 512, width).

        Or with padding cut (w, 2560·c + 240) to (w, 8·c, width). Arrays to an array, tensors to a tensor on the device.
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

    def take(self, clip: _ClipT_contra, window: int, values: Any) -> None:
        """Take the result of one window of a file."""
        ...

    def finish(self, clip: _ClipT_contra, samples: int) -> None:
        """Store a file of `samples` samples at 16 kHz, all of whose windows were taken."""
        ...

    def discard(self, clip: _ClipT_contra) -> None:
        """Leave no trace of a file that failed."""
        ...

    def copy(self, entry: Any) -> None:
        """Store a file as an earlier shard has it."""
        ...


class Job(Protocol[ClipT]):
    """What a command does with windows, on one device; its results go to one or several runs, counted from 0.

    stage: called with the name of each stage of `encode`, gives the context in which to do it. device: of torch. cut:
    whether `encode` wants of a file's last window only the columns that get tokens.
    """

    stage: Stage
    device: Any
    cut: bool

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the windows of files as `encode` wants them."""
        ...

    def encode(self, waves: Waves, last: Ends) -> Iterable[Any]:
        """Return one result per window; on a GPU, the arguments are tensors there."""
        ...

    def open_clip(self, item: AudioItem) -> ClipT:
        """Begin a file."""
        ...

    def open_shard(self, path: Path, run: int) -> AbstractContextManager[ShardSink[ClipT]]:
        """Begin a shard of a run, which appears at `path` when the context ends well."""
        ...

    def read_shard(self, path: Path) -> AbstractContextManager[Iterator[tuple[str, Any]]]:
        """Open a finished shard: its files in order, as (key, what `ShardSink.copy` takes)."""
        ...


@dataclass(frozen=True)
class Execution:
    """How a run is executed; for given inputs, nothing here changes its results.

    devices: one process each, the first being this one. batch_size: windows encoded at once. workers: decoding
    processes in all; 0 decodes between batches. retry_failed: read again, too, the inputs that failed in finished
    shards, and those alone. refresh: do the shards again whose inputs changed or vanished.
    rank, world_size: work on the shards whose number is `rank` modulo `world_size`, for
    machines that cannot lock each other's files or arrays of jobs. profile: measure where the time goes. ray_address:
    have workers of Ray do it, of the cluster there or, if LOCAL, of one started for the run. Raises RunError for values
    out of range.
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
            raise RunError("no device was given; use for instance cpu or cuda:0")
        if self.batch_size < 1:
            raise RunError(f"batch size must be at least 1, not {self.batch_size}")
        if self.workers < 0:
            raise RunError(f"workers must be at least 0, not {self.workers}")
        if not 0 <= self.rank < self.world_size:
            raise RunError(f"rank must be from 0 to {self.world_size - 1}, world size - 1, not {self.rank}")

    @property
    def workers_per_device(self) -> int:
        """Decoding processes of each device's process."""
        return -(-self.workers // len(self.devices))

    def mine(self, index: int) -> bool:
        """Return whether a shard is one of this rank's."""
        return index % self.world_size == self.rank


def process_shards(runs: Sequence[RunFolder], job: Job[ClipT], execution: Execution, progress: Progress) -> None:
    """Work on the shards of runs with one plan that nobody else has finished or claimed, until none is left.

    Windows are packed over the borders of files and shards. Shards are written in a thread of their own. Reports
    `{"event": "windows", "count"}` for each batch, `{"event": "file", "key", "seconds", "reason"}` for each file,
    `{"event": "shard", "index"}` for each shard and, with `execution.profile`, at the end `{"event": "stages",
    "times": {stage: seconds}}`.

    Raises:
        DiskFullError: finished shards stay valid, the others are taken up by the next run.
        ValueError: a decoding process died.
    """
    held: deque[Work] = deque()
    lock = threading.Lock()
    times = StageTimes(execution.devices[0])
    job.stage = times if execution.profile else nullcontext

    def report(event: dict[str, Any]) -> None:
        with lock:
            progress(event)

    def claimed_items() -> Iterator[AudioItem]:
        for work in claim_work(runs, execution.mine):
            held.append(work)
            yield from work.items

    def encode(waves: Waves, last: Ends) -> Iterable[Any]:
        encoded = job.encode(waves, last)
        report({"event": "windows", "count": len(waves)})
        return encoded

    def write(events: Iterator[Event[ClipT]]) -> None:
        while (event := next(events, None)) is not None:
            _write_shard(runs, job, held[0], event, events, times, report)
            index = held[0].shard.index
            held.popleft().release()
            report({"event": "shard", "index": index})

    chunks = load_windows(claimed_items(), workers=execution.workers_per_device, channel=runs[0].config["channel"])
    assert isinstance(chunks, Generator)  # so that its workers can be ended
    decoded = times.each(DECODE, job.prepare(chunks))
    try:
        with (
            closing(chunks),
            lanes_for(encode, execution.batch_size, job.device) as lanes,
            closing(encode_files(decoded, lanes, job.open_clip, cut=job.cut)) as events,
            ConsumerThread(write, _EVENTS_AHEAD) as writer,
        ):
            for event in events:
                with times(WRITER_WAIT):
                    writer.put(event)
    finally:
        for work in held:
            work.release()
    if execution.profile:
        report({"event": "stages", "times": dict(times.seconds)})


def _write_shard(
    runs: Sequence[RunFolder],
    job: Job[ClipT],
    work: Work,
    event: Event[ClipT],
    events: Iterator[Event[ClipT]],
    times: StageTimes,
    progress: Progress,
) -> None:
    """Write a shard of each run that lacks it, from its first event and those that follow."""
    with times(WRITING), ExitStack() as stack:
        parts = [stack.enter_context(_open_part(runs[place], job, place, work)) for place in work.wanted]
        expected = len(work.items)
        while True:
            if isinstance(event, WindowResult):
                for part in parts:
                    part.take(event)
            else:
                reasons = [part.end(event) for part in parts]
                reason = next(filter(None, reasons), None)
                seconds = event.samples / SAMPLE_RATE
                progress({"event": "file", "key": event.item.key, "seconds": seconds, "reason": reason})
                expected -= 1
                if not expected:
                    return
            start = time.perf_counter()
            following = next(events, None)
            times.seconds[WRITING] -= time.perf_counter() - start  # waiting for the encoder is no writing
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
    """One run's shard in the making: turns what cannot be stored into failures of that file alone."""

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
        self._prefix = prefix  # errors name the shard, which is no news in its own record and may have moved
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
        """Copy from the shard as it was what follows the last file that was tried again."""
        for item in self._planned:
            self._copy(item.key)

    def _begin(self, key: str) -> bool:
        """Return whether this run lacks the file, having copied those that precede it."""
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
            raise FormatError(f"{self._prefix}{key!r} is missing in the shard as it was; delete it and run again")
        self._sink.copy(entry)
        self.keys.append(key)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except FormatError as error:
            self._reason = str(error).removeprefix(self._prefix)
