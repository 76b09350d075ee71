import numpy as np
import pytest

from sctok.audio import windows
from sctok.formats.stacking import stack_patches


@pytest.mark.parametrize(
    ("samples", "counts"),
    [(16_000, (57, 29, 15)), (163_840, (520, 260, 130)), (160_000, (504, 252, 126)), (203_200, (640, 320, 160))],
)
def test_token_counts_match_the_published_code(samples, counts):
    assert tuple(windows.token_count(samples, stack) for stack in (1, 2, 4)) == counts


def test_float_rounding_of_the_published_count_is_kept():
    exact = [(samples // 2560 + 1) * 8 for samples in range(0, 400_000, 160)]
    found = [windows.token_count(samples, 1) for samples in range(0, 400_000, 160)]
    stray = sum(a != b for a, b in zip(exact, found, strict=True)) / len(exact)
    assert 0.02 < stray < 0.12


@pytest.mark.parametrize(("samples", "count"), [(0, 1), (1, 1), (163_839, 1), (163_840, 2), (327_680, 3)])
def test_an_exact_multiple_gains_a_window(samples, count):
    assert windows.window_count(samples) == count


@pytest.mark.parametrize("samples", [1, 2559, 2560, 163_840, 203_201])
@pytest.mark.parametrize("stack", [1, 2, 4])
def test_the_windows_hold_every_token(samples, stack):
    assert windows.token_count(samples, stack) <= windows.window_count(samples) * windows.WINDOW_PATCHES // stack


@pytest.mark.parametrize(("samples", "columns"), [(0, 0), (1, 1), (2560, 1), (2561, 2)])
def test_columns_that_hold_audio(samples, columns):
    assert windows.audio_columns(samples) == columns


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_columns_with_tokens_hold_all_tokens_and_at_most_three_columns_of_padding(stack):
    for samples in range(1, 400_000, 97):
        columns = windows.token_columns(samples)
        patches = np.empty((columns * windows.PATCH_ROWS, 0))
        assert windows.token_count(samples, stack) <= len(stack_patches(patches, stack))
        assert 0 <= columns - windows.audio_columns(samples) <= 3


@pytest.mark.parametrize(("columns", "samples"), [(1, 2800), (7, 18_160), (64, windows.WINDOW_SPAN)])
def test_the_samples_of_columns(columns, samples):
    assert windows.span_samples(columns) == samples
    assert windows.span_columns(samples) == columns


@pytest.mark.parametrize("samples", [0, 240, 2560, 2801, windows.WINDOW_SAMPLES, windows.span_samples(65)])
def test_other_numbers_of_samples_are_refused(samples):
    with pytest.raises(ValueError, match=f"{samples} samples"):
        windows.span_columns(samples)
