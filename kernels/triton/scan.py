"""The nearest-centroid scans in low precision: each streams the centroids past a tile of points.

Scores are s_ij = offset_j - 2 x_i·c_j in float32. The factor -2 is part of the centroid operand and the offsets
initialise the accumulators, so each score costs one move and one minimum next to the tensor cores. The matrix
(points, centroids) never leaves the registers.

The group scan keeps lower bounds of groups of columns. Group g holds the columns
(g // SLOTS) * COLUMNS + g % SLOTS + SLOTS * i, which one thread holds: its minimum needs no exchange between threads
and no index per score. The candidate scan lists every pair whose lower bound does not exceed the limit of its point.
"""

# Kernels have no types: an argument may be a pointer, a descriptor or a tensor.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .operands import CentroidOperand, PointOperand
from .tiles import Tile, lighter

_BLOCKS_WANTED = 1024  # programs that fill any GPU a few times
_PART_TILES = 8  # least number of column tiles of one program of the candidate scan


@dataclass(frozen=True)
class Groups:
    """The groups of columns with the smallest lower bounds of each of n points.

    first, second: (n,) int32. second_bound, third_bound: (n,) float32, bounds of the second group and of all others.
    """

    first: Tensor
    second: Tensor
    second_bound: Tensor
    third_bound: Tensor

    def take(self, rows: Tensor) -> "Groups":
        """Return the groups of some points (r,)."""
        return Groups(self.first[rows], self.second[rows], self.second_bound[rows], self.third_bound[rows])


def scan_groups(points: PointOperand, centroids: CentroidOperand) -> Groups:
    """Run the group scan over all points; see `_scan_groups_kernel`."""
    n, device, tile = len(points.matrix), points.matrix.device, centroids.tile
    groups = torch.empty((2, n), dtype=torch.int32, device=device)
    bounds = torch.empty((2, n), dtype=torch.float32, device=device)
    if n:
        _scan_groups_kernel[(triton.cdiv(n, tile.rows),)](
            *_sources(points, centroids, tile), *groups, *bounds, *_sizes(points, centroids), SLOTS=tile.slots,
            **_constants(centroids.operand, tile),
        )  # fmt: skip
    return Groups(groups[0], groups[1], bounds[0], bounds[1])


def emit_candidates(
    points: PointOperand, limits: Tensor, centroids: CentroidOperand, capacity: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and columns (p,) int64 of all pairs whose lower bound is at most limits (n,) float32, in any order.

    All pairs of a row are in one batch. A batch holds at most `capacity` pairs, or the number of columns if that is
    larger. The rows are halved until their pairs fit, so memory is bounded for any input.
    """
    n, columns = len(points.matrix), len(centroids.matrix)
    if n == 0:
        return
    room, tile = max(capacity, columns), lighter(centroids.tile)
    if n * columns < 2**31:  # otherwise the counter could overflow
        count = torch.zeros(1, dtype=torch.int32, device=limits.device)
        pairs = torch.empty((2, room), dtype=torch.int32, device=limits.device)
        blocks, tiles = triton.cdiv(n, tile.rows), columns // tile.columns
        parts = max(1, min(triton.cdiv(_BLOCKS_WANTED, blocks), triton.cdiv(tiles, _PART_TILES)))
        _emit_candidates_kernel[(blocks * parts,)](
            *_sources(points, centroids, tile), limits, count, pairs[0], pairs[1], *_sizes(points, centroids), parts,
            room, **_constants(centroids.operand, tile),
        )  # fmt: skip
        found = int(count)
        if found <= room:
            yield pairs[0, :found].to(torch.int64), pairs[1, :found].to(torch.int64)
            return
    for part in (slice(0, n // 2), slice(n // 2, n)):
        for rows, places in emit_candidates(points.take(part), limits[part], centroids, capacity):
            yield rows + part.start, places


def _sources(points: PointOperand, centroids: CentroidOperand, tile: Tile) -> tuple[Any, ...]:
    """Return the first nine arguments of both scan kernels."""
    x: Any = points.matrix
    c: Any = centroids.matrix
    if tile.descriptors:
        x = TensorDescriptor.from_tensor(points.matrix, [tile.rows, tile.depth])
        c = TensorDescriptor.from_tensor(centroids.matrix, [tile.columns, tile.depth])
    return (
        x, c, centroids.offsets, points.row_scale, centroids.column_scale, points.residuals, points.norms,
        centroids.tile_norms, centroids.tile_residuals,
    )  # fmt: skip


def _sizes(points: PointOperand, centroids: CentroidOperand) -> tuple[int, int, int]:
    """Return the number of rows, the padded depth and the number of column tiles."""
    return len(points.matrix), centroids.matrix.shape[1], len(centroids.matrix) // centroids.tile.columns


def _constants(operand: str, tile: Tile) -> dict[str, Any]:
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "INTEGER": operand == "int8",
        "PRECISION": operand if operand.startswith("tf32") else "tf32",
        "DESCRIPTORS": tile.descriptors,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def _score_tile(
    x, c, offsets, row_scale, column_scale, rows, first_row, column, limit, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Return the scores (ROWS, COLUMNS) of one tile."""
    columns = column + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    offset = tl.load(offsets + columns)[None, :]
    accumulator = tl.zeros((ROWS, COLUMNS), tl.int32) if INTEGER else tl.broadcast_to(offset, (ROWS, COLUMNS))
    if not DESCRIPTORS:
        x_pointers = x + tl.minimum(rows, limit - 1).to(tl.int64)[:, None] * depth + inner[None, :]
        c_pointers = c + columns.to(tl.int64)[:, None] * depth + inner[None, :]
    for start in range(0, depth, DEPTH):
        if DESCRIPTORS:
            left = x.load([first_row, start])
            right = c.load([column, start])
        else:
            left = tl.load(x_pointers + start)
            right = tl.load(c_pointers + start)
        if INTEGER:
            accumulator = tl.dot(left, right.T, accumulator, out_dtype=tl.int32)
        else:
            accumulator = tl.dot(left, right.T, accumulator, input_precision=PRECISION)
    if INTEGER:
        scaled = accumulator.to(tl.float32) * tl.load(column_scale + columns)[None, :]
        scores = scaled * row_scale[:, None] + offset
    else:
        scores = accumulator
    return scores


@triton.jit
def _best_of_slots(value, index, next_value, next_index, last_value):
    """Return the smallest (value, index) of each row, and the arrays without it: its slot moves up by one entry."""
    best = tl.min(value, axis=1)
    chosen = tl.min(tl.where(value == best[:, None], index, 2147483647), axis=1)
    hit = index == chosen[:, None]
    index = tl.where(hit, next_index, index)
    value = tl.where(hit, next_value, value)
    next_value = tl.where(hit, last_value, next_value)
    return best, chosen, value, index, next_value


@triton.jit
def _scan_groups_kernel(
    x, c, offsets, row_scale, column_scale, residuals, norms, tile_norms, tile_residuals,
    first_group, second_group, second_bound, third_bound, n, depth, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLOTS: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Write, for each row, the two groups with the smallest lower bounds, and the second and third smallest bound.

    The lower bound is the smallest score of the group minus residuals_i * tile_norms_t + norms_i * tile_residuals_t.
    """
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    scale = tl.load(row_scale + rows, inside, other=0) if INTEGER else 0
    residual = tl.load(residuals + rows, inside, other=0)
    norm = tl.load(norms + rows, inside, other=0)
    value1 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    value2 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    value3 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    tile1 = tl.zeros((ROWS, SLOTS), tl.int32)
    tile2 = tl.zeros((ROWS, SLOTS), tl.int32)
    for tile in range(tiles):
        scores = _score_tile(
            x, c, offsets, scale, column_scale, rows, first_row, tile * COLUMNS, n, depth,
            ROWS, COLUMNS, DEPTH, INTEGER, PRECISION, DESCRIPTORS,
        )  # fmt: skip
        low = tl.min(tl.reshape(scores, (ROWS, COLUMNS // SLOTS, SLOTS)), axis=1)
        slack = residual * tl.load(tile_norms + tile) + norm * tl.load(tile_residuals + tile)
        low = low - slack[:, None]
        before1 = low < value1
        before2 = low < value2
        value3 = tl.minimum(value3, tl.maximum(value2, low))
        value2 = tl.minimum(value2, tl.maximum(value1, low))
        value1 = tl.minimum(value1, low)
        tile2 = tl.where(before1, tile1, tl.where(before2, tile, tile2))
        tile1 = tl.where(before1, tile, tile1)
    slot = tl.arange(0, SLOTS)[None, :]
    group1, group2 = tile1 * SLOTS + slot, tile2 * SLOTS + slot
    _best, chosen, value1, group1, value2 = _best_of_slots(value1, group1, value2, group2, value3)
    second, other, value1, group1, value2 = _best_of_slots(value1, group1, value2, group1, value2)
    tl.store(first_group + rows, chosen, inside)
    tl.store(second_group + rows, other, inside)
    tl.store(second_bound + rows, second, inside)
    tl.store(third_bound + rows, tl.min(value1, axis=1), inside)


@triton.jit
def _emit_candidates_kernel(
    x, c, offsets, row_scale, column_scale, residuals, norms, tile_norms, tile_residuals,
    limits, count, pair_rows, pair_columns, n, depth, tiles, parts, capacity,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """List every (row, column) whose lower bound is at most limits_i; keep counting when the list is full."""
    first_row = tl.program_id(0) // parts * ROWS
    part = tl.program_id(0) % parts
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    scale = tl.load(row_scale + rows, inside, other=0) if INTEGER else 0
    residual = tl.load(residuals + rows, inside, other=0)
    norm = tl.load(norms + rows, inside, other=0)
    limit = tl.load(limits + rows, inside, other=float("-inf"))
    for tile in range(part, tiles, parts):
        scores = _score_tile(
            x, c, offsets, scale, column_scale, rows, first_row, tile * COLUMNS, n, depth,
            ROWS, COLUMNS, DEPTH, INTEGER, PRECISION, DESCRIPTORS,
        )  # fmt: skip
        slack = residual * tl.load(tile_norms + tile) + norm * tl.load(tile_residuals + tile)
        wanted = (scores - slack[:, None] <= limit[:, None]) & (scores < float("inf"))
        if tl.max(tl.max(wanted.to(tl.int32), axis=1), axis=0) > 0:
            columns = tile * COLUMNS + tl.arange(0, COLUMNS)
            ones = tl.full((ROWS, COLUMNS), 1, tl.int32)
            place = tl.atomic_add(count + tl.zeros((ROWS, COLUMNS), tl.int32), ones, wanted, sem="relaxed")
            kept = wanted & (place < capacity)
            tl.store(pair_rows + place, tl.broadcast_to(rows[:, None], (ROWS, COLUMNS)), kept)
            tl.store(pair_columns + place, tl.broadcast_to(columns[None, :], (ROWS, COLUMNS)), kept)
