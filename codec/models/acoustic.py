"""The acoustic encoder of SemantiCodec: a bidirectional LSTM over features and their centroids, then a quantizer."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from sctok.formats.stacking import stack_factor
from sctok.kernels.cpu.lstm import bidirectional_lstm
from sctok.runtime.jit import jit_works

from .ema_codebook import EMAVectorQuantizer, Quantized, VQConfig

PADDING = -1.0  # input at positions without audio, as in the published code
PUBLISHED_WIDTH = 768  # width of the AudioMAE base encoder
PUBLISHED_LAYERS = {100: 4, 50: 3, 25: 2}  # by token rate


@dataclass(frozen=True)
class AcousticConfig:
    """Sizes and training of the acoustic encoder. `published` returns those of the published codecs.

    feature_width: width F of a stacked feature. hidden: width of the LSTM in each direction; 2F by default.
    acoustic_width: width of the acoustic vectors; F by default. The other attributes are those of `VQConfig`.
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
        """Return the sizes of the published codec with a token rate of 100, 50 or 25. Raises ValueError for other
        rates.
        """
        return cls(feature_width=PUBLISHED_WIDTH * stack_factor(token_rate), layers=PUBLISHED_LAYERS[token_rate])

    @property
    def hidden_width(self) -> int:
        """Width of the LSTM in each direction."""
        return 2 * self.feature_width if self.hidden is None else self.hidden

    @property
    def quantizer(self) -> VQConfig:
        """Configuration of the quantizer."""
        width = self.feature_width if self.acoustic_width is None else self.acoustic_width
        return VQConfig(width, **{each.name: getattr(self, each.name) for each in fields(VQConfig)[1:]})


def is_batch_invariant(device: torch.device) -> bool:
    """Return whether float32 inference encodes a window identically in every batch."""
    return device.type == "cpu" and jit_works()


class AcousticEncoder(nn.Module):
    """Encodes as acoustic tokens what the semantic tokens leave out of the features (paper, section III-B).

    Parameters have the names of the published checkpoints.
    """

    def __init__(self, config: AcousticConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_width, config.quantizer.dim
        self.encoder = nn.LSTM(2 * config.feature_width, hidden, config.layers, batch_first=True, bidirectional=True)
        self.encoder_output_linear = nn.Linear(2 * hidden, width, bias=False)
        self.quantizer = EMAVectorQuantizer(config.quantizer)

    def forward(self, features: Tensor, quantized: Tensor, padded: Tensor) -> Quantized:
        """Encode and quantize windows.

        Args:
            features: (B, L, F) stacked features.
            quantized: (B, L, F) centroid of each feature.
            padded: bool (B, L), True at positions without audio. Their input is -1. Their outputs are quantized like
                all others, as in the published code.

        Raises:
            ValueError: the shapes do not match, or the features contain NaN.
        """
        shape = (*features.shape[:2], self.config.feature_width)
        if features.shape != shape or quantized.shape != shape or padded.shape != shape[:2]:
            raise ValueError(
                f"expected features and quantized (batch, length, {self.config.feature_width}) and padded "
                f"(batch, length), got {tuple(features.shape)}, {tuple(quantized.shape)} and {tuple(padded.shape)}"
            )
        inputs = torch.cat([features, quantized], dim=-1).masked_fill(padded[..., None], PADDING)
        return self.quantizer(self._before_quantizer(inputs), padded)

    def _before_quantizer(self, inputs: Tensor) -> Tensor:
        """Return the vectors to quantize, (B, L, A). In inference on a CPU, they depend only on their window."""
        if torch.is_grad_enabled() or inputs.dtype != torch.float32 or not is_batch_invariant(inputs.device):
            return self.encoder_output_linear(self.encoder(inputs)[0])
        hidden = bidirectional_lstm(self.encoder, inputs)
        return torch.stack([self.encoder_output_linear(each) for each in hidden])
