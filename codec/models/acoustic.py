"""The acoustic encoder of SemantiCodec: a bidirectional LSTM over features and their centroids, and a quantizer."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sctok.formats.stacking import stack_factor
from sctok.kernels.cpu.lstm import bidirectional_lstm
from sctok.runtime.jit import jit_works

from .vq import EMAVectorQuantizer, VQConfig

PADDING = -1.0  # what the published code writes to positions without audio
PUBLISHED_WIDTH = 768  # of the AudioMAE base encoder
PUBLISHED_LAYERS = {100: 4, 50: 3, 25: 2}  # by token rate


@dataclass(frozen=True)
class AcousticConfig:
    """Sizes and training of the acoustic encoder; `published` gives those of the published codecs.

    feature_width: F, of a stacked feature. hidden: of the LSTM in each direction, 2F where None. acoustic_width: of the
    acoustic vectors, F where None. The others are those of `VQConfig`.
    """

    feature_width: int = 768
    hidden: int | None = None
    layers: int = 4
    acoustic_width: int | None = None
    codebook_size: int = 8192
    decay: float = 0.9
    commitment: float = 1.0
    restart_threshold: float = 0.0
    init: str = "random"
    padding_counts: bool = True

    def __post_init__(self) -> None:
        if min(self.feature_width, self.layers, self.hidden_width) < 1:
            raise ValueError(
                f"feature_width {self.feature_width}, hidden {self.hidden} and layers {self.layers} must be at least 1"
            )
        _ = self.quantizer  # checks the rest

    @classmethod
    def published(cls, token_rate: int) -> "AcousticConfig":
        """Return the sizes of the published codec of 100, 50 or 25 tokens a second. Raises ValueError for others."""
        return cls(feature_width=PUBLISHED_WIDTH * stack_factor(token_rate), layers=PUBLISHED_LAYERS[token_rate])

    @property
    def hidden_width(self) -> int:
        """Width of the LSTM in each direction."""
        return 2 * self.feature_width if self.hidden is None else self.hidden

    @property
    def quantizer(self) -> VQConfig:
        """Configuration of the quantizer."""
        return VQConfig(
            self.feature_width if self.acoustic_width is None else self.acoustic_width,
            self.codebook_size,
            self.decay,
            self.commitment,
            self.restart_threshold,
            self.init,
            self.padding_counts,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON object."""
        return asdict(self)


class AcousticOutput(NamedTuple):
    """vectors (B, L, A) float32, quantized; indices int64 (B, L), the acoustic tokens; commit_loss ()."""

    vectors: Tensor
    indices: Tensor
    commit_loss: Tensor


def windows_alone(device: torch.device) -> bool:
    """Return whether, in inference in float32, windows are encoded as if each were alone, whatever the batch."""
    return device.type == "cpu" and jit_works()


class AcousticEncoder(nn.Module):
    """What the semantic tokens leave out of the features, as tokens of its own (paper, Section III-B).

    Parameter names are those of the published checkpoints.
    """

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_width, config.quantizer.dim
        self.encoder = nn.LSTM(2 * config.feature_width, hidden, config.layers, batch_first=True, bidirectional=True)
        self.encoder_output_linear = nn.Linear(2 * hidden, width, bias=False)
        self.quantizer = EMAVectorQuantizer(config.quantizer)

    def forward(self, features: Tensor, quantized: Tensor, padded: Tensor) -> AcousticOutput:
        """Encode and quantize windows.

        Args:
            features: (B, L, F) stacked features.
            quantized: (B, L, F), the centroid of each feature.
            padded: bool (B, L), positions that hold no audio. They read -1 as input; their outputs are quantized like
                the others, as in the published code.

        Raises:
            ValueError: shapes that do not fit, or NaN in the features.
        """
        shape = (*features.shape[:2], self.config.feature_width)
        if features.shape != shape or quantized.shape != shape or padded.shape != shape[:2]:
            raise ValueError(
                f"expected features and quantized (batch, length, {self.config.feature_width}) and padded "
                f"(batch, length), got {tuple(features.shape)}, {tuple(quantized.shape)} and {tuple(padded.shape)}"
            )
        inputs = torch.cat([features, quantized], dim=-1).masked_fill(padded[..., None], PADDING)
        return AcousticOutput(*self.quantizer(self._before_quantizer(inputs), padded))

    def _before_quantizer(self, inputs: Tensor) -> Tensor:
        """Return what is quantized, (B, L, A); on CPUs, in inference, each window's depends on it alone."""
        if torch.is_grad_enabled() or inputs.dtype != torch.float32 or not windows_alone(inputs.device):
            return self.encoder_output_linear(self.encoder(inputs)[0])
        hidden = bidirectional_lstm(self.encoder, inputs)
        return torch.stack([self.encoder_output_linear(each) for each in hidden])
