"""Sums of the points of each cluster on GPUs, with the same bits in every run.

A stable sort brings the points into the order of their labels. One program adds at most 64 rows of one cluster over 128
dimensions. A second pass adds these partial sums of a cluster in their order. All sums are float64. There are no atomic
operations, and no tile grows with D, so nothing depends on timing and no register spills.
"""

# Kernels have no types: an argument may be a pointer or a tensor.
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


def add_segmented_sums(points: Tensor, labels: Tensor, sums: Tensor, counts: Tensor) -> None:
    """Add points (n, D), floating, any strides, to the sums (k, D) float64 and counts (k,) int64 of their labels.

    labels: (n,) int64 in [0, k). Sums of float16 points are exact, so they have the bits of the sums on CPUs.
    """
    k, dim = sums.shape
    cut = cut_segments(labels, k, SEGMENT)
    counts += cut.lengths
    if len(labels) == 0:
        return
    parts = torch.empty((len(cut.labels), dim), dtype=torch.float64, device=points.device)
    tiles = triton.cdiv(dim, BLOCK)
    _segment_kernel[(len(cut.labels) * tiles,)](
        points, cut.order, cut.first, cut.sizes, parts, dim, tiles, *points.stride(), ROWS=ROWS_AT_ONCE, WIDTH=BLOCK
    )
    _combine_kernel[(k * tiles,)](
        parts, cut.ends, cut.counts, sums, dim, tiles, ROWS=PARTIALS_AT_ONCE, WIDTH=BLOCK
    )  # fmt: skip


@triton.jit
def _segment_kernel(
    points, rows, first, sizes, parts, dim, tiles, row_stride, column_stride, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add the rows of one segment over WIDTH dimensions, in float64."""
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * WIDTH + tl.arange(0, WIDTH)
    start = tl.load(first + segment)
    size = tl.load(sizes + segment).to(tl.int32)
    total = tl.zeros((ROWS, WIDTH), tl.float64)
    for offset in range(0, size, ROWS):
        place = offset + tl.arange(0, ROWS)
        row = tl.load(rows + start + place, place < size, other=0)
        inside = (place < size)[:, None] & (columns < dim)[None, :]
        sources = points + row[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
        total += tl.load(sources, inside, other=0).to(tl.float64)
    tl.store(parts + segment * dim + columns, tl.sum(total, axis=0), columns < dim)


@triton.jit
def _combine_kernel(parts, ends, segments, sums, dim, tiles, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Add the partial sums of one cluster over WIDTH dimensions to its sum, always in the same order."""
    cluster = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * WIDTH + tl.arange(0, WIDTH)
    end = tl.load(ends + cluster)
    total = tl.zeros((ROWS, WIDTH), tl.float64)
    for segment in range(end - tl.load(segments + cluster), end, ROWS):
        place = segment + tl.arange(0, ROWS)
        inside = (place < end)[:, None] & (columns < dim)[None, :]
        total += tl.load(parts + place[:, None] * dim + columns[None, :], inside, other=0)
    target = sums + cluster * dim + columns
    tl.store(target, tl.load(target, columns < dim) + tl.sum(total, axis=0), columns < dim)
