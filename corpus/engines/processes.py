"""One process per device: they share the shards of a run through its claims."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from sctok.audio.packing import ClipT
from sctok.audio.windows import SAMPLE_RATE
from sctok.corpus.runs.run_folder import Progress, RunFolder, Work
from sctok.corpus.runs.sharding import Execution, Job, process_shards
from sctok.runtime.worker_process import WorkerProcess

from .ray import share_by_ray

_PATIENCE = 30.0  # seconds that a process gets to clean up after it was asked to stop


@dataclass(frozen=True)
class Summary:
    """What every run can say of itself: files with results, inputs without, hours of audio in the former, shards."""

    files: int
    failed: int
    hours: float
    shards: int


SummaryT = TypeVar("SummaryT", bound=Summary)


@dataclass(frozen=True)
class RunResult(Generic[SummaryT]):
    """What a call did and what is there now.

    folder: of the run. summary: what it holds. shards_left: to other processes. seconds_done: of audio, by this call.
    """

    folder: Path
    summary: SummaryT
    shards_left: int
    seconds_done: float


def samples_to_hours(samples: int) -> float:
    """Return samples at 16 kHz as hours, rounded as summaries show them."""
    return round(samples / SAMPLE_RATE / 3600, 6)


def execute_run(
    runs: Sequence[RunFolder],
    job: Job[ClipT],
    make_job: Callable[[str], Job[ClipT]],
    summarise: Callable[[RunFolder, Sequence[int], int], SummaryT],
    execution: Execution,
    progress: Progress,
) -> list[RunResult[SummaryT]]:
    """Work on runs with one plan until nothing is left to claim, then write `failed.jsonl` and `summary.json` of each.

    The summary is written where all is done.

    Args:
        runs: planned, with equal manifests.
        job: the job on the first device, done by this process.
        make_job: makes the job on a device; picklable where there are several.
        summarise: reads finished shards, given their numbers and the number of failures.
        execution: the devices and how to use them.
        progress: gets `{"event": "plan", "files", "shards"}` (what is left to do) and the events of `share_shards`.

    Returns:
        a result for each run.
    """
    seconds = 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal seconds
        seconds += event.get("seconds", 0.0)
        progress(event)

    left = _files_left(runs, execution.mine)
    report({"event": "plan", "files": sum(left.values()), "shards": len(left)})
    if left and execution.ray_address is not None:
        share_by_ray(runs, make_job, execution, report)
    elif left:
        share_shards(runs, job, make_job, execution, report)
    return [_close_run(run, summarise, execution, seconds) for run in runs]


def _files_left(runs: Sequence[RunFolder], mine: Callable[[int], bool]) -> dict[int, int]:
    """Return how many files are to be read for each shard that a run lacks."""
    left = {}
    for shard in runs[0].shards():
        wanted = {place: run.retry_keys(shard) for place, run in enumerate(runs) if not run.finished(shard.index)}
        if wanted and mine(shard.index):
            left[shard.index] = len(Work(shard, wanted, ()).items)
    return left


def _close_run(
    run: RunFolder,
    summarise: Callable[[RunFolder, Sequence[int], int], SummaryT],
    execution: Execution,
    seconds: float,
) -> RunResult[SummaryT]:
    planned = run.planned()
    finished = [index for index in planned if run.finished(index)]
    # Each rank of many would read everything that the others have done so far: the last one alone does.
    shown = finished if len(finished) == len(planned) else [index for index in finished if execution.mine(index)]
    summary = summarise(run, shown, run.write_failures())
    if len(finished) == len(planned):
        run.write_summary(asdict(summary), planned)
    return RunResult(run.path, summary, len(planned) - len(finished), seconds)


def share_shards(
    runs: Sequence[RunFolder],
    job: Job[ClipT],
    make_job: Callable[[str], Job[ClipT]],
    execution: Execution,
    progress: Progress,
) -> None:
    """Work on the shards of runs with one process per device, until none is left that nobody works on.

    Args:
        runs: planned, with equal manifests.
        job: the job on the first device, done by this process.
        make_job: makes the job on a device; picklable where there are several.
        execution: the devices and how to use them.
        progress: gets the events of `process_shards` of all devices, one at a time, and `{"event": "lost", "device",
            "reason"}` where a process ended early: its shards are taken over.

    Raises:
        what `process_shards` raises; the other processes are stopped.
    """
    if len(execution.devices) == 1:
        process_shards(runs, job, execution, progress)
        return
    with _Team(progress) as team:
        for device in execution.devices[1:]:
            team.start(device, (runs, make_job, device, execution))
        process_shards(runs, job, execution, team.report)
        lost = team.wait()
    for device, reason in lost.items():
        progress({"event": "lost", "device": device, "reason": reason})
    if lost:
        process_shards(runs, job, execution, progress)


class _Team:
    """The processes of the other devices; a context manager that stops those that still run at its end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._processes: dict[str, WorkerProcess] = {}
        self._listeners: list[threading.Thread] = []
        self._reasons: dict[str, str] = {}

    def report(self, event: dict[str, Any]) -> None:
        """Pass on an event, one at a time."""
        with self._lock:
            self._progress(event)

    def start(self, device: str, arguments: tuple[Any, ...]) -> None:
        """Start the process of a device."""
        name = f"{device} (process {len(self._processes) + 2})"
        # Not daemonic, so that it can have decoding processes of its own.
        process = WorkerProcess(name, _work_on_shards, *arguments, daemon=False, unwind=True)
        self._processes[name] = process
        listener = threading.Thread(target=self._listen, args=(name, process), daemon=True)
        self._listeners.append(listener)
        listener.start()

    def wait(self) -> dict[str, str]:
        """Wait for all; return the devices whose processes ended early, and why."""
        for listener in self._listeners:
            listener.join()
        lost = {}
        for name, process in self._processes.items():
            if process.wait():
                lost[name] = self._reasons.get(name, process.death().reason)
        return lost

    def _listen(self, name: str, process: WorkerProcess) -> None:
        while True:
            try:
                event = process.results.recv()
            except (EOFError, OSError):
                return
            if event["event"] == "error":
                self._reasons[name] = event["reason"]
            else:
                self.report(event)

    def __enter__(self) -> "_Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes.values():
            process.terminate()
        for process, listener in zip(self._processes.values(), self._listeners, strict=True):
            process.end(_PATIENCE)
            listener.join()
            process.close()


def _work_on_shards(
    tasks: Connection,
    events: Connection,
    runs: Sequence[RunFolder],
    make_job: Callable[[str], Job[ClipT]],
    device: str,
    execution: Execution,
) -> None:
    """Work on shards until none is left; send the events, and the reason if the work fails."""
    try:
        process_shards(runs, make_job(device), execution, events.send)
    except (ValueError, OSError) as error:
        events.send({"event": "error", "reason": str(error)})
        raise SystemExit(1) from None
