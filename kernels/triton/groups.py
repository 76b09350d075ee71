"""The best centroid of one group of columns per point, in float32: points of one group share its centroids."""

from dataclasses import dataclass

import torch
from torch import Tensor

import triton
import triton.language as tl

from .operands import CentroidOperand
from .segments import cut_segments

# Kernels are not typed: their arguments are pointers at one time, tensors at another.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

ROWS = 128  # points of one group in a program
DEPTH = 32


@dataclass(frozen=True)
class GroupBest:
    """Of each point's group: score (n,) float32 and place (n,) int32 of its best column, and the next score.

    Scores are float32, ||c||^2 - 2 x·c in the units of the operand; infinite where the group has no such column.
    """

    score: Tensor
    place: Tensor
    next_score: Tensor


def best_of_groups(points: Tensor, groups: Tensor, centroids: CentroidOperand, slots: int) -> GroupBest:
    """Score points (n, dim) against the columns of their groups (n,) int64, of `slots` groups to a tile.

    Columns are those of `scan_groups_kernel`: group g holds (g // slots) * columns + g % slots + slots * place.
    """
    n, width = len(points), centroids.columns // slots
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


@triton.jit
def _best_kernel(
    points, center, scale, order, labels, first, sizes, full, squares, best, place, following, k, dim,
    row_stride, column_stride, SLOTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Score one segment of rows against the WIDTH columns of its group and keep the two smallest scores."""
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
