"""What every training of the codec's parts shares: the loop, the loss curve, checkpoints and exact resume."""

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
from torch import Tensor, nn

from sctok.formats.files import DiskFullError, atomic_path, remove_stale_temporaries
from sctok.formats.tensors import read_tensors, save_tensors
from sctok.runtime.distributed import ALONE, Group

from .state import flat_settings, load_state, plain_json, state_tensors

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "sctok-training"
CHECKPOINT_VERSION = 1
LOSS_CURVE = "loss.csv"
FREE = ("steps", "validate_every")  # settings that may change when a run goes on
MAX_BAD_STEPS = 50  # steps in a row without a finite loss before a training is given up

Progress = Callable[[dict[str, Any]], None]


class TrainingTask(Protocol):
    """What a training trains: its state, one step, and its validation.

    A step is a function of the state and the step's number alone, so that a resumed run equals an uninterrupted one.
    """

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the modules whose state belongs to a checkpoint."""

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimisers, over parameters of the modules."""

    def train_step(self, step: int) -> dict[str, float]:
        """Train one step and return its losses."""

    def validate(self, step: int) -> dict[str, float]:
        """Return the losses and metrics over what was held out. Of several ranks the first alone is asked."""

    def extra_state(self) -> dict[str, Any]:
        """Return, as JSON, what else a checkpoint needs."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `extra_state` returned."""
        return


@dataclass(frozen=True)
class TrainingLength:
    """Length and rhythm of a run."""

    steps: int
    validate_every: int = 250
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1:
            raise ValueError(f"steps {self.steps} and validate_every {self.validate_every} must be positive")


class TrainingRun:
    """One training in one folder; it goes on from the folder's checkpoint where there is one.

    Of the ranks of `group` the first writes checkpoints and curve, and validates.

    Raises:
        ValueError: the checkpoint belongs to other settings, or its tensors do not fit (all of them are listed).
    """

    def __init__(self, task: TrainingTask, folder: Path, settings: Mapping[str, Any], group: Group = ALONE) -> None:
        self.task, self.folder, self.group = task, folder, group
        self.settings = plain_json(settings)
        self.step, self.seconds = 0, 0.0
        self._losses = _Mean()
        self._bad_steps, self._saved_step = 0, 0
        folder.mkdir(parents=True, exist_ok=True)
        if group.leads:
            remove_stale_temporaries(folder)
        if (folder / CHECKPOINT).exists():
            self.load()
        if len(set(group.gather(self.step))) > 1:
            raise ValueError(f"the ranks find different checkpoints in {folder}: it must be one folder to all of them")

    def run(self, schedule: TrainingLength, progress: Progress = lambda row: None) -> int:
        """Train up to the last step; each step's losses and each validation's row go to `progress`.

        Returns 0, or the number of the signal (SIGINT, SIGTERM) that stopped it, after a checkpoint was saved.

        Raises:
            DiskFullError: the checkpoint or the curve could not be written; the checkpoint before is whole.
            ValueError: the loss has not been finite for many steps.
        """
        self._truncate_curve()
        started, base, stopped = time.monotonic(), self.seconds, 0
        saved = started
        with _signals() as received:
            while self.step < schedule.steps and not stopped:
                losses, stopped = self._agree(self.task.train_step(self.step), received())
                self.step += 1
                self._count(losses)
                self.seconds = base + time.monotonic() - started
                done = self.step == schedule.steps
                validated = done or self.step % schedule.validate_every == 0
                if self.group.leads:
                    progress(self._validate() if validated else {"step": self.step, **losses})
                    if done or stopped or time.monotonic() - saved > schedule.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
        return stopped

    def save(self) -> None:
        """Write modules, optimisers and position, atomically: a full disk leaves the checkpoint before it."""
        arrays = state_tensors(self.task.modules(), self.task.optimizers())
        state = {"step": self.step, "seconds": self.seconds, "settings": self.settings, "tensors": len(arrays)}
        state |= {"losses": self._losses.to_json(), "extra": self.task.extra_state()}
        path = self.folder / CHECKPOINT
        try:
            save_tensors(path, arrays, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION, metadata=state)
        except DiskFullError as error:
            kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "there is none yet"
            raise DiskFullError(f"the checkpoint of step {self.step} could not be saved, {kept}: {error}") from error
        self._saved_step = self.step

    def load(self) -> None:
        """Continue from the folder's checkpoint. Raises ValueError where it belongs to other settings."""
        path = self.folder / CHECKPOINT
        arrays, state = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
        if differing := _differing(state["settings"], self.settings):
            raise ValueError(f"{path} was trained with other settings ({', '.join(differing)}): choose another name")
        load_state(path, arrays, self.task.modules(), self.task.optimizers(), state.get("tensors"))
        self.step = self._saved_step = state["step"]
        self.seconds = state["seconds"]
        self._losses = _Mean(**state.get("losses", {}))
        self.task.load_extra_state(state.get("extra", {}))

    def _agree(self, losses: dict[str, float], stopped: int) -> tuple[dict[str, float], int]:
        """Return the mean losses of all ranks and whether any was told to stop: all of them stop at one step."""
        if self.group.world == 1:
            return losses, stopped
        values = torch.tensor([float(stopped > 0), *losses.values()], dtype=torch.float64)
        self.group.sum_(values)
        told, *sums = values.tolist()
        means = {name: value / self.group.world for name, value in zip(losses, sums, strict=True)}
        return means, stopped or (signal.SIGTERM if told else 0)

    def _count(self, losses: Mapping[str, float]) -> None:
        if all(map(math.isfinite, losses.values())):
            self._bad_steps = 0
            self._losses.add(losses)
            return
        self._bad_steps += 1
        if self._bad_steps == MAX_BAD_STEPS:
            raise ValueError(
                f"the loss has not been finite for {MAX_BAD_STEPS} steps, up to step {self.step}; the checkpoint of "
                f"step {self._saved_step} is kept: begin anew with a lower learning rate, or in fp32"
            )

    def _validate(self) -> dict[str, Any]:
        row = {"step": self.step, "hours": round(self.seconds / 3600, 4), **self._losses.means()}
        row |= {f"validation_{name}": _short(value) for name, value in self.task.validate(self.step).items()}
        _write_curve(self.folder / LOSS_CURVE, [*read_curve(self.folder / LOSS_CURVE), row])
        self._losses = _Mean()
        return row

    def _truncate_curve(self) -> None:
        """Drop the rows of steps after the checkpoint, which will be trained again."""
        path = self.folder / LOSS_CURVE
        if self.group.leads and path.exists():
            _write_curve(path, [row for row in read_curve(path) if int(row["step"]) <= self.step])


class _Mean:
    """Means of the losses since the last validation."""

    def __init__(self, count: int = 0, sums: Mapping[str, float] | None = None) -> None:
        self.count, self.sums = count, dict(sums or {})

    def add(self, losses: Mapping[str, float]) -> None:
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: _short(total / self.count) for name, total in self.sums.items()}

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "sums": self.sums}


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Yield a function that returns which of SIGINT and SIGTERM has come, or 0; the second of a kind acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def warm_up_and_decay(step: int, steps: int, warm_up: int, decay_share: float) -> float:
    """Return the factor of a step's learning rate: linear warm-up, constant, linear decay over the last share."""
    warm = min(1.0, (step + 1) / max(1, warm_up))
    return min(warm, (steps - step) / (decay_share * steps)) if decay_share else warm


def check_training(config: Any, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """Raise ValueError for numbers of a configuration that are out of range; `decay_share` is one of them."""
    for name in positive:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} {getattr(config, name)} is not positive")
    for name in not_negative:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} {getattr(config, name)} must not be negative")
    if not 0 <= config.decay_share <= 1:
        raise ValueError(f"decay_share {config.decay_share} must lie between 0 and 1")


def descend(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], rate: float, clip: float) -> None:
    """Take one step along the gradients of the parameters that require one, clipped; none where they are not finite."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for group in optimizer.param_groups:
        group["lr"] = rate
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if math.isfinite(float(nn.utils.clip_grad_norm_(parameters, clip))):
        optimizer.step()


def _differing(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    flat = [{key: value for key, value in flat_settings(each).items() if key not in FREE} for each in (stored, ours)]
    return [key for key in sorted({**flat[0], **flat[1]}) if flat[0].get(key) != flat[1].get(key)]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def read_curve(path: Path) -> list[dict[str, str]]:
    """Return the rows of a loss curve, none where there is no file."""
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
