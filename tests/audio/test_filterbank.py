import numpy as np
import pytest
import torch
from tests.conftest import cut_windows

from sctok.audio.filterbank import SILENCE, filterbank
from sctok.audio.windows import WINDOW_SAMPLES, WINDOW_SPAN, span_samples


def test_equals_the_published_filterbank(signal_windows, golden):
    waves, last = signal_windows
    mel = filterbank(torch.from_numpy(waves), torch.from_numpy(last))
    assert np.abs(mel.reshape(1, -1, 128).numpy() - golden[100]["mel"]).max() < 1e-4


def test_padding_is_silence_and_the_last_two_frames_are_raw_zero():
    waves, last = cut_windows(np.zeros(1000, np.float32))
    mel = filterbank(torch.from_numpy(waves), torch.from_numpy(last))[0]
    assert torch.allclose(mel[:-2], torch.tensor(SILENCE), atol=1e-6)
    assert torch.allclose(mel[-2:], torch.tensor(0.467), atol=1e-3)
    assert abs(SILENCE + 1.278) < 1e-3


def test_inner_windows_read_samples_of_the_next_one():
    samples = np.random.default_rng(0).standard_normal(2 * WINDOW_SAMPLES).astype(np.float32)
    whole, last = cut_windows(samples)
    mel = filterbank(torch.from_numpy(whole), torch.from_numpy(last))
    shifted = filterbank(torch.from_numpy(samples[None, 160 : 160 + WINDOW_SPAN].copy()), torch.tensor([False]))
    assert torch.allclose(mel[0, 1:], shifted[0, :-1], atol=1e-4)


@pytest.mark.parametrize("offset", [0.01, 0.5])
def test_a_constant_offset_changes_nothing(offset):
    samples = (np.random.default_rng(1).standard_normal((1, WINDOW_SPAN)) * 0.1).astype(np.float32)
    plain, moved = (
        filterbank(torch.from_numpy(x.astype(np.float32)), torch.tensor([False])) for x in (samples, samples + offset)
    )
    assert torch.allclose(plain, moved, atol=2e-3)


def test_a_batch_equals_its_windows():
    waves = torch.from_numpy(np.random.default_rng(2).standard_normal((3, WINDOW_SPAN)).astype(np.float32))
    last = torch.tensor([False, True, False])
    together = filterbank(waves, last)
    alone = torch.cat([filterbank(waves[i : i + 1], last[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_refuses_other_lengths():
    with pytest.raises(ValueError, match="164080"):
        filterbank(torch.zeros(1, WINDOW_SAMPLES), torch.tensor([True]))


@pytest.mark.parametrize("columns", [1, 7, 63])
def test_the_first_columns_are_those_of_the_window(columns):
    waves = torch.from_numpy(np.random.default_rng(3).standard_normal((2, WINDOW_SPAN)).astype(np.float32))
    last = torch.tensor([False, True])
    first = filterbank(waves[:, : span_samples(columns)], last)
    assert torch.allclose(first, filterbank(waves, last)[:, : 16 * columns], atol=1e-6)
