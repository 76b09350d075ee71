"""Differentiable spectral distances between waveforms: losses of the vocoder's training, and DAC's metrics."""

import torch
from torch import Tensor

from .mel import LOG_FLOOR, mel_filters, stft_magnitude

# (window, mel bins): the seven scales of DAC's configuration; the hop is a quarter of the window.
MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
STFT_WINDOWS = (2048, 512)


def mel_distance(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return DAC's mel distance of waveforms (B, n) at 16 kHz, float32 (B,), summed over its seven scales.

    mean |log10 max(M, 1e-5) - log10 max(M', 1e-5)| of magnitudes on Slaney's scale (Kumar et al. 2023, eq. of L_mel).
    Raises ValueError if the shapes differ or there are fewer than 1025 samples.
    """
    _check(estimate, reference)
    total = torch.zeros(len(estimate), device=estimate.device)
    for window, bins in MEL_SCALES:
        filters = mel_filters(bins, window, estimate.device)
        logs = [_log10(stft_magnitude(wave, window, window // 4) @ filters) for wave in (estimate, reference)]
        total = total + (logs[0] - logs[1]).abs().mean(dim=(1, 2))
    return total


def stft_distance(estimate: Tensor, reference: Tensor) -> Tensor:
    """Return DAC's STFT distance of waveforms (B, n), float32 (B,): log power plus magnitude, windows 2048 and 512.

    Raises ValueError if the shapes differ or there are fewer than 1025 samples.
    """
    _check(estimate, reference)
    total = torch.zeros(len(estimate), device=estimate.device)
    for window in STFT_WINDOWS:
        ours, theirs = (stft_magnitude(wave, window, window // 4) for wave in (estimate, reference))
        total = total + 2 * (_log10(ours) - _log10(theirs)).abs().mean(dim=(1, 2))
        total = total + (ours - theirs).abs().mean(dim=(1, 2))
    return total


def _log10(magnitude: Tensor) -> Tensor:
    return magnitude.clamp_min(LOG_FLOOR).log10()


def _check(estimate: Tensor, reference: Tensor) -> None:
    if estimate.shape != reference.shape or estimate.ndim != 2:
        raise ValueError(
            f"waveforms {tuple(estimate.shape)} and {tuple(reference.shape)} must have the same shape (B, n)"
        )
    if estimate.shape[1] <= STFT_WINDOWS[0] // 2:
        raise ValueError(
            f"{estimate.shape[1]} samples are too few: reflection takes half a window of {STFT_WINDOWS[0]}"
        )
