"""A small vocoder with an inverse-STFT head: log-mel spectrograms to waveforms at a fraction of HiFi-GAN's cost."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.audio.mel import DECODER_BINS, hann_window
from sctok.audio.windows import FRAME_SHIFT

FFT_SIZE = 4 * FRAME_SHIFT
MAX_LOG_MAGNITUDE = 6.0  # per STFT bin; a full-scale sine has ln(160) = 5.1


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder: `blocks` ConvNeXt blocks of `width` channels with inner layers of `expansion · width`."""

    width: int = 256
    blocks: int = 6
    expansion: int = 3

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} of the vocoder is not positive")


class IstftVocoder(nn.Module):
    """Predicts the magnitude and phase of every 10 ms frame and overlap-adds the frames (Vocos, Siuzdak 2023)."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv1d(DECODER_BINS, config.width, 7, padding=3)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(_ConvNeXt(config) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, FFT_SIZE + 2)
        self.apply(_initialize)

    def forward(self, mel: Tensor) -> Tensor:
        """Map log-mels (B, T, 64) to waveforms (B, T · 160) at 16 kHz."""
        x = self.norm(self.embed(mel.mT).mT)
        for block in self.blocks:
            x = block(x)
        magnitude, phase = self.head(self.final_norm(x)).float().chunk(2, dim=-1)
        spectrum = torch.polar(magnitude.clamp_max(MAX_LOG_MAGNITUDE).exp(), phase)
        return inverse_stft(spectrum)


def inverse_stft(spectrum: Tensor) -> Tensor:
    """Convert frames, complex (B, T, 321), to waveforms (B, T · 160).

    Each frame is centered on its 160 samples. Unlike torch.istft, this includes the first and the last frame.
    """
    window = hann_window(FFT_SIZE, spectrum.device)
    frames = torch.fft.irfft(spectrum, FFT_SIZE) * window
    count = frames.shape[1]
    summed = _overlap_add(frames)
    weight = _overlap_add(window.square().expand(1, count, FFT_SIZE))
    around = (FFT_SIZE - FRAME_SHIFT) // 2
    inner = slice(around, around + count * FRAME_SHIFT)
    return summed[:, inner] / weight[:, inner].clamp_min(1e-4)


def _overlap_add(frames: Tensor) -> Tensor:
    batch, count, size = frames.shape
    parts = size // FRAME_SHIFT
    pieces = frames.reshape(batch, count, parts, FRAME_SHIFT)
    # Part p of frame t belongs to hop t + p.
    return sum(F.pad(pieces[:, :, p], (0, 0, p, parts - 1 - p)) for p in range(parts)).reshape(batch, -1)  # type: ignore[union-attr]


class _ConvNeXt(nn.Module):
    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, inner = config.width, config.width * config.expansion
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.full((width,), 1 / config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x.mT).mT)
        return x + self.scale * self.narrow(F.gelu(self.widen(h)))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=min(0.02, 1 / math.sqrt(module.weight[0].numel())))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
