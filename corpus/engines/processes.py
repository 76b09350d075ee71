"""One process per device; the processes share the shards of a run by claiming them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from sctok.audio.packing import ClipT
from sctok.audio.windows import SAMPLE_RATE
from sctok.corpus.runs.events import FileFinished, RunEvent, RunListener, RunPlanned, WorkerLost
from sctok.corpus.runs.resume import files_left
from sctok.corpus.runs.run_folder import RunFolder
from sctok.corpus.runs.sharding import Execution, Job, process_shards
from sctok.runtime.worker_process import WorkerProcess

from .ray import share_by_ray

_STOP_SECONDS = 30.0  # for a process to clean up after it was asked to stop


@dataclass(frozen=True)
class Summary:
    """What every run reports: files with results, failed inputs, hours of audio with results, and finished shards."""

    files: int
    failed: int
    hours: float
    shards: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as `summary.json` stores it."""
        return asdict(self)


SummaryT = TypeVar("SummaryT", bound=Summary)


@dataclass(frozen=True)
class RunResult(Generic[SummaryT]):
    """The state of a run after a call.

    folder: of the run. summary: of its contents. shards_left: shards that other processes work on. seconds_done:
    seconds of audio that this call encoded.
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
    progress: RunListener,
) -> list[RunResult[SummaryT]]:
    """Process runs over one plan until no shard is left to claim, and write `failed.jsonl` of each.

    `summary.json` is written for each run that is complete.

    Args:
        runs: planned, with equal manifests.
        job: the job on the first device, done by this process.
        make_job: makes the job on a device; picklable if there are several devices.
        summarise: reads finished shards, given their numbers and the number of failures.
        execution: the devices and how to use them.
        progress: receives RunPlanned and the events of `share_shards`.

    Returns:
        a result for each run.
    """
    seconds = 0.0

    def report(event: RunEvent) -> None:
        nonlocal seconds
        if isinstance(event, FileFinished):
            seconds += event.seconds
        progress(event)

    left = files_left(runs, execution.mine)
    report(RunPlanned(sum(left.values()), len(left)))
    if left and execution.ray_address is not None:
        share_by_ray(runs, make_job, execution, report)
    elif left:
        share_shards(runs, job, make_job, execution, report)
    return [_close_run(run, summarise, execution, seconds) for run in runs]


def _close_run(
    run: RunFolder,
    summarise: Callable[[RunFolder, Sequence[int], int], SummaryT],
    execution: Execution,
    seconds: float,
) -> RunResult[SummaryT]:
    planned = run.planned()
    finished = [index for index in planned if run.finished(index)]
    # Reading the shards of all ranks is left to the last rank that finishes.
    shown = finished if len(finished) == len(planned) else [index for index in finished if execution.mine(index)]
    summary = summarise(run, shown, run.write_failures())
    if len(finished) == len(planned):
        run.write_summary(summary.to_json(), planned)
    return RunResult(run.path, summary, len(planned) - len(finished), seconds)


def share_shards(
    runs: Sequence[RunFolder],
    job: Job[ClipT],
    make_job: Callable[[str], Job[ClipT]],
    execution: Execution,
    progress: RunListener,
) -> None:
    """Process the shards of runs with one process per device until none is left to claim.

    Args:
        runs, job, make_job, execution: see `execute_run`.
        progress: receives the events of `process_shards` of all devices, one at a time, and WorkerLost if a process
            ends early; its shards are then processed here.

    Raises:
        the errors of `process_shards`; the other processes are stopped.
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
        progress(WorkerLost(device, reason))
    if lost:
        process_shards(runs, job, execution, progress)


class _Team:
    """The processes of the other devices; a context manager that stops the remaining ones at its end."""

    def __init__(self, progress: RunListener) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._processes: dict[str, WorkerProcess] = {}
        self._listeners: list[threading.Thread] = []
        self._reasons: dict[str, str] = {}

    def report(self, event: RunEvent) -> None:
        """Forward events one at a time."""
        with self._lock:
            self._progress(event)

    def start(self, device: str, arguments: tuple[Any, ...]) -> None:
        """Start the process of a device."""
        name = f"{device} (process {len(self._processes) + 2})"
        # Not daemonic, so that it can have its own decoding processes.
        process = WorkerProcess(name, _process_shards_here, *arguments, daemon=False, unwind=True)
        self._processes[name] = process
        listener = threading.Thread(target=self._listen, args=(name, process), daemon=True)
        self._listeners.append(listener)
        listener.start()

    def wait(self) -> dict[str, str]:
        """Wait for all processes; return the devices whose process ended early, with the reason."""
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
            if isinstance(event, str):  # why the process fails
                self._reasons[name] = event
            else:
                self.report(event)

    def __enter__(self) -> "_Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes.values():
            process.terminate()
        for process, listener in zip(self._processes.values(), self._listeners, strict=True):
            process.end(_STOP_SECONDS)
            listener.join()
            process.close()


def _process_shards_here(
    tasks: Connection,
    events: Connection,
    runs: Sequence[RunFolder],
    make_job: Callable[[str], Job[ClipT]],
    device: str,
    execution: Execution,
) -> None:
    """Process shards in a child process until none is left; send the events, and the reason if the work fails."""
    try:
        process_shards(runs, make_job(device), execution, events.send)
    except (ValueError, OSError) as error:
        events.send(str(error))
        raise SystemExit(1) from None
