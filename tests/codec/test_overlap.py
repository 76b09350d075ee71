from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sctok.audio.windows import COLUMN_SAMPLES, PATCH_ROWS, WINDOW_SAMPLES, token_count
from sctok.codec.overlap import HOP_SAMPLES, OVERLAP_SAMPLES, cross_fade, decode_window_count, window_tokens

EDGES = [0, 1, 800, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, WINDOW_SAMPLES + 1]
EDGES += [windows * HOP_SAMPLES + OVERLAP_SAMPLES + extra for windows in (2, 3) for extra in (-1, 0, 1)]
lengths = st.one_of(st.sampled_from(EDGES), st.integers(0, 6 * WINDOW_SAMPLES))


def windows_of(signal: NDArray[np.float32], extra: int = 0) -> Iterator[NDArray[np.float32]]:
    """Yield the windows of a signal as a perfect decoder would return them, padded with silence."""
    for window in range(decode_window_count(len(signal))):
        wave = signal[window * HOP_SAMPLES : window * HOP_SAMPLES + WINDOW_SAMPLES]
        yield np.pad(wave, (0, WINDOW_SAMPLES + extra - len(wave)))


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_windows_overlap_equally_in_tokens_and_samples(stack: int) -> None:
    tokens = np.arange(2 * 2000).reshape(2000, 2)
    first, second = window_tokens(tokens, 0, stack), window_tokens(tokens, 1, stack)
    shared = {1: 32, 2: 16, 4: 8}[stack]
    np.testing.assert_array_equal(first[-shared:], second[:shared])
    assert shared * stack * COLUMN_SAMPLES // PATCH_ROWS == OVERLAP_SAMPLES
    assert len(first) * stack * COLUMN_SAMPLES // PATCH_ROWS == WINDOW_SAMPLES


def test_short_windows_are_padded() -> None:
    filled = window_tokens(np.array([[3, 4]]), 0, 4)
    assert filled.shape == (128, 2)
    assert filled[0].tolist() == [3, 4]
    assert (filled[1:] == -1).all()


@given(samples=lengths, stack=st.sampled_from([1, 2, 4]))
def test_windows_cover_the_audio_and_each_has_new_tokens(samples: int, stack: int) -> None:
    count = decode_window_count(samples)
    covered = (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES if count else 0
    assert covered - HOP_SAMPLES < samples <= covered or samples <= WINDOW_SAMPLES
    tokens = np.zeros((token_count(samples, stack), 2), np.int64)
    shared = 32 // stack
    for window in range(count):
        assert (window_tokens(tokens, window, stack)[:, 0] == 0).sum() > (shared if window else 0)


@settings(max_examples=30, deadline=None)
@given(samples=lengths, extra=st.sampled_from([0, 32]))
def test_cross_fade_reconstructs_the_signal(samples: int, extra: int) -> None:
    signal = np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    blocks = list(cross_fade(windows_of(signal, extra), samples))
    assert all(0 < len(block) <= WINDOW_SAMPLES for block in blocks)
    assert all(block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate([np.empty(0), *blocks]), signal)


def test_fade_is_linear() -> None:
    waves = [np.zeros(WINDOW_SAMPLES, np.float32), np.ones(WINDOW_SAMPLES, np.float32)]
    faded = np.concatenate(list(cross_fade(waves, HOP_SAMPLES + WINDOW_SAMPLES)))
    np.testing.assert_allclose(faded[HOP_SAMPLES:WINDOW_SAMPLES], np.linspace(0, 1, OVERLAP_SAMPLES), atol=1e-7)
    assert not faded[:HOP_SAMPLES].any()
    assert (faded[WINDOW_SAMPLES:] == 1).all()


def test_each_block_is_yielded_before_the_next_window_is_requested() -> None:
    requested = []

    def waves() -> Iterator[NDArray[np.float32]]:
        for window in range(4):
            requested.append(window)
            yield np.zeros(WINDOW_SAMPLES, np.float32)

    for yielded, _ in enumerate(cross_fade(waves(), 3 * HOP_SAMPLES + WINDOW_SAMPLES)):
        assert len(requested) == yielded + 1


def test_input_windows_are_not_changed() -> None:
    waves = [np.zeros(WINDOW_SAMPLES, np.float32), np.ones(WINDOW_SAMPLES, np.float32)]
    list(cross_fade(waves, HOP_SAMPLES + WINDOW_SAMPLES))
    assert (waves[1] == 1).all()


def test_missing_samples_and_windows_are_an_error() -> None:
    with pytest.raises(ValueError, match="a window decodes to 163839 samples, not 163840"):
        list(cross_fade([np.zeros(WINDOW_SAMPLES - 1, np.float32)], 10))
    with pytest.raises(ValueError, match="163841 samples need 2 windows, but there are fewer"):
        list(cross_fade([np.zeros(WINDOW_SAMPLES, np.float32)], WINDOW_SAMPLES + 1))
