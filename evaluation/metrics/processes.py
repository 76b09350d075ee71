"""Metrics in worker processes: a metric that raises or kills its process loses only its own value."""

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from sctok.runtime.worker_process import WorkerError, WorkerProcess, received

from .base import Measured, Metric
from .pairs import read_pair

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_MAX_REASON = 300


@dataclass(frozen=True)
class ScoreTask:
    """Files to compare with some metrics. codec, key: stored with the values."""

    codec: str
    key: str
    reference: Path
    estimate: Path
    transcript: str | None
    metrics: tuple[Metric, ...]


# Called with codec, key and the fields of an entry in the journal.
Report = Callable[[str, str, dict[str, Any]], None]


def score_tasks(tasks: Iterable[ScoreTask], workers: int, report: Report, threads: int = 1) -> None:
    """Measure all metrics of all tasks in `workers` processes of `threads` threads each.

    report: called in this process with {"metric", "value", "details"} or {"metric", "failed"}, a reason in one line.
    Raises ChildProcessError if a process ends before it is ready.
    """
    team = _Team(deque(task for task in tasks if task.metrics), report, threads)
    try:
        team.work(workers)
    finally:
        team.stop()


@dataclass
class _Worker:
    process: WorkerProcess
    task: ScoreTask
    ready: bool = False


class _Team:
    def __init__(self, tasks: "deque[ScoreTask]", report: Report, threads: int) -> None:
        self._tasks = tasks
        self._report = report
        self._threads = threads
        self._workers: dict[Connection, _Worker] = {}

    def work(self, workers: int) -> None:
        for _ in range(min(workers, len(self._tasks))):
            self._start(self._tasks.popleft())
        while self._workers:
            for connection in wait(list(self._workers)):
                assert isinstance(connection, Connection)
                self._listen(connection, self._workers[connection])

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.process.terminate()
        for worker in self._workers.values():
            worker.process.close()

    def _start(self, task: ScoreTask) -> None:
        with _environment(dict.fromkeys(_THREADS, str(self._threads))):
            process = WorkerProcess("sctok-metrics", _serve)
        self._workers[process.results] = _Worker(process, task)

    def _listen(self, connection: Connection, worker: _Worker) -> None:
        """Record a result and send the next task; if the process died, start another for the remaining metrics."""
        try:
            entry = worker.process.receive()
        except WorkerError as death:
            if not worker.ready:  # every other process would end in the same way
                raise ChildProcessError(f"no metric can be measured: its process {death.reason} at its start") from None
            self._record(worker, {"metric": worker.task.metrics[0].name, "failed": f"its process {death.reason}"})
            self._dismiss(connection, worker)
            if worker.task.metrics:
                self._tasks.appendleft(worker.task)
            if self._tasks:
                self._start(self._tasks.popleft())
            return
        if worker.ready:
            self._record(worker, entry)
            if worker.task.metrics:
                return
            if not self._tasks:
                self._dismiss(connection, worker)
                return
            worker.task = self._tasks.popleft()
        worker.ready = True
        with contextlib.suppress(WorkerError):  # the next wait reports it
            worker.process.send(worker.task)

    def _record(self, worker: _Worker, entry: dict[str, Any]) -> None:
        task = worker.task
        self._report(task.codec, task.key, entry)
        worker.task = replace(task, metrics=task.metrics[1:])

    def _dismiss(self, connection: Connection, worker: _Worker) -> None:
        del self._workers[connection]
        worker.process.close()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily: libraries read their number of threads when they are loaded."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _serve(tasks: Connection, entries: Connection) -> None:
    """Measure the metrics of each task, one by one."""
    warnings.simplefilter("ignore")
    entries.send("ready")
    for task in received(tasks):
        _measure(task, entries.send)


def _measure(task: ScoreTask, send: Callable[[dict[str, Any]], None]) -> None:
    try:
        pair = read_pair(task.reference, task.estimate, task.transcript)
    except Exception as error:
        for metric in task.metrics:
            send({"metric": metric.name, "failed": reason_of(error)})
        return
    for metric in task.metrics:
        try:
            result = metric.score(pair)
            entry = _entry(result if isinstance(result, Measured) else Measured(float(result), {}))
        except Exception as error:  # any library may raise it; the table gives the reason
            entry = {"failed": reason_of(error)}
        send({"metric": metric.name, **entry})


def _entry(found: Measured) -> dict[str, Any]:
    if not np.isfinite(found.value):
        return {"failed": f"gave {found.value}"}
    return {"value": found.value, "details": dict(found.details)}


def reason_of(error: Exception) -> str:
    text = " ".join(str(error).split())[:_MAX_REASON]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
