"""Mel spectrograms compared with librosa 0.11."""

import math

import numpy as np
import pytest
import torch

from sctok.audio.mel import LOG_FLOOR, log_mel, mel_filters

CPU = torch.device("cpu")
# librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64)[bin, frequency]
LIBROSA_FILTERS = {
    (0, 2): 0.014511281624436378,
    (0, 3): 0.021331151947379112,
    (10, 33): 0.01915230043232441,
    (10, 34): 0.01189666148275137,
    (30, 100): 0.0115842055529356,
    (30, 101): 0.01221759244799614,
    (45, 219): 0.0,
    (63, 488): 0.002730021486058831,
    (63, 500): 0.0013737118570134044,
}
# Of `two_tones`, reflected by 432 samples, with librosa.stft(n_fft=1024, hop_length=160, center=False): [frame, bin].
LIBROSA_LOG_MEL = {
    (0, 0): -1.51202,
    (0, 9): 0.69013,
    (50, 9): 0.46904,
    (50, 10): -4.01286,
    (50, 30): -11.51293,
    (50, 63): -11.51293,
    (99, 9): 0.65556,
}


def two_tones() -> torch.Tensor:
    time = np.arange(16_000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    return torch.from_numpy(wave.astype(np.float32))[None]


@pytest.mark.parametrize(("place", "value"), LIBROSA_FILTERS.items())
def test_filters_equal_those_of_librosa(place, value):
    assert mel_filters(64, 1024, CPU)[place[1], place[0]].item() == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(("place", "value"), LIBROSA_LOG_MEL.items())
def test_log_mel_equals_that_of_librosa(place, value):
    assert log_mel(two_tones())[0][place].item() == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("bins", "size"), [(5, 32), (40, 256), (64, 1024), (320, 2048)])
def test_filters_have_equal_areas(bins, size):
    width = 16_000 / size
    area = (mel_filters(bins, size, CPU).sum(dim=0) * width).double()
    inside = area > 0
    # Narrow filters hold one frequency or none; the wide ones come close to the area of the triangle.
    assert area[inside][-1].item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("samples", [433, 1600, 163_840])
def test_one_frame_every_ten_milliseconds(samples):
    assert log_mel(torch.zeros(2, samples)).shape == (2, samples // 160, 64)


def test_silence():
    assert torch.equal(log_mel(torch.zeros(1, 1600)), torch.full((1, 10, 64), math.log(LOG_FLOOR)))


def test_silence_has_a_gradient():
    wave = torch.zeros(1, 1600, requires_grad=True)
    log_mel(wave).sum().backward()
    assert wave.grad is not None
    assert bool(wave.grad.isfinite().all())


def test_filters_cached_without_gradients_can_be_used_in_training():
    with torch.inference_mode():
        mel_filters(7, 128, CPU)
    weights = torch.ones(65, requires_grad=True)
    (weights @ mel_filters(7, 128, CPU)).square().sum().backward()
    assert weights.grad is not None
