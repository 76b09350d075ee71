"""What every training of the codec's parts shares: the loop, the loss curve, checkpoints and exact resume."""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sctok.formats.tensors import read_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "sctok-training"
CHECKPOINT_VERSION = 1
LOSS_CURVE = "loss.csv"
FREE = ("steps", "validate_every")  # settings that may change when a run goes on


class Task(Protocol):
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
        """Return the losses and metrics over what was held out."""


@dataclass(frozen=True)
class Schedule:
    """Length and rhythm of a run."""

    steps: int
    validate_every: int = 250
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1:
            raise ValueError(f"steps {self.steps} and validate_every {self.validate_every} must be positive")


class TrainingRun:
    """One training in one folder; it goes on from the folder's checkpoint where there is one.

    `writes` is false on all ranks but the first of a distributed run.
    """

    def __init__(self, task: Task, folder: Path, settings: Mapping[str, Any], writes: bool = True) -> None:
        self.task, self.folder, self.settings, self.writes = task, folder, dict(settings), writes
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self.load()

    def run(self, schedule: Schedule, progress: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train up to the last step; each step's losses and each validation's row go to `progress`."""
        self._truncate_curve()
        started, base = time.monotonic(), self.seconds
        saved, losses = started, list[dict[str, float]]()
        while self.step < schedule.steps:
            losses.append(self.task.train_step(self.step))
            self.step += 1
            now = time.monotonic()
            self.seconds = base + now - started
            done = self.step == schedule.steps
            if done or self.step % schedule.validate_every == 0:
                row = {"step": self.step, "hours": round(self.seconds / 3600, 4), **_means(losses)}
                row |= {f"validation_{name}": _short(value) for name, value in self.task.validate(self.step).items()}
                self._append_curve(row)
                losses = []
                progress(row)
            else:
                progress({"step": self.step, **losses[-1]})
            if done or now - saved > schedule.checkpoint_seconds:
                self.save()
                saved = now

    def save(self) -> None:
        """Write modules, optimisers and position, atomically: a full disk leaves the checkpoint before it."""
        if not self.writes:
            return
        tensors = {f"{name}/{key}": value for name, m in self.task.modules().items() for key, value in _state(m)}
        for name, optimizer in self.task.optimizers().items():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer:{name}/{index}/{key}": torch.as_tensor(v) for key, v in values.items()}
        arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        state = {"step": self.step, "seconds": self.seconds, "settings": self.settings}
        path = self.folder / CHECKPOINT
        save_tensors(path, arrays, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION, metadata=state)

    def load(self) -> None:
        """Continue from the folder's checkpoint. Raises ValueError where it belongs to other settings."""
        path = self.folder / CHECKPOINT
        arrays, state = read_tensors(path, format_name=CHECKPOINT_FORMAT, version=CHECKPOINT_VERSION)
        if differing := _differing(state["settings"], self.settings):
            raise ValueError(f"{path} was trained with other settings ({', '.join(differing)}): choose another name")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.step, self.seconds = state["step"], state["seconds"]
        for name, module in self.task.modules().items():
            module.load_state_dict(_below(tensors, f"{name}/"))
        for name, optimizer in self.task.optimizers().items():
            stored: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizer:{name}/").items():
                index, field = key.split("/")
                stored.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": stored})

    def _append_curve(self, row: Mapping[str, Any]) -> None:
        if self.writes:
            path = self.folder / LOSS_CURVE
            rows = [*_read_curve(path), row]
            _write_curve(path, rows)

    def _truncate_curve(self) -> None:
        """Drop the rows of steps after the checkpoint, which will be trained again."""
        if self.writes:
            path = self.folder / LOSS_CURVE
            _write_curve(path, [row for row in _read_curve(path) if int(row["step"]) <= self.step])


def warm_up_and_decay(step: int, steps: int, warm_up: int, decay_share: float) -> float:
    """Return the factor of a step's learning rate: linear warm-up, constant, linear decay over the last share."""
    warm = min(1.0, (step + 1) / max(1, warm_up))
    return min(warm, (steps - step) / (decay_share * steps)) if decay_share else warm


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float, scaler: Any = None
) -> float | None:
    """Take one optimiser step down a loss and return the gradient's norm; none is taken where that is not finite."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(parameters, clip))
    if math.isfinite(norm):
        optimizer.step()
    return norm


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _differing(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*stored, *ours}) if key not in FREE and stored.get(key) != ours.get(key)]


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _short(sum(each[name] for each in losses) / len(losses)) for name in losses[0]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _read_curve(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_curve(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[-1]))
            writer.writeheader()
            writer.writerows(rows)
