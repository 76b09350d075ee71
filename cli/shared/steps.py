"""What the training commands share: the progress of steps, messages about skipped files, and how they stop."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from .terminal import Progress, ProgressReporter, say

if TYPE_CHECKING:
    from sctok.training.loop import StepReport

INTERRUPTED_BASE = 128  # what a shell adds to the number of a signal


def tell_skipped(tell: Callable[[str], None] = say) -> Callable[[str, str], None]:
    """Return a function that reports a skipped file and the reason."""
    return lambda path, reason: tell(f"skipped {path}: {reason}")


def exit_if_stopped(signal: int, step: int, leads: bool = True) -> None:
    """End the command with the exit code of the signal that stopped the training, if any."""
    if signal:
        if leads:
            say(f"stopped: the checkpoint of step {step} is saved; run the same command to resume")
        raise typer.Exit(INTERRUPTED_BASE + signal)


class StepProgress(ProgressReporter):
    """Show the steps with the time left, and print the numbers of each validation."""

    bar: Progress

    def __init__(self, label: str, done: int, steps: int, loss: str) -> None:
        self.bar = Progress(label, total=max(0, steps - done), unit="steps")
        self._steps, self._loss = steps, loss

    def __call__(self, report: "StepReport") -> None:
        """Show a report of `TrainingRun.run`."""
        from sctok.training.loop import ValidationReport

        value = report.losses.get(self._loss)
        self.bar.update(1, "" if value is None else f"{self._loss.replace('_', ' ')} {value:.4f}")
        if isinstance(report, ValidationReport):
            numbers = {name: value for name, value in report.row().items() if name not in ("step", "hours")}
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())
            self.bar.message(f"step {report.step}/{self._steps}, {report.hours:.2f} h: {shown}")
