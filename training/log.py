"""TensorBoard files of a training: its losses and what it sounds like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sctok.audio.windows import SAMPLE_RATE

SCALAR_STEPS = 10  # of the steps between validations one in so many is written


class TensorBoard:
    """Writes to one folder. A run that goes on at `step` hides what an interrupted one wrote after it.

    Raises ImportError, saying what to install, where there is no TensorBoard.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("install sctok[train] to follow a training in TensorBoard") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def row(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a step or a validation, as `TrainingRun.run` reports them."""
        validated = "hours" in row
        if not validated and row["step"] % SCALAR_STEPS:
            return
        for name, value in row.items():
            if name not in ("step", "hours"):
                group = "validation" if name.startswith("validation_") else "means" if validated else "training"
                self._writer.add_scalar(f"{group}/{name.removeprefix('validation_')}", value, row["step"])
        if validated:
            self._writer.flush()

    def heard(self, step: int, decoded: Tensor, original: Tensor) -> None:
        """Write waveforms (windows, n) at 16 kHz."""
        for kind, waves in (("decoded", decoded), ("original", original)):
            for index, wave in enumerate(waves):
                self._writer.add_audio(f"{kind}/{index}", wave[None].clamp(-1, 1), step, SAMPLE_RATE)

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
