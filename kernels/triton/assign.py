"""Launches of the nearest-centroid kernels: the argmin of low-precision scores, and the passes of certified search."""

# Kernels are not typed: their arguments are pointers and descriptors at one time, tensors at another.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .operands import CentroidOperand, PointOperand, quantise_points
from .scan import emit_candidates_kernel, scan_groups_kernel, scan_index_kernel
from .tiles import TILES, Tile, family_of, lighter

_BLOCKS_WANTED = 1024  # programs that fill any GPU a few times
SCORES_AT_ONCE = 64  # of one program, in float32
_PART_TILES = 8  # column tiles that one program of the candidate pass takes at least


@dataclass(frozen=True)
class Scores:
    """Smallest low-precision scores of n points: labels (n,) int64 and scores (n,) float32, ||c||^2 - 2 x·c in the
    units of the operand (centred, times scale squared), and the runner-up where asked for (label -1 where k is 1).
    """

    labels: Tensor
    scores: Tensor
    second_labels: Tensor | None = None
    second_scores: Tensor | None = None


@dataclass(frozen=True)
class Groups:
    """Groups of columns with the smallest lower bounds: first, second (n,) int32; bounds of the second and third."""

    first: Tensor
    second: Tensor
    second_bound: Tensor
    third_bound: Tensor

    def rows(self, rows: Tensor | slice) -> "Groups":
        """Return those of some points, by index or slice."""
        return Groups(self.first[rows], self.second[rows], self.second_bound[rows], self.third_bound[rows])


def nearest_scores(
    points: Tensor, centroids: CentroidOperand, *, runner_up: bool = False, tile: Tile | None = None
) -> Scores:
    """Find the smallest low-precision score of each point, the lowest index on equal scores.

    The result does not depend on the tiles, only on the operand type and the arithmetic of the tensor cores.

    Args:
        points: (n, dim) floating, any strides, on the device of the centroids.
        centroids: result of `prepare_operand(..., by_norm=False)`.
        runner_up: also return the second smallest (score, index).
        tile: launch settings; those of the device where None.
    """
    tile = tile or tile_of(points.device, centroids.operand)
    tile = lighter(tile) if runner_up else tile
    operand = quantise_points(points, centroids)
    indices = torch.empty((2, len(points)), dtype=torch.int32, device=points.device)
    scores = torch.empty((2, len(points)), dtype=torch.float32, device=points.device)
    if len(points):
        scan_index_kernel[(triton.cdiv(len(points), tile.rows),)](
            *_tile_sources(operand, centroids, tile),
            indices[0], scores[0], indices[1], scores[1], *_sizes(operand, centroids),
            SLOTS=tile.slots, RUNNER_UP=runner_up, **_constants(centroids.operand, tile),
        )  # fmt: skip
    labels = indices.to(torch.int64)
    if not runner_up:
        return Scores(labels[0], scores[0])
    return Scores(labels[0], scores[0], labels[1], scores[1])


def scan_groups(points: PointOperand, centroids: CentroidOperand, tile: Tile) -> Groups:
    """Run the group pass over all points: see `scan_groups_kernel`."""
    n, device = len(points.matrix), points.matrix.device
    groups = torch.empty((2, n), dtype=torch.int32, device=device)
    bounds = torch.empty((2, n), dtype=torch.float32, device=device)
    if n:
        scan_groups_kernel[(triton.cdiv(n, tile.rows),)](
            *_tile_sources(points, centroids, tile), *_bounds(points, centroids),
            *groups, *bounds, *_sizes(points, centroids), SLOTS=tile.slots, **_constants(centroids.operand, tile),
        )  # fmt: skip
    return Groups(groups[0], groups[1], bounds[0], bounds[1])


def emit_candidates(
    points: PointOperand, limits: Tensor, centroids: CentroidOperand, tile: Tile, capacity: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and columns (p,) int64, in no order, of all pairs whose lower bound is at most limits (n,) float32.

    All pairs of a row come in one batch. A batch holds at most `capacity` pairs, or the number of columns if that is
    more: rows are halved until theirs fit, so memory is bounded whatever the input.
    """
    n, columns = len(points.matrix), len(centroids.matrix)
    if n == 0:
        return
    room, tile = max(capacity, columns), lighter(tile)
    if n * columns < 2**31:  # else the counter could wrap
        count = torch.zeros(1, dtype=torch.int32, device=limits.device)
        pairs = torch.empty((2, room), dtype=torch.int32, device=limits.device)
        blocks, tiles = triton.cdiv(n, tile.rows), columns // tile.columns
        parts = max(1, min(triton.cdiv(_BLOCKS_WANTED, blocks), triton.cdiv(tiles, _PART_TILES)))
        emit_candidates_kernel[(blocks * parts,)](
            *_tile_sources(points, centroids, tile), *_bounds(points, centroids), limits, count, pairs[0], pairs[1],
            *_sizes(points, centroids), parts, room, **_constants(centroids.operand, tile),
        )  # fmt: skip
        found = int(count)
        if found <= room:
            yield pairs[0, :found].to(torch.int64), pairs[1, :found].to(torch.int64)
            return
    half = n // 2
    for start, stop in ((0, half), (half, n)):
        part = take_rows(points, slice(start, stop))
        for rows, places in emit_candidates(part, limits[start:stop], centroids, tile, capacity):
            yield rows + start, places


def take_rows(points: PointOperand, rows: Tensor | slice) -> PointOperand:
    """Return some rows of a point operand, by index or slice."""
    return PointOperand(
        points.matrix[rows], points.row_scale[rows], points.residuals[rows], points.norms[rows], points.lengths[rows]
    )


def float32_scores(
    points: Tensor, rows: Tensor, first: Tensor, centroids: CentroidOperand, *, width: int, step: int
) -> Tensor:
    """Return float32 scores (p, width) of points[rows] (p,) against columns first + step * (0 … width - 1).

    Columns are places in the operand's order, at most k - 1 counts; padding gives infinity.
    """
    scores = torch.empty((len(rows), width), dtype=torch.float32, device=points.device)
    if len(rows):
        items = SCORES_AT_ONCE // width
        _float32_scores_kernel[(triton.cdiv(len(rows), items),)](
            points, centroids.center, centroids.scale, rows, first, centroids.full, centroids.squares, scores,
            len(rows), centroids.k, centroids.dim, *points.stride(), step, ITEMS=items, WIDTH=width, DEPTH=32,
        )  # fmt: skip
    return scores


def tile_of(device: torch.device, operand: str) -> Tile:
    """Return the launch settings of a device for an operand type."""
    return TILES[family_of(device)][operand]


@triton.jit
def _float32_scores_kernel(
    points, center, scale, rows, first, full, squares, scores, n, k, dim, row_stride, column_stride, step,
    ITEMS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Score ITEMS rows of points against WIDTH centroids each: float32 products, sums in any order."""
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


def _tile_sources(points: PointOperand, centroids: CentroidOperand, tile: Tile) -> tuple[Any, ...]:
    """Return the first five arguments of every scan kernel.

    Raises:
        ValueError: the centroids were padded for tiles of another width.
    """
    if tile.columns != centroids.columns:
        raise ValueError(f"centroids prepared for tiles of {centroids.columns} columns, not {tile.columns}")
    x: Any = points.matrix
    c: Any = centroids.matrix
    if tile.descriptors:
        x = TensorDescriptor.from_tensor(points.matrix, [tile.rows, tile.depth])
        c = TensorDescriptor.from_tensor(centroids.matrix, [tile.columns, tile.depth])
    return x, c, centroids.offsets, points.row_scale, centroids.column_scale


def _bounds(points: PointOperand, centroids: CentroidOperand) -> tuple[Tensor, ...]:
    return points.residuals, points.norms, centroids.tile_norms, centroids.tile_residuals


def _sizes(points: PointOperand, centroids: CentroidOperand) -> tuple[int, int, int]:
    """Return the number of rows, the padded depth and the number of column tiles."""
    return len(points.matrix), centroids.matrix.shape[1], len(centroids.matrix) // centroids.columns


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
