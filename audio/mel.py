"""Mel spectrograms on Slaney's scale: the 64-bin spectrogram of the decoder, and the filters of the metrics."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .windows import FRAME_SHIFT, SAMPLE_RATE

DECODER_BINS = 64
FFT_SIZE = 1024
LOG_FLOOR = 1e-5


def log_mel(waves: Tensor) -> Tensor:
    """Return the log-mel spectrogram of AudioLDM's VAE and vocoder.

    1024-point Hann frames every 160 samples, reflected at the ends, magnitudes, 64 Slaney bins from 0 to 8000 Hz,
    natural logarithm of at least 1e-5.

    Args:
        waves: float32 (B, n) at 16 kHz, n at least 433.

    Returns:
        float32 (B, n // 160, 64).
    """
    around = (FFT_SIZE - FRAME_SHIFT) // 2
    padded = F.pad(waves[:, None], (around, around), mode="reflect")[:, 0]
    magnitude = stft_magnitude(padded, FFT_SIZE, FRAME_SHIFT, center=False)
    return (magnitude @ mel_filters(DECODER_BINS, FFT_SIZE, waves.device)).clamp_min(LOG_FLOOR).log()


def stft_magnitude(waves: Tensor, size: int, hop: int, center: bool = True) -> Tensor:
    """Return the magnitudes (B, frames, size // 2 + 1) of the Hann-windowed STFT of waves (B, n)."""
    window = hann_window(size, waves.device)
    spectrum = torch.stft(
        waves, size, hop, size, window, center=center, pad_mode="reflect", normalized=False, return_complex=True
    )
    # The gradient of the square root is infinite at 0, the power of digital silence.
    return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-16).sqrt().mT


@cache
@torch.inference_mode(False)  # a cached tensor may be used in training later
def hann_window(size: int, device: torch.device) -> Tensor:
    """Return the periodic Hann window, float32 (size,)."""
    return torch.hann_window(size, device=device)


@cache
@torch.inference_mode(False)
def mel_filters(bins: int, fft_size: int, device: torch.device) -> Tensor:
    """Return Slaney's triangular filters of equal area from 0 to 8000 Hz, float32 (fft_size // 2 + 1, bins)."""
    top = _to_mel(torch.tensor(SAMPLE_RATE / 2, dtype=torch.float64))
    edges = _to_hertz(torch.linspace(0, 1, bins + 2, dtype=torch.float64) * top)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, fft_size // 2 + 1, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0) * (2.0 / (edges[2:] - edges[:-2]))
    return filters.float().to(device)


# Slaney's Auditory Toolbox: 200/3 Hz a mel up to 1000 Hz (15 mels), then 27 mels for each factor of 6.4.
_LINEAR_HERTZ = 200.0 / 3.0
_KNEE_HERTZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)).item() / 27.0


def _to_mel(hertz: Tensor) -> Tensor:
    above = _KNEE_MEL + torch.log(hertz.clamp_min(1.0) / _KNEE_HERTZ) / _LOG_STEP
    return torch.where(hertz < _KNEE_HERTZ, hertz / _LINEAR_HERTZ, above)


def _to_hertz(mel: Tensor) -> Tensor:
    above = _KNEE_HERTZ * torch.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return torch.where(mel < _KNEE_MEL, mel * _LINEAR_HERTZ, above)
