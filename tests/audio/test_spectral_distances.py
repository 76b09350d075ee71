"""DAC's distances compared with their definition in NumPy."""

import numpy as np
import pytest
import torch

from sctok.audio.spectral_distances import mel_distance, stft_distance

RATE = 16_000


def frames_of(wave, size):
    """Magnitudes (frames, size // 2 + 1) every size // 4 samples, centred, the wave reflected at its ends."""
    padded = np.pad(wave.astype(np.float64), size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    starts = range(0, len(padded) - size + 1, size // 4)
    return np.abs(np.fft.rfft(np.stack([padded[start : start + size] * window for start in starts]), axis=1))


def slaney_mel(hertz):
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


def slaney_filters(bins, size):
    """Filters (size // 2 + 1, bins), interpolated between the three corners of each triangle."""
    fine = np.linspace(0, RATE / 2, 400_001)
    corners = np.interp(np.linspace(0, slaney_mel(RATE / 2), bins + 2), slaney_mel(fine), fine)
    hertz = np.arange(size // 2 + 1) * RATE / size
    filters = [np.interp(hertz, corners[i : i + 3], [0, 1, 0]) * 2 / (corners[i + 2] - corners[i]) for i in range(bins)]
    return np.stack(filters, axis=1)


def dac_mel(estimate, reference):
    total = 0.0
    for size, bins in ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)):
        logs = [
            np.log10(np.maximum(frames_of(wave, size) @ slaney_filters(bins, size), 1e-5))
            for wave in (estimate, reference)
        ]
        total += np.abs(logs[0] - logs[1]).mean()
    return total


def dac_stft(estimate, reference):
    total = 0.0
    for size in (2048, 512):
        ours, theirs = frames_of(estimate, size), frames_of(reference, size)
        logs = [np.log10(np.maximum(each, 1e-5) ** 2) for each in (ours, theirs)]
        total += np.abs(logs[0] - logs[1]).mean() + np.abs(ours - theirs).mean()
    return total


def waves(samples=8000):
    rng = np.random.default_rng(0)
    time = np.arange(samples) / RATE
    reference = 0.3 * np.sin(2 * np.pi * 500 * time) + 0.05 * rng.standard_normal(samples)
    estimate = 0.25 * np.sin(2 * np.pi * 510 * time) + 0.02 * rng.standard_normal(samples)
    estimate[: samples // 4] = 0
    return estimate.astype(np.float32), reference.astype(np.float32)


@pytest.mark.parametrize(("ours", "defined"), [(mel_distance, dac_mel), (stft_distance, dac_stft)])
def test_definition(ours, defined):
    estimate, reference = waves()
    pair = torch.from_numpy(np.stack([estimate, reference])), torch.from_numpy(np.stack([reference, reference]))
    found = ours(*pair)
    assert found[0].item() == pytest.approx(defined(estimate, reference), rel=1e-4)
    assert found[1].item() == 0


@pytest.mark.parametrize("distance", [mel_distance, stft_distance])
def test_gradients_of_silence_are_finite(distance):
    estimate = torch.zeros(1, 4000, requires_grad=True)
    distance(estimate, torch.from_numpy(waves(4000)[1])[None]).sum().backward()
    assert estimate.grad is not None
    assert bool(estimate.grad.isfinite().all())


@pytest.mark.parametrize("distance", [mel_distance, stft_distance])
def test_shapes_that_do_not_match_are_refused(distance):
    with pytest.raises(ValueError, match=r"\(1, 4000\) and \(1, 4001\)"):
        distance(torch.zeros(1, 4000), torch.zeros(1, 4001))
    with pytest.raises(ValueError, match="1000 samples"):
        distance(torch.zeros(1, 1000), torch.zeros(1, 1000))
