"""Float64 distances of pairs on GPUs, with the bits of the reference: the order of summation is the same."""

import torch
from torch import Tensor

import triton
import triton.language as tl
from sctok.kernels.certify import pair_distances

# Kernels have no types: an argument may be a pointer or a tensor.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

LARGEST_ODD = 15
LARGEST_HELD = 8192  # values of one pair that fit in registers
VALUES_AT_ONCE = 2048


def exact_pair_distances(points: Tensor, centroids: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Return the squared distances (p,) float64 of points[rows] to centroids[columns].

    The bits are those of `squared_distances`: a row of D = 2^e * m values, m odd, is halved e times, then folded by the
    rule for odd widths. PyTorch computes rows with m above 15 or D above about 8,192.

    Args:
        points: (n, D) floating, any strides.
        centroids: (k, D) floating, any strides.
        rows: (p,) int64, or None for all points in order.
        columns: (p,) int64.
    """
    constants = constants_of(points.shape[1])
    if constants is None:
        return pair_distances(points, centroids, rows, columns)
    result = torch.empty(len(columns), dtype=torch.float64, device=points.device)
    columns = columns.contiguous()
    if len(columns):
        _pair_kernel[(triton.cdiv(len(columns), constants["ITEMS"]),)](
            points, centroids, columns if rows is None else rows.contiguous(), columns, result, len(columns),
            *points.stride(), *centroids.stride(), ALL=rows is None, **constants, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return result


def constants_of(dim: int) -> dict[str, int] | None:
    """Return the constants of the kernel for rows of D values, or None if the kernel does not support D."""
    halves = dim & -dim
    width = triton.next_power_of_2(dim // halves)
    if dim // halves > LARGEST_ODD or halves * width > LARGEST_HELD:
        return None
    return {
        "ITEMS": max(1, VALUES_AT_ONCE // (halves * width)),
        "LEVELS": halves.bit_length() - 1,
        "HALVES": halves,
        "ODD": dim // halves,
        "WIDTH": width,
    }


@triton.jit
def _pair_kernel(
    points, centroids, rows, columns, result, n, row_stride, column_stride, centroid_stride, centroid_column_stride,
    ALL: tl.constexpr, ITEMS: tl.constexpr, LEVELS: tl.constexpr, HALVES: tl.constexpr, ODD: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Square the differences of ITEMS pairs and fold them like `squared_distances`. No product may be fused."""
    items = tl.program_id(0).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    row = items if ALL else tl.load(rows + items, items < n, other=0)
    column = tl.load(columns + items, items < n, other=0)
    lane = tl.arange(0, WIDTH)
    place = (tl.arange(0, HALVES)[:, None] * ODD + lane[None, :]).to(tl.int64)[None, :, :]
    inside = (items < n)[:, None, None] & (lane < ODD)[None, None, :]
    left = tl.load(points + row[:, None, None] * row_stride + place * column_stride, inside, other=0)
    sources = column[:, None, None] * centroid_stride + place * centroid_column_stride
    difference = left.to(tl.float64) - tl.load(centroids + sources, inside, other=0).to(tl.float64)
    terms = difference * difference
    for level in tl.static_range(LEVELS):
        terms = tl.sum(tl.reshape(terms, (ITEMS, 2, HALVES >> (level + 1), WIDTH)), axis=1)
    terms = tl.reshape(terms, (ITEMS, WIDTH))
    left_over = ODD
    while left_over > 1:
        fold = left_over // 2
        moved = (lane[None, :] == lane[:, None] + (left_over - fold)) & (lane < fold)[:, None]
        terms += tl.sum(tl.where(moved[None, :, :], terms[:, None, :], 0.0), axis=2)
        left_over -= fold
    tl.store(result + items, tl.sum(tl.where(lane[None, :] == 0, terms, 0.0), axis=1), items < n)
