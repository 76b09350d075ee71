"""The loop of every training: a run that is interrupted at any moment ends as an uninterrupted one."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sctok.formats import files
from sctok.formats.files import DiskFullError
from sctok.formats.tensors import read_tensors, save_tensors
from sctok.training.loop import (
    CHECKPOINT,
    LOSS_CURVE,
    MAX_BAD_STEPS,
    StepReport,
    TrainingLength,
    TrainingRun,
    TrainingTask,
)
from sctok.training.optimization import warm_up_and_decay

from .trainings import make_task, state_of, write_audio

KINDS = ("encoder", "vae", "vocoder", "codec", "grid")
EVERY_STEP = TrainingLength(6, validate_every=2, checkpoint_seconds=0)


class Toy(TrainingTask):
    """A task with one parameter, which is trained towards the step's number."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.bias = torch.nn.Parameter(torch.zeros(1))  # never has a gradient
        self.optimizer = torch.optim.AdamW([self.weight, self.bias], lr=0.1)
        self.bad_from = 10**9
        self.modules = {"toy": torch.nn.ParameterDict({"weight": self.weight, "bias": self.bias})}
        self.optimizers = {"toy": self.optimizer}

    def train_step(self, step: int) -> dict[str, float]:
        if step >= self.bad_from:
            return {"loss": float("nan")}
        loss = (self.weight - step).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def validate(self, step: int) -> dict[str, float]:
        return {"loss": float(self.weight.detach().sum())}


def toy_run(folder: Path, **settings: Any) -> TrainingRun:
    return TrainingRun(Toy(), folder, {"size": (3, 1), **settings})


def curve(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a loss curve without the columns that depend on time."""
    with (folder / LOSS_CURVE).open() as file:
        timed = ("hours", "windows_per_second")
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


class Stop(Exception):
    """Raised by a test in the middle of a run."""


def stop_at(step: int) -> Any:
    def progress(report: StepReport) -> None:
        if report.step == step:
            raise Stop

    return progress


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    inputs = write_audio(tmp_path)
    straight = make_task(kind, inputs, tmp_path / "straight")
    TrainingRun(straight, tmp_path / "straight", {}).run(EVERY_STEP)
    with pytest.raises(Stop):
        TrainingRun(make_task(kind, inputs, tmp_path / "parts"), tmp_path / "parts", {}).run(EVERY_STEP, stop_at(4))
    second = make_task(kind, inputs, tmp_path / "parts")
    run = TrainingRun(second, tmp_path / "parts", {})
    assert run.step == 3
    run.run(EVERY_STEP)
    expected = state_of(straight)
    for name, value in state_of(second).items():
        assert torch.equal(value, expected[name]), name
    assert curve(tmp_path / "parts") == curve(tmp_path / "straight")


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.trainings import make_task
from sctok.training.loop import TrainingLength, TrainingRun
inputs, folder, number = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
def progress(report):
    if report.step == 4:
        os.kill(os.getpid(), number)
task = make_task("vae", inputs, folder)
print(TrainingRun(task, folder, {}).run(TrainingLength(6, 2, 0 if number == signal.SIGKILL else 1000), progress))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step", "out"), [(signal.SIGKILL, 3, ""), (signal.SIGTERM, 5, "15\n"), (signal.SIGINT, 5, "2\n")]
)
def test_a_killed_or_stopped_process_can_be_resumed(
    number: signal.Signals, step: int, out: str, tmp_path: Path
) -> None:
    inputs, folder = write_audio(tmp_path), tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), *sys.path])}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", _KILLED, ",".join(inputs), str(folder), str(int(number))]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-9 if number == signal.SIGKILL else 0, out), ended.stderr
    run = TrainingRun(make_task("vae", inputs, folder), folder, {})
    assert run.step == step
    run.run(EVERY_STEP)
    straight = TrainingRun(make_task("vae", inputs, tmp_path / "straight"), tmp_path / "straight", {})
    straight.run(EVERY_STEP)
    expected = state_of(straight.task)
    assert all(torch.equal(value, expected[name]) for name, value in state_of(run.task).items())
    assert curve(folder) == curve(tmp_path / "straight")


def test_a_signal_saves_a_checkpoint_and_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(report: StepReport) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run = toy_run(tmp_path)
    assert run.run(TrainingLength(100, 50), interrupt) == signal.SIGINT
    assert toy_run(tmp_path).step == run.step == 4
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_second_interrupt_acts_at_once(tmp_path: Path) -> None:
    def interrupt_twice(report: StepReport) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path).run(TrainingLength(100, 50), interrupt_twice)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy_run(tmp_path)
    run.run(TrainingLength(4))
    kept = (tmp_path / CHECKPOINT).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(report: StepReport) -> None:
        monkeypatch.setattr(files.os, "fsync", full)

    message = r"checkpoint of step 5 could not be saved, the checkpoint of step 4 is kept: .*: the disk is full"
    with pytest.raises(DiskFullError, match=message):
        toy_run(tmp_path).run(TrainingLength(100, 50, checkpoint_seconds=0), fill)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    assert not list(tmp_path.glob("*.tmp-*"))
    assert toy_run(tmp_path).step == 4


def test_tensors_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    toy_run(tmp_path).run(TrainingLength(2))
    path = tmp_path / CHECKPOINT
    arrays, state = read_tensors(path, format_name="sctok-training", version=1)
    del arrays["toy/bias"], arrays["optimizer:toy/0/exp_avg"]
    arrays["toy/weight"] = np.zeros(4, np.float32)
    arrays["toy/more"] = np.zeros(1, np.float32)
    save_tensors(path, arrays, format_name="sctok-training", version=1, metadata=state)
    with pytest.raises(ValueError, match="does not fit this training") as caught:
        toy_run(tmp_path)
    for part in (
        "toy/bias is missing",
        "optimizer:toy/0/exp_avg is missing",
        "toy/more is unknown",
        "toy/weight has shape (4,) instead of (3,)",
    ):
        assert part in str(caught.value)


def test_a_checkpoint_without_optimizer_state_is_refused(tmp_path: Path) -> None:
    toy_run(tmp_path).run(TrainingLength(2))
    path = tmp_path / CHECKPOINT
    arrays, state = read_tensors(path, format_name="sctok-training", version=1)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("optimizer")}
    save_tensors(path, arrays, format_name="sctok-training", version=1, metadata=state)
    with pytest.raises(ValueError, match="5 tensors were saved, but the file has 2"):
        toy_run(tmp_path)


def test_other_settings_are_refused_by_name_except_the_number_of_steps(tmp_path: Path) -> None:
    toy_run(tmp_path, steps=2, crops={"seed": 0, "level": "peak"}).run(TrainingLength(2))
    assert toy_run(tmp_path, steps=9, crops={"seed": 0, "level": "peak"}).step == 2
    with pytest.raises(ValueError, match=r"other settings \(crops\.seed, size\): choose another name"):
        TrainingRun(Toy(), tmp_path, {"size": (3, 2), "crops": {"seed": 1, "level": "peak"}})


def test_a_finished_run_continues_with_more_steps(tmp_path: Path) -> None:
    toy_run(tmp_path).run(TrainingLength(4, 2))
    toy_run(tmp_path).run(TrainingLength(4, 2))
    toy_run(tmp_path).run(TrainingLength(6, 2))
    assert [row["step"] for row in curve(tmp_path)] == ["2", "4", "6"]


def test_occasional_metrics_have_columns(tmp_path: Path) -> None:
    class Now(Toy):
        def validate(self, step: int) -> dict[str, float]:
            return {"loss": 1.0, **({"rare": 2.0} if step == 4 else {})}

    TrainingRun(Now(), tmp_path, {}).run(TrainingLength(6, 2))
    assert [row["validation_rare"] for row in curve(tmp_path)] == ["", "2.0", ""]


def test_a_persistent_nan_loss_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    run.run(TrainingLength(3))
    run.task.bad_from = 5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"{MAX_BAD_STEPS} steps, up to step {5 + MAX_BAD_STEPS}; .* step 3 is kept"):
        run.run(TrainingLength(1000, 500))
    assert toy_run(tmp_path).step == 3


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{CHECKPOINT}.tmp-99999999"
    left.touch()
    toy_run(tmp_path)
    assert not left.exists()


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [warm_up_and_decay(step, 100, 10, 0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    assert warm_up_and_decay(4999, 500_000, 5000, 0.0) == warm_up_and_decay(499_999, 500_000, 5000, 0.0) == 1.0


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 1, "validate_every": 0}])
def test_impossible_lengths_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TrainingLength(**settings)
