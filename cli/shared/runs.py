"""What `extract` and `tokenize` show: the progress of a run and its closing table."""

import time
from typing import TYPE_CHECKING, Any

from .terminal import Progress, ProgressReporter, emit, say, table, table_of

if TYPE_CHECKING:
    from sctok.corpus.engines.processes import RunResult
    from sctok.corpus.runs.events import RunEvent

RETRY = "correct them and run the same command with --retry-failed to read them again"


class RunReporter(ProgressReporter):
    """Show finished files, the speed, and what went wrong while a run is going."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = time.monotonic()
        self._seconds = 0.0
        self._windows = 0
        self.stages: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the files were listed and the encoder loaded."""
        return time.monotonic() - self._started

    def __call__(self, event: "RunEvent") -> None:
        from sctok.corpus.runs.events import FileFinished, RunPlanned, StagesTimed, WindowsEncoded, WorkerLost

        if isinstance(event, RunPlanned):
            self._begin(event.files, event.shards)
        if self.bar is None:
            return
        match event:
            case WindowsEncoded(count):
                self._windows += count
                self.bar.update(0, self._note())
            case FileFinished(seconds=seconds):
                self._seconds += seconds
                self.bar.update(1, self._note())
            case StagesTimed(times):
                self.stages = {name: self.stages.get(name, 0.0) + value for name, value in times.items()}
            case WorkerLost(device, reason):
                self.bar.message(f"warning: the process on {device} ended early ({reason}); the others continue")

    def _begin(self, files: int, shards: int) -> None:
        self._started = time.monotonic()
        if files:
            say(f"{self._label}: {_count(files, 'file')} in {_count(shards, 'shard')} to do")
            self.bar = Progress(self._label, total=files, unit="files")
        else:
            say(f"{self._label}: nothing left to do")

    def _note(self) -> str:
        return f"{_count(self._windows, 'window')}, {self._seconds / max(self.elapsed, 1e-9):.1f}× real time"


def show_results(results: list["RunResult[Any]"], reporter: RunReporter, as_json: bool) -> None:
    """Print the contents of run folders and the speed of this call; as JSON, an object for one run, a list for several.

    Raises:
        ValueError: no input could be read.
    """
    speed = results[0].seconds_done / reporter.elapsed if results[0].seconds_done else None
    facts = [
        {"folder": str(result.folder), **result.summary.to_json(), "shards_left": result.shards_left}
        for result in results
    ]
    timing = {
        "audio_seconds_done": results[0].seconds_done,
        "seconds": reporter.elapsed,
        "times_real_time": speed,
        **({"stages": reporter.stages} if reporter.stages else {}),
    }
    summary, left = results[0].summary, results[0].shards_left
    if summary.files or not summary.failed:
        whole: list[dict[str, Any]] = [{**one, **timing} for one in facts]
        emit(whole if len(whole) > 1 else whole[0], as_json, lambda: _text(facts, speed))
    if reporter.stages:
        for line in _profile_text(reporter.stages, reporter.elapsed).splitlines():
            say(line)
    if left:
        say(f"{_count(left, 'shard')} left to other processes that are working on them")
    failed = f"{results[0].folder / 'failed.jsonl'}"
    if summary.failed and not summary.files and not left:
        raise ValueError(
            f"{failed}: none of {_count(summary.failed, 'input')} could be read; it lists the reasons; {RETRY}"
        )
    if summary.failed:
        say(f"warning: {_count(summary.failed, 'input')} failed; the reasons are in {failed}; {RETRY}")


def _profile_text(stages: dict[str, float], elapsed: float) -> str:
    from sctok.runtime.stages import find_bottleneck

    shares = sorted(stages.items(), key=lambda entry: -entry[1])
    rows = [{"stage": name, "seconds": value, "share": value / elapsed} for name, value in shares]
    slowest, remedy = find_bottleneck(stages)
    text = table_of(rows, {"stage": "stage", "seconds": "seconds:,.2f", "of the run": "share:.1%"})
    return f"{text}\n\nbottleneck: {slowest}; to speed it up: {remedy}"


def _text(runs: list[dict[str, Any]], speed: float | None) -> str:
    hidden = ("folder", "shards_left")
    rows = [[value for name, value in run.items() if name not in hidden] for run in runs]
    header = tuple(name.replace("_", " ") for name in runs[0] if name not in hidden)
    if speed is not None:
        header, rows = (*header, "× real time"), [[*row, round(speed, 1)] for row in rows]
    cells = [tuple(f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" for value in row) for row in rows]
    return "\n".join([table(header, cells), "", *(run["folder"] for run in runs)])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
