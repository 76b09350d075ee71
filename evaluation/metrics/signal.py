"""Signal metrics: distances between waveforms and between their spectra."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.mel import stft_magnitude
from sctok.audio.spectral_distances import MEL_SCALES, STFT_WINDOWS, mel_distance, stft_distance
from sctok.audio.windows import SAMPLE_RATE

from .pairs import Pair

SI_SDR_LIMIT = 100.0
POWER_FLOOR = 1e-10
LSD_WINDOW, LSD_HOP, LSD_FLOOR = 2048, 512, 1e-10
FEWEST_SAMPLES = STFT_WINDOWS[0] // 2 + 1


def mel_dac(pair: Pair) -> float:
    """Return DAC's mel distance (`spectral_distances.mel_distance`). Raises ValueError below 1025 samples."""
    return _tensor_distance(pair, mel_distance)


def stft_dac(pair: Pair) -> float:
    """Return DAC's STFT distance (`spectral_distances.stft_distance`). Raises ValueError below 1025 samples."""
    return _tensor_distance(pair, stft_distance)


def mel_db(pair: Pair) -> float:
    """Return the mel distance in dB, averaged over DAC's seven scales; comparable with Table I of the paper.

    The reference is scaled to the RMS of the estimate. The distance is mean |10 log10 max(P, 1e-10) - 10 log10 max(P',
    1e-10)| of HTK mel power spectra (Hann windows, hop of a quarter window, triangles of height 1).

    Raises:
        ValueError: there are fewer than 1025 samples, or a wave is silent.
    """
    estimate, reference = _same_level(pair)
    scales = []
    for window, bins in MEL_SCALES:
        filters = _htk_filters(bins, window)
        powers = [stft_magnitude(wave, window, window // 4).square() @ filters for wave in (estimate, reference)]
        scales.append(_mean_decibels(*powers))
    return float(np.mean(scales))


def stft_db(pair: Pair) -> float:
    """Return the STFT distance in dB, averaged over rectangular windows of 2048 and 512 samples, as in the paper.

    Levels are matched as in `mel_db`. The distance is mean |10 log10 max(|X|, 1e-10) - 10 log10 max(|X'|, 1e-10)|. It
    uses magnitudes, so it is half of the distance in decibels of power. The public script of the paper has the same
    floor. auraloss has the floor 1e-4, so its distance is smaller if one wave is digital silence.

    Raises:
        ValueError: there are fewer than 1025 samples, or a wave is silent.
    """
    waves = _same_level(pair)
    scales = [_mean_decibels(*(_rectangular(wave, window) for wave in waves)) for window in STFT_WINDOWS]
    return float(np.mean(scales))


def log_spectral_distance(pair: Pair) -> float:
    """Return the log-spectral distance: the mean over frames of the root mean square of Δ log10 power.

    Hann windows of 2048 samples, hop 512, power floor 1e-10 (Gray and Markel 1976). The unit is 10 dB, as in papers on
    audio super-resolution. Raises ValueError below 1025 samples.
    """
    _check_length(pair)
    logs = [
        stft_magnitude(_tensor(wave), LSD_WINDOW, LSD_HOP).square().clamp_min(LSD_FLOOR).log10()
        for wave in (pair.reference, pair.estimate)
    ]
    return (logs[0] - logs[1]).square().mean(dim=2).sqrt().mean().item()


def si_sdr(pair: Pair) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB, within ±100, of the waves minus their means.

    Le Roux et al. 2019, in float64. Raises ValueError if a wave is constant.
    """
    pair.check_sound()
    reference, estimate = (_centred(wave) for wave in (pair.reference, pair.estimate))
    for name, wave in (("reference", reference), ("decoded audio", estimate)):
        if not wave.any():
            raise ValueError(f"the {name} is constant, so it is silent without its mean, which SI-SDR removes")
    target = (estimate @ reference / (reference @ reference)) * reference
    noise = estimate - target
    smallest = np.finfo(np.float64).tiny
    target_energy, noise_energy = float(target @ target) + smallest, float(noise @ noise) + smallest
    return float(np.clip(10 * (np.log10(target_energy) - np.log10(noise_energy)), -SI_SDR_LIMIT, SI_SDR_LIMIT))


def _tensor_distance(pair: Pair, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    with torch.inference_mode():
        return distance(_tensor(pair.estimate), _tensor(pair.reference)).item()


def _tensor(wave: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(wave)[None]


def _centred(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = wave.astype(np.float64)
    # The rounded mean may differ from a constant, but a constant has to become silence.
    return wide - wide.mean() if np.ptp(wide) else np.zeros_like(wide)


def _check_length(pair: Pair) -> None:
    if len(pair.reference) < FEWEST_SAMPLES:
        raise ValueError(f"{len(pair.reference)} samples are too few; at least {FEWEST_SAMPLES} are needed")


def _same_level(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return estimate and reference as (1, n), the reference scaled to the RMS of the estimate."""
    _check_length(pair)
    pair.check_sound()
    levels = [np.sqrt(np.mean(np.square(wave, dtype=np.float64))) for wave in (pair.estimate, pair.reference)]
    return _tensor(pair.estimate), _tensor(pair.reference) * float(levels[0] / levels[1])


def _mean_decibels(first: Tensor, second: Tensor) -> float:
    logs = [10 * each.clamp_min(POWER_FLOOR).log10() for each in (first, second)]
    return (logs[0] - logs[1]).abs().mean().item()


def _rectangular(wave: Tensor, size: int) -> Tensor:
    return torch.stft(wave, size, size // 4, window=torch.ones(size), return_complex=True).abs()


@cache
def _htk_filters(bins: int, size: int) -> Tensor:
    """Return triangles of height 1 with equal spacing on HTK's mel scale, (size // 2 + 1, bins)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))
