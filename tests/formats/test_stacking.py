import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctok.formats.stacking import TOKEN_RATES, stack_factor, stack_patches, token_rate


def stacked_by_loops(patches: npt.NDArray[np.float32], factor: int) -> npt.NDArray[np.float32]:
    """The published order, patch by patch: patches (8·columns, E), index column·8 + frequency row."""
    columns = len(patches) // 8
    at = patches.reshape(columns, 8, patches.shape[1])
    if factor == 1:
        tokens = [at[t, f] for t in range(columns) for f in range(8)]
    elif factor == 2:
        tokens = [np.concatenate([at[t, f], at[t, f + 1]]) for t in range(columns) for f in range(0, 8, 2)]
    else:
        tokens = [
            np.concatenate([at[t, f], at[t, f + 1], at[t + 1, f], at[t + 1, f + 1]])
            for t in range(0, columns - 1, 2)
            for f in range(0, 8, 2)
        ]
    return np.array(tokens, np.float32).reshape(len(tokens), factor * patches.shape[1])


@given(columns=st.integers(0, 9), width=st.integers(1, 5), factor=st.sampled_from([1, 2, 4]))
def test_it_equals_plain_loops(columns: int, width: int, factor: int) -> None:
    patches = np.arange(columns * 8 * width, dtype=np.float32).reshape(columns * 8, width)
    np.testing.assert_array_equal(stack_patches(patches, factor), stacked_by_loops(patches, factor))


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("columns", [1, 2, 64])
def test_leading_axes_and_strides_do_not_matter(factor: int, columns: int) -> None:
    patches = np.random.default_rng(0).standard_normal((2, 3, columns * 8, 10)).astype(np.float32)[..., ::2]
    stacked = stack_patches(patches, factor)
    assert stacked.shape == (2, 3, columns // 2 * 4 if factor == 4 else columns * 8 // factor, 5 * factor)
    np.testing.assert_array_equal(stacked[1, 2], stacked_by_loops(patches[1, 2], factor))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_tensors_and_arrays_stack_alike(factor: int) -> None:
    torch = pytest.importorskip("torch")
    patches = np.random.default_rng(0).standard_normal((2, 24, 6)).astype(np.float32)
    tensor = torch.from_numpy(patches).transpose(0, 1).contiguous().transpose(0, 1)
    stacked = stack_patches(tensor, factor)
    assert isinstance(stacked, torch.Tensor)
    np.testing.assert_array_equal(stacked.numpy(), stack_patches(patches, factor))


def test_rows_outside_whole_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="12 patches are not whole columns of 8"):
        stack_patches(np.zeros((12, 4), np.float32), 2)


def test_rates_and_factors() -> None:
    assert [stack_factor(rate) for rate in (100, 50, 25)] == [1, 2, 4]
    assert {factor: token_rate(factor) for factor in TOKEN_RATES} == TOKEN_RATES
    with pytest.raises(ValueError, match="token rate 75 is not one of 100, 50, 25"):
        stack_factor(75)
    with pytest.raises(ValueError, match="stack factor 3 is not one of 1, 2, 4"):
        stack_patches(np.zeros((8, 4), np.float32), 3)
