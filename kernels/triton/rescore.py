"""Float32 scores of the centroids that low precision leaves: ||c||^2 - 2 x·c in the units of the operand."""

# Kernels have no types: an argument may be a pointer or a tensor.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from dataclasses import dataclass

import torch
from torch import Tensor

import triton
import triton.language as tl

from .operands import CentroidOperand
from .segments import cut_segments

SCORES_AT_ONCE = 64  # scores of one program for separate points
ROWS = 128  # points of one group in a program
DEPTH = 32


@dataclass(frozen=True)
class GroupBest:
    """The best column of each point's group.

    score: (n,) float32. place: (n,) int32, position of the column in the group. next_score: (n,) float32, the second
    smallest score. Scores are infinite if the group has no such column.
    """

    score: Tensor
    place: Tensor
    next_score: Tensor


def best_of_groups(points: Tensor, groups: Tensor, centroids: CentroidOperand) -> GroupBest:
    """Score points (n, dim) against the columns of their groups (n,) int64; points of one group share its centroids.

    Groups are those of `scan_groups`: group g holds the columns (g // slots) * columns + g % slots + slots * place.
    """
    n, slots = len(points), centroids.tile.slots
    width = centroids.tile.columns // slots
    scores = torch.empty((2, n), dtype=torch.float32, device=points.device)
    places = torch.empty(n, dtype=torch.int32, device=points.device)
    if n:
        cut = cut_segments(groups, len(centroids.matrix) // width, ROWS)
        _best_kernel[(len(cut.labels),)](
            points, centroids.center, centroids.scale, cut.order, cut.labels, cut.first, cut.sizes, centroids.full,
            centroids.squares, scores[0], places, scores[1], centroids.k, centroids.dim, *points.stride(),
            SLOTS=slots, ROWS=ROWS, WIDTH=width, DEPTH=DEPTH,
        )  # fmt: skip
    return GroupBest(scores[0], places, scores[1])


def float32_scores(
    points: Tensor, rows: Tensor, first: Tensor, centroids: CentroidOperand, *, width: int, step: int
) -> Tensor:
    """Return the scores (p, width) float32 of points[rows] (p,) against columns first + step * (0 … width - 1).

    Columns are positions in the order of the operand. Those above k - 1 are padding and give infinity.
    """
    scores = torch.empty((len(rows), width), dtype=torch.float32, device=points.device)
    if len(rows):
        items = SCORES_AT_ONCE // width
        _float32_scores_kernel[(triton.cdiv(len(rows), items),)](
            points, centroids.center, centroids.scale, rows, first, centroids.full, centroids.squares, scores,
            len(rows), centroids.k, centroids.dim, *points.stride(), step, ITEMS=items, WIDTH=width, DEPTH=DEPTH,
        )  # fmt: skip
    return scores


@triton.jit
def _float32_scores_kernel(
    points, center, scale, rows, first, full, squares, scores, n, k, dim, row_stride, column_stride, step,
    ITEMS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Score ITEMS rows of points against WIDTH centroids each, with float32 products summed in any order."""
    items = tl.program_id(0).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    row = tl.load(rows + items, items < n, other=0)
    columns = tl.load(first + items, items < n, other=0)[:, None] + step * tl.arange(0, WIDTH)[None, :]
    known = columns < k
    factor = tl.load(scale)
    total = tl.zeros((ITEMS, WIDTH, DEPTH), tl.float32)
    for start in range(0, dim, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        inside = inner < dim
        places = row[:, None] * row_stride + inner.to(tl.int64)[None, :] * column_stride
        value = tl.load(points + places, inside[None, :], other=0)
        if value.dtype != tl.float64:
            value = value.to(tl.float32)
        value = value - tl.load(center + inner, inside, other=0).to(value.dtype)[None, :]
        y = (value.to(tl.float64) * factor).to(tl.float32)
        sources = full + columns[:, :, None] * dim + inner[None, None, :]
        total += y[:, None, :] * tl.load(sources, known[:, :, None] & inside[None, None, :], other=0)
    result = tl.sum(total, axis=2) + tl.load(squares + columns, known, other=float("inf"))
    tl.store(scores + items[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], result, (items < n)[:, None])


@triton.jit
def _best_kernel(
    points, center, scale, order, labels, first, sizes, full, squares, best, place, following, k, dim,
    row_stride, column_stride, SLOTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Score one segment of rows against the WIDTH columns of its group, and keep the two smallest scores."""
    segment = tl.program_id(0).to(tl.int64)
    group = tl.load(labels + segment)
    item = tl.arange(0, ROWS)
    inside = item < tl.load(sizes + segment)
    rows = tl.load(order + tl.load(first + segment) + item, inside, other=0)
    within = tl.arange(0, WIDTH)
    columns = group // SLOTS * (SLOTS * WIDTH) + group % SLOTS + SLOTS * within
    known = columns < k
    factor = tl.load(scale)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, dim, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        filled = inner < dim
        sources = points + rows[:, None] * row_stride + inner.to(tl.int64)[None, :] * column_stride
        value = tl.load(sources, inside[:, None] & filled[None, :], other=0)
        if value.dtype != tl.float64:
            value = value.to(tl.float32)
        value = value - tl.load(center + inner, filled, other=0).to(value.dtype)[None, :]
        y = tl.where(filled[None, :], (value.to(tl.float64) * factor).to(tl.float32), 0.0)
        z = tl.load(full + columns[None, :] * dim + inner[:, None], known[None, :] & filled[:, None], other=0)
        total = tl.dot(y, z, total, input_precision="ieee")
    scores = total + tl.load(squares + columns, known, other=float("inf"))[None, :]
    low = tl.min(scores, axis=1)
    chosen = tl.min(tl.where(scores == low[:, None], within[None, :], WIDTH - 1), axis=1)
    others = tl.where(within[None, :] == chosen[:, None], float("inf"), scores)
    tl.store(best + rows, low, inside)
    tl.store(place + rows, chosen, inside)
    tl.store(following + rows, tl.min(others, axis=1), inside)
