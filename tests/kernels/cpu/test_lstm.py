"""Batched LSTMs give the results of PyTorch."""

import pytest
import torch

from sctok.kernels.cpu.lstm import bidirectional_lstm


def lstm_of(width, hidden, layers):
    torch.manual_seed(hidden)
    lstm = torch.nn.LSTM(width, hidden, layers, batch_first=True, bidirectional=True).requires_grad_(False).eval()
    for parameter in lstm.parameters():
        parameter.mul_(3)  # so that gates open and close
    return lstm


@pytest.fixture
def threads():
    """Return a function that sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "hidden", "layers"), [(7, 5, 2), (64, 96, 2), (80, 40, 1)])
def test_results_equal_those_of_pytorch(width, hidden, layers):
    lstm, x = lstm_of(width, hidden, layers), torch.randn(4, 9, width)
    torch.testing.assert_close(bidirectional_lstm(lstm, x), lstm(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_sequence_has_the_same_result_in_any_batch_and_with_any_number_of_threads(count, threads):
    lstm, x = lstm_of(16, 80, 2), torch.randn(13, 7, 16)
    threads(1)
    single = torch.cat([bidirectional_lstm(lstm, each[None]) for each in x])
    threads(count)
    assert torch.equal(bidirectional_lstm(lstm, x), single)
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("width", [96, 33])
def test_a_single_sequence_has_the_bits_of_onednn(width):
    lstm, x = lstm_of(width, 96, 2), torch.randn(1, 20, width)
    with torch.inference_mode():
        assert torch.equal(bidirectional_lstm(lstm, x), lstm(x)[0])
