"""The training loop of encoder, VAE, vocoder and codec: steps, validation, loss curve, checkpoints and exact resume."""

import csv
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sctok.formats.files import DiskFullError, atomic_path, remove_stale_temporaries
from sctok.formats.tensors import read_header, read_tensors, save_tensors
from sctok.runtime.distributed import ALONE, Group

from .state import flat_settings, load_state, plain_json, state_tensors

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "sctok-training"
CHECKPOINT_VERSION = 1
RETIRED_FORMAT = "sctok-pretraining"  # checkpoints of encoder trainings before they used this loop
LOSS_CURVE = "loss.csv"
FREE_SETTINGS = ("steps", "validate_every")  # may differ between the checkpoint and the run that resumes from it
MAX_BAD_STEPS = 50  # steps in a row without a finite loss after which a training stops


@dataclass(frozen=True)
class StepReport:
    """Number and losses of a training step."""

    step: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class ValidationReport(StepReport):
    """Report of a step after which the task was validated.

    losses: their means since the previous validation. metrics: the result of `TrainingTask.validate`. hours: training
    time of the run, interruptions excluded. steps_per_second: speed since the previous validation.
    """

    metrics: Mapping[str, float]
    hours: float
    steps_per_second: float

    def row(self) -> dict[str, Any]:
        """Return the report as a row of a loss curve: metrics are prefixed with `validation_`."""
        numbers = {**self.losses, **{f"validation_{name}": value for name, value in self.metrics.items()}}
        return {"step": self.step, "hours": self.hours} | {name: _round(value) for name, value in numbers.items()}


Progress = Callable[[StepReport], None]


class TrainingTask(Protocol):
    """A model in training: its state, one step, and its validation.

    A step depends only on the state and the step's number, so that a resumed run equals an uninterrupted one.

    modules: those whose state belongs to a checkpoint. optimizers: over parameters of the modules.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]

    def train_step(self, step: int) -> dict[str, float]:
        """Train one step and return its losses."""

    def validate(self, step: int) -> dict[str, float]:
        """Return the losses and metrics on the held-out clips. Only rank 0 calls this."""

    def curve_row(self, report: ValidationReport) -> dict[str, Any]:
        """Return the row of the loss curve for a validation; it has a `step`."""
        return report.row()

    def extra_state(self) -> dict[str, Any]:
        """Return, as JSON, the state that modules and optimizers do not have."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `extra_state` returned."""
        return


@dataclass(frozen=True)
class TrainingLength:
    """Number of steps of a run, steps between validations, and seconds between checkpoints."""

    steps: int
    validate_every: int = 250
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1:
            raise ValueError(f"steps {self.steps} and validate_every {self.validate_every} must be positive")


class TrainingRun:
    """A training in a folder. If the folder has a checkpoint, the run resumes from it.

    Rank 0 of `group` validates and writes the checkpoints and the loss curve.

    Raises:
        ValueError: the checkpoint has other settings, or its tensors do not fit (the message lists all of them).
    """

    def __init__(self, task: TrainingTask, folder: Path, settings: Mapping[str, Any], group: Group = ALONE) -> None:
        self.task, self.folder, self.group = task, folder, group
        self.settings = plain_json(settings)
        self.step, self.seconds = 0, 0.0
        self._losses = _no_losses()
        self._bad_steps, self._saved_step = 0, 0
        self._pace_from = (0, 0.0)  # step and time of the previous validation
        folder.mkdir(parents=True, exist_ok=True)
        if group.leads:
            remove_stale_temporaries(folder)
        if (folder / CHECKPOINT).exists():
            self.resume()
        if len(set(group.gather(self.step))) > 1:
            raise ValueError(f"the ranks found different checkpoints in {folder}: give all of them the same folder")

    def run(self, length: TrainingLength, progress: Progress = lambda report: None) -> int:
        """Train up to the last step, and report each step to `progress`.

        Returns 0, or the number of the signal (SIGINT or SIGTERM) that stopped the run after it saved a checkpoint.

        Raises:
            DiskFullError: the checkpoint or the loss curve could not be written; the previous checkpoint is kept.
            ValueError: the loss was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        self._truncate_curve()
        started, seconds_before, stopped = time.monotonic(), self.seconds, 0
        saved = started
        self._pace_from = self.step, started
        with _catch_signals() as received:
            while self.step < length.steps and not stopped:
                losses, stopped = self._agree(self.task.train_step(self.step), received())
                self.step += 1
                self._count(losses)
                self.seconds = seconds_before + time.monotonic() - started
                done = self.step == length.steps
                validate = done or self.step % length.validate_every == 0
                if self.group.leads:
                    progress(self._validate() if validate else StepReport(self.step, losses))
                    if done or stopped or time.monotonic() - saved > length.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
        return stopped

    def save(self) -> None:
        """Write modules, optimizers and position atomically: if the disk is full, the previous checkpoint is kept."""
        arrays = state_tensors(self.task.modules, self.task.optimizers)
        state = {"step": self.step, "seconds": self.seconds, "settings": self.settings, "tensors": len(arrays)}
        state |= {"losses": self._losses, "extra": self.task.extra_state()}
        path = self.folder / CHECKPOINT
        try:
            save_tensors(path, arrays, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION, metadata=state)
        except DiskFullError as error:
            kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "no earlier one exists"
            raise DiskFullError(f"the checkpoint of step {self.step} could not be saved, {kept}: {error}") from error
        self._saved_step = self.step

    def resume(self) -> None:
        """Restore the state of the folder's checkpoint. Raises ValueError if it has other settings."""
        path = self.folder / CHECKPOINT
        if read_header(path)[0].get("format") == RETIRED_FORMAT:
            raise ValueError(
                f"{path} was written by an earlier version of sctok and cannot be resumed: finish the run with that "
                "version, or choose another name to train again"
            )
        arrays, state = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
        if differing := _differing(state["settings"], self.settings):
            raise ValueError(f"{path} was trained with other settings ({', '.join(differing)}): choose another name")
        load_state(path, arrays, self.task.modules, self.task.optimizers, state.get("tensors"))
        self.step = self._saved_step = state["step"]
        self.seconds = state["seconds"]
        self._losses = state.get("losses") or _no_losses()
        self.task.load_extra_state(state.get("extra", {}))

    def provenance(self, hours_of_audio: float) -> dict[str, Any]:
        """Return the settings and length of the training, for the header of a trained model."""
        return {
            "trained": self.settings,
            "steps": self.step,
            "hours_of_audio": round(hours_of_audio, 2),
            "hours_of_training": round(self.seconds / 3600, 3),
        }

    def _agree(self, losses: dict[str, float], stopped: int) -> tuple[dict[str, float], int]:
        """Return the mean losses of all ranks, and a signal if any rank received one: all stop at the same step."""
        if self.group.world == 1:
            return losses, stopped
        values = torch.tensor([float(stopped > 0), *losses.values()], dtype=torch.float64)
        self.group.sum_(values)
        signalled, *sums = values.tolist()
        means = {name: value / self.group.world for name, value in zip(losses, sums, strict=True)}
        return means, stopped or (signal.SIGTERM if signalled else 0)

    def _count(self, losses: Mapping[str, float]) -> None:
        if all(map(math.isfinite, losses.values())):
            self._bad_steps = 0
            self._losses["count"] += 1
            for name, value in losses.items():
                self._losses["sums"][name] = self._losses["sums"].get(name, 0.0) + value
            return
        self._bad_steps += 1
        if self._bad_steps == MAX_BAD_STEPS:
            raise ValueError(
                f"the loss has not been finite for {MAX_BAD_STEPS} steps, up to step {self.step}; the checkpoint of "
                f"step {self._saved_step} is kept: start again with a lower learning rate, or in fp32"
            )

    def _validate(self) -> ValidationReport:
        before, since = self._pace_from
        speed = (self.step - before) / (time.monotonic() - since)
        metrics, hours = self.task.validate(self.step), round(self.seconds / 3600, 4)
        means = {name: total / self._losses["count"] for name, total in self._losses["sums"].items()}
        report = ValidationReport(self.step, means, metrics, hours, speed)
        path = self.folder / LOSS_CURVE
        _write_curve(path, [*read_curve(path), self.task.curve_row(report)])
        self._losses, self._pace_from = _no_losses(), (self.step, time.monotonic())
        return report

    def _truncate_curve(self) -> None:
        """Drop the rows of steps after the checkpoint, which will be trained again."""
        path = self.folder / LOSS_CURVE
        if self.group.leads and path.exists():
            _write_curve(path, [row for row in read_curve(path) if int(row["step"]) <= self.step])


def _no_losses() -> dict[str, Any]:
    """Return number and sums of the losses since the previous validation, as a checkpoint has them."""
    return {"count": 0, "sums": {}}


@contextmanager
def _catch_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the SIGINT or SIGTERM received, or 0; a second signal of a kind acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    handlers: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.getsignal(number)
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def _differing(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    first, second = (
        {key: value for key, value in flat_settings(each).items() if key not in FREE_SETTINGS}
        for each in (stored, current)
    )
    return [key for key in sorted(first | second) if first.get(key) != second.get(key)]


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def read_curve(path: Path) -> list[dict[str, str]]:
    """Return the rows of a loss curve, or none if the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
