import numpy as np
import pytest
import torch

from sctok.audio.filterbank import filterbank
from sctok.audio.published_filterbank import centre, published_filterbank


@pytest.fixture(scope="module")
def windows(signal_windows):
    waves, last = signal_windows
    return torch.from_numpy(waves), torch.from_numpy(last)


def test_it_equals_the_filterbank_of_the_published_code(windows, golden):
    waves, last = windows
    mel = published_filterbank(centre(waves), last)
    expected = golden[100]["mel"][0]
    differences = np.abs(mel.numpy().reshape(-1, 128) - expected)
    assert differences.max() < 2e-4  # in the weakest bands: a float32 FFT rounds otherwise on CPUs of another maker
    assert differences[expected > -0.5].max() < 2e-5
    assert differences.mean() < 1e-6


def test_it_is_close_to_the_other_filterbank(windows):
    waves, last = windows
    torch.testing.assert_close(published_filterbank(waves, last), filterbank(waves, last), rtol=0, atol=2e-4)


def test_the_result_does_not_depend_on_the_batch(windows):
    waves, last = windows
    assert torch.equal(published_filterbank(waves, last)[1:], published_filterbank(waves[1:], last[1:]))


def test_the_mean_does_not_depend_on_threads(windows):
    waves, _ = windows
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(centre(waves))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_centred_file_has_no_mean(windows):
    waves, _ = windows
    assert centre(waves + 0.25)[:, :163_840].mean().abs() < 1e-6


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="164080"):
        published_filterbank(torch.zeros(1, 163_840), torch.ones(1, dtype=torch.bool))
