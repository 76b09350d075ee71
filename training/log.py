"""TensorBoard files of a training: its losses and decoded windows."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sctok.audio.windows import SAMPLE_RATE

from .loop import StepReport, ValidationReport

SCALAR_STEPS = 10  # steps between two steps whose losses are written


class TensorBoard:
    """Writes to one folder. A run that resumes at `step` hides what an interrupted one wrote after it.

    Raises ImportError, naming the package to install, if TensorBoard is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("install sctok[train] to follow a training in TensorBoard") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def add_report(self, report: StepReport) -> None:
        """Write the losses of a step, or the mean losses and the metrics of a validation."""
        if isinstance(report, ValidationReport):
            numbers = {"means": report.losses, "validation": report.metrics}
        elif report.step % SCALAR_STEPS == 0:
            numbers = {"training": report.losses}
        else:
            return
        for group, values in numbers.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, report.step)
        if isinstance(report, ValidationReport):
            self._writer.flush()

    def add_decoded(self, step: int, decoded: Tensor, original: Tensor) -> None:
        """Write decoded and original waveforms, each (windows, n) at 16 kHz."""
        for kind, waves in (("decoded", decoded), ("original", original)):
            for index, wave in enumerate(waves):
                self._writer.add_audio(f"{kind}/{index}", wave[None].clamp(-1, 1), step, SAMPLE_RATE)

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
