"""Stacking adjacent patch embeddings into vectors for clustering, in the published channel order."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

PATCHES_PER_COLUMN = 8  # frequency rows of one 0.16 s column of patches
TOKEN_RATES = {1: 100, 2: 50, 4: 25}  # stack factor -> tokens per second of both streams together


class _Array(Protocol):
    # The common part of NumPy arrays and torch tensors; `Any` because their signatures of reshape differ.
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def reshape(self) -> Any: ...


PatchArray = TypeVar("PatchArray", bound=_Array)


def stack_factor(rate: int) -> int:
    """Return the stack factor (1, 2, 4) of a token rate (100, 50, 25 per second). Raises ValueError for other rates."""
    for factor, known in TOKEN_RATES.items():
        if known == rate:
            return factor
    raise ValueError(f"token rate {rate} is not one of {', '.join(map(str, TOKEN_RATES.values()))}")


def token_rate(factor: int) -> int:
    """Return the token rate (100, 50, 25 per second) of a stack factor (1, 2, 4); other factors raise ValueError."""
    if factor not in TOKEN_RATES:
        raise ValueError(f"stack factor {factor} is not one of {', '.join(map(str, TOKEN_RATES))}")
    return TOKEN_RATES[factor]


def stack_patches(patches: PatchArray, factor: int) -> PatchArray:
    """Stack patch embeddings (…, 8·columns, E) to (…, 8·columns/factor, E·factor), time-major, any dtype.

    patches: NumPy array or torch tensor, patch index column·8 + frequency row; the result has the same type.
    factor: 1 returns the patches; 2 joins adjacent frequency rows; 4 joins two rows of two columns with channels in
    the order (t0f0, t0f1, t1f0, t1f1), and drops the last of an odd number of columns.

    Raises ValueError for another factor or a row count that is not whole columns.
    """
    token_rate(factor)
    *lead, rows, width = patches.shape
    columns, rest = divmod(rows, PATCHES_PER_COLUMN)
    if rest:
        raise ValueError(f"{rows} patches are not whole columns of {PATCHES_PER_COLUMN}")
    if factor == 1:
        return patches
    if factor == 2:
        return patches.reshape(*lead, rows // 2, 2 * width)
    pairs = columns // 2
    even: Any = patches[..., : pairs * 2 * PATCHES_PER_COLUMN, :]  # type: ignore[index]
    blocks = even.reshape(*lead, pairs, 2, PATCHES_PER_COLUMN // 2, 2, width)
    return blocks.swapaxes(-4, -3).reshape(*lead, pairs * PATCHES_PER_COLUMN // 2, 4 * width)
