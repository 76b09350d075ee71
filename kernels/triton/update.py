"""Sums of the points of each cluster on GPUs, the same bits at every run.

Points are put in the order of their labels by a stable sort. A program adds at most 64 rows of one cluster over 128
dimensions into a partial sum; a second pass adds the partial sums of a cluster in their order, in float64. No atomic
operation takes part and no tile grows with D, so nothing depends on timing and nothing spills.
"""

# Kernels are not typed: their arguments are pointers and descriptors at one time, tensors at another.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import torch
from torch import Tensor

import triton
import triton.language as tl

from .segments import cut_segments

SEGMENT = 64  # rows of one cluster in a partial sum
BLOCK = 128  # dimensions of a tile
ROWS_AT_ONCE = 8
PARTIALS_AT_ONCE = 8


def segmented_sums(
    points: Tensor,
    labels: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    partials: torch.dtype = torch.float32,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the points of each cluster.

    With float32 partials |sum - true| <= 65 * 2^-24 * sum |x| in every coordinate; with float64 partials the sums of
    float16 points are exact, as they are on CPUs. Float64 points always get float64 partials.

    Args:
        points: (n, D) floating, any strides. labels: (n,) int64 in [0, k), same device.
        weights: (n,) float32 or float64, or None for ones.
        partials: type of the sums of up to 64 rows, float32 or float64.
        out: sums (k, D) float64 and counts (k,), int64 or with weights float64, added to in place.

    Returns:
        sums (k, D) float64 and counts (k,).

    Raises:
        ValueError: lengths that differ, labels outside [0, k), or partials of another type.
    """
    _check(points, labels, k, weights, partials)
    counts_type = torch.int64 if weights is None else torch.float64
    if out is None:
        sums = torch.zeros((k, points.shape[1]), dtype=torch.float64, device=points.device)
        out = sums, torch.zeros(k, dtype=counts_type, device=points.device)
    rows = torch.arange(len(labels), device=points.device)
    lengths = _add_sums(points, rows, labels, weights, out[0], partials)
    out[1].add_(lengths if weights is None else _weight_sums(labels, weights, k))
    return out


def move_sums(
    points: Tensor,
    old: Tensor,
    new: Tensor,
    out: tuple[Tensor, Tensor],
    *,
    weights: Tensor | None = None,
    partials: torch.dtype = torch.float32,
) -> int:
    """Bring sums and counts from labels old (n,) to new (n,) by the points that moved alone; return how many did.

    The rounding of every call stays in the sums: build them anew with `segmented_sums` now and then, or use float64
    partials on float16 points, which leave no rounding.

    Raises:
        ValueError: as `segmented_sums`.
    """
    k = len(out[0])
    _check(points, old, k, weights, partials)
    _check(points, new, k, weights, partials)
    moved = (old != new).nonzero()[:, 0]
    ones = torch.ones(len(moved), dtype=torch.float32, device=points.device)
    signed = ones if weights is None else weights[moved]
    labels = torch.cat([new[moved], old[moved]])
    _add_sums(points, moved.repeat(2), labels, torch.cat([signed, -signed]), out[0], partials)
    if weights is None:
        out[1].add_(torch.bincount(new[moved], minlength=k)).sub_(torch.bincount(old[moved], minlength=k))
    else:
        out[1].add_(_weight_sums(new[moved], signed, k)).sub_(_weight_sums(old[moved], signed, k))
    return len(moved)


def _check(points: Tensor, labels: Tensor, k: int, weights: Tensor | None, partials: torch.dtype) -> None:
    if labels.ndim != 1 or len(labels) != len(points) or (weights is not None and weights.shape != labels.shape):
        raise ValueError(f"{len(points)} points need as many labels and weights, not {tuple(labels.shape)} labels")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= k):
        raise ValueError(f"labels must lie in [0, {k}), found {int(labels.min())} to {int(labels.max())}")
    if partials not in (torch.float32, torch.float64):
        raise ValueError(f"partial sums are float32 or float64, not {partials}")


def _weight_sums(labels: Tensor, weights: Tensor, k: int) -> Tensor:
    """Return the float64 sum of the weights under each label, added in a fixed order."""
    column = torch.zeros((k, 1), dtype=torch.float64, device=weights.device)
    rows = torch.arange(len(labels), device=weights.device)
    _add_sums(weights.to(torch.float64)[:, None], rows, labels, None, column, torch.float64)
    return column[:, 0]


def _add_sums(
    points: Tensor, rows: Tensor, labels: Tensor, weights: Tensor | None, sums: Tensor, partials: torch.dtype
) -> Tensor:
    """Add points[rows], times weights, to the sums (k, D) of their labels; return the rows of each label (k,)."""
    k, dim = sums.shape
    cut = cut_segments(labels, k, SEGMENT)
    if len(rows) == 0:
        return cut.lengths
    kind = torch.float64 if points.dtype == torch.float64 else partials
    parts = torch.empty((len(cut.labels), dim), dtype=kind, device=rows.device)
    tiles = triton.cdiv(dim, BLOCK)
    scale = parts if weights is None else weights[cut.order]
    _segment_kernel[(len(cut.labels) * tiles,)](
        points, rows[cut.order], scale, cut.first, cut.sizes, parts, dim, tiles, *points.stride(),
        WEIGHTED=weights is not None, ROWS=ROWS_AT_ONCE, WIDTH=BLOCK,
    )  # fmt: skip
    _combine_kernel[(k * tiles,)](
        parts, cut.ends, cut.counts, sums, dim, tiles, ROWS=PARTIALS_AT_ONCE, WIDTH=BLOCK
    )  # fmt: skip
    return cut.lengths


@triton.jit
def _segment_kernel(
    points, rows, weights, first, sizes, parts, dim, tiles, row_stride, column_stride,
    WEIGHTED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add up the rows of one segment over WIDTH dimensions, in the type of `parts`."""
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * WIDTH + tl.arange(0, WIDTH)
    start = tl.load(first + segment)
    size = tl.load(sizes + segment).to(tl.int32)
    total = tl.zeros((ROWS, WIDTH), parts.dtype.element_ty)
    for offset in range(0, size, ROWS):
        place = offset + tl.arange(0, ROWS)
        row = tl.load(rows + start + place, place < size, other=0)
        inside = (place < size)[:, None] & (columns < dim)[None, :]
        sources = points + row[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
        value = tl.load(sources, inside, other=0).to(parts.dtype.element_ty)
        if WEIGHTED:
            value *= tl.load(weights + start + place, place < size, other=0).to(parts.dtype.element_ty)[:, None]
        total += value
    tl.store(parts + segment * dim + columns, tl.sum(total, axis=0), columns < dim)


@triton.jit
def _combine_kernel(parts, ends, segments, sums, dim, tiles, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Add the partial sums of one cluster over WIDTH dimensions to its sum, in float64 and always in the same order."""
    cluster = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * WIDTH + tl.arange(0, WIDTH)
    end = tl.load(ends + cluster)
    total = tl.zeros((ROWS, WIDTH), tl.float64)
    for segment in range(end - tl.load(segments + cluster), end, ROWS):
        place = segment + tl.arange(0, ROWS)
        inside = (place < end)[:, None] & (columns < dim)[None, :]
        total += tl.load(parts + place[:, None] * dim + columns[None, :], inside, other=0).to(tl.float64)
    target = sums + cluster * dim + columns
    tl.store(target, tl.load(target, columns < dim) + tl.sum(total, axis=0), columns < dim)
