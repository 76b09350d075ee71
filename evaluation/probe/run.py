"""Runs of `sctok probe`: their tasks, their results in `probe.json`, and resumption from these results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import sctok
from sctok.evaluation.run_folder import PROBE_FILE, PROBE_FORMAT, PROBE_VERSION
from sctok.formats.files import FormatError, hash_json, read_json, write_json

from .abx import AbxItem, read_abx_items
from .features import System
from .labels import LabelledClip, read_task
from .measures import ProbeConfig, Row, probe_abx, probe_task

SECTIONS = ("tasks", "tokens", "abx", "notes", "failed", "errors", "done")


@dataclass(frozen=True)
class ProbeTasks:
    """The tasks of a run. Raises ValueError if two tasks have the same name.

    Attributes:
        labels: folders or tables of labelled audio, see `read_task`.
        abx: tables of ABX items, see `read_abx_items`.
        audio: the folder that paths in tables are relative to, None for the table's folder.
    """

    labels: Sequence[str | Path] = ()
    abx: Sequence[Path] = ()
    audio: Path | None = None

    def __post_init__(self) -> None:
        names = [*map(_task_name, self.labels), *map(_abx_name, self.abx)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two tasks are called {repeated[0]}; rename one, or run a command for each")


def _task_name(source: str | Path) -> str:
    return Path(source).resolve().stem


def _abx_name(table: Path) -> str:
    return f"{table.stem} (ABX)"


@dataclass(frozen=True)
class ProbeProgress:
    """A progress event: the clips of a task that have been read, or the error that ended the task."""

    task: str
    done: int = 0
    total: int = 0
    error: str = ""


class ProbeReport:
    """The results in a folder's `probe.json`, which is written atomically after each task."""

    def __init__(self, folder: Path, config: ProbeConfig, systems: Sequence[System]) -> None:
        """Start, or resume from the folder's results if they have the same configuration and systems.

        Raises FormatError if the file has another format or is damaged.
        """
        self.path, self.config, self.systems = folder / PROBE_FILE, config, systems
        about = {"settings": config.to_json(), "systems": [dict(system.about) for system in systems]}
        self._head = {"format": PROBE_FORMAT, "format_version": PROBE_VERSION, "name": folder.name, **about}
        self._created = datetime.now(UTC).isoformat()
        self.sections: dict[str, list[Row]] = {section: [] for section in SECTIONS}
        if self.path.exists():
            earlier = read_json(self.path)
            if not isinstance(earlier, dict) or earlier.get("format") != PROBE_FORMAT:
                raise FormatError(f"{self.path} is not a file of sctok probe; choose another --name")
            complete = {"created", *SECTIONS} <= earlier.keys()
            if complete and {key: earlier.get(key) for key in self._head} == self._head:
                self._created = earlier["created"]
                self.sections = {section: earlier[section] for section in SECTIONS}

    def begin(self, task: str, fingerprint: str) -> bool:
        """Return whether a task still has to be measured; if so, remove earlier results of that name."""
        if {"task": task, "fingerprint": fingerprint} in self.sections["done"]:
            return False
        self.sections = {key: [row for row in rows if row["task"] != task] for key, rows in self.sections.items()}
        return True

    def add(self, task: str, fingerprint: str | None, **sections: list[Row]) -> None:
        """Add rows of a task and write the file. Without a fingerprint, the next run measures the task again."""
        for section, rows in sections.items():
            self.sections[section] += [{"task": task, **row} for row in rows]
        if fingerprint is not None:
            self.sections["done"].append({"task": task, "fingerprint": fingerprint})
        write_json(self.path, self.to_json())

    def to_json(self) -> Row:
        """Return the content of the file as a JSON object."""
        return {**self._head, "created": self._created, "sctok": sctok.__version__, **self.sections}


def run_probes(
    report: ProbeReport,
    tasks: ProbeTasks,
    progress: Callable[[ProbeProgress], None] = lambda event: None,
    device: torch.device | None = None,
) -> None:
    """Measure the tasks that the report lacks. If a task fails, record the reason and continue with the next one.

    Args:
        report: gets the results; has the configuration and the systems.
        tasks: tasks to measure.
        progress: called with each progress event.
        device: device for training the classifiers, None for the CPU.
    """
    jobs = [
        *((_task_name(each), partial(_read_labels, report, each, tasks.audio, device)) for each in tasks.labels),
        *((_abx_name(each), partial(_read_abx, report, each, tasks.audio)) for each in tasks.abx),
    ]
    for name, read in jobs:
        try:
            job = read()
            if report.begin(name, job.fingerprint):
                report.add(name, job.fingerprint, **job.measure(_counter(name, job.clips, progress)))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            progress(ProbeProgress(name, error=reason))
            report.begin(name, "")
            report.add(name, None, errors=[{"reason": reason}])


class _Job(NamedTuple):
    """A task that has been read: its fingerprint, its number of clips, and a function that measures it."""

    fingerprint: str
    clips: int
    measure: Callable[[Callable[[int], object]], dict[str, list[Row]]]


def _read_labels(report: ProbeReport, source: str | Path, audio: Path | None, device: torch.device | None) -> _Job:
    task = read_task(source, audio)
    measure = partial(probe_task, task, report.systems, report.config, device=device)
    return _Job(task_fingerprint(task.clips), len(task.clips), measure)


def _read_abx(report: ProbeReport, table: Path, audio: Path | None) -> _Job:
    items, rejected = read_abx_items(table, audio)
    measure = partial(probe_abx, items, rejected, report.systems, report.config)
    return _Job(task_fingerprint(items), len({item.clip.path for item in items}), measure)


def _counter(task: str, total: int, progress: Callable[[ProbeProgress], None]) -> Callable[[int], object]:
    """Return a function that adds a number of clips and reports the sum."""
    done = 0

    def count(clips: int) -> None:
        nonlocal done
        done += clips
        progress(ProbeProgress(task, done, total))

    return count


def task_fingerprint(clips: Sequence[LabelledClip] | Sequence[AbxItem]) -> str:
    """Return a hash of the listed clips and of their files' sizes and times."""
    return hash_json([[repr(clip), _file_state(clip)] for clip in clips])


def _file_state(clip: LabelledClip | AbxItem) -> list[int]:
    try:
        state = Path((clip.item if isinstance(clip, LabelledClip) else clip.clip).path).stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]
