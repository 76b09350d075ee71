"""The exact float64 argmin at tensor-core speed: low-precision scores, certified bounds, few rows scored again.

Every low-precision score becomes a lower bound of the true one. Pass 1 finds per point the two groups of centroids with
the smallest bounds and the bound of all other groups. The first group, and the second where its bound asks for it, is
scored in float32, which gives an upper bound of the best score; where the bound of all other groups lies above it,
nothing else can be nearest. Pass 2 lists, for the other points alone, every centroid whose bound does not exclude it.
Most points need the first group alone and have one candidate in it: those are settled by a kernel of their own.
Candidates that float32 cannot tell apart are compared in float64, in the order of summation that defines the reference,
the lowest index on ties.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sctok.kernels.certify import as_real, error_bound

from .assign import Groups, emit_candidates, float32_scores, scan_groups, take_rows, tile_of
from .groups import best_of_groups
from .operands import OPERANDS, CentroidOperand, PointOperand, prepare_operand, quantise_points, reference_error
from .pairs import exact_pair_distances
from .tiles import Tile

_BLOCK_ROWS = 1 << 18
_CAPACITY = 1 << 22  # candidate pairs held at once
_LARGEST = 2.0**126  # scores beyond this could overflow on the way
_LONGEST = 2.0**500


@dataclass(frozen=True)
class Certified:
    """Exact nearest centroids of n points.

    labels: (n,) int64. second_labels: (n,) int64 runners-up where asked for, -1 where k is 1. rescored: points that
    float64 had to decide. reopened: points that needed pass 2.
    """

    labels: Tensor
    rescored: int
    reopened: int
    second_labels: Tensor | None = None


@dataclass(frozen=True)
class _Examined:
    """Float32 scores of the columns examined so far, as bounds of their true scores, float64.

    columns: (n, w) int64. lower: (n, w), infinite where not examined. limit: (n,) upper bound of the best score, or of
    the second best where runners-up are wanted.
    """

    columns: Tensor
    lower: Tensor
    upper: Tensor
    limit: Tensor


class CenteredCentroids(Protocol):
    """Centroids with the point that their operands are centered on, as `prepare_centroids` returns them."""

    @property
    def centroids(self) -> Tensor:
        """(k, D) float32 or float64."""

    @property
    def center(self) -> Tensor:
        """(D,) float32."""


def certified_operand(prepared: CenteredCentroids, operand: str = "auto", tile: Tile | None = None) -> CentroidOperand:
    """Round prepared centroids for `certified_labels`, once for many blocks of points.

    operand: one of `OPERANDS`, or "auto": fp16, whose rounding is an eighth of bf16's at the same speed. Values that
    leave its range make their points cost a brute-force search, never a wrong label.
    tile: launch settings to prepare for; those of the device where None.

    Raises:
        ValueError: an unknown operand, or one that cannot hold so many dimensions.
    """
    operand = "fp16" if operand == "auto" else operand
    if operand not in OPERANDS:
        raise ValueError(f"operand {operand!r} is not one of auto, {', '.join(OPERANDS)}")
    tile = tile or tile_of(prepared.centroids.device, operand)
    return prepare_operand(prepared.centroids, prepared.center, operand, columns=tile.columns)


def certified_labels(
    points: Tensor,
    centroids: CenteredCentroids | CentroidOperand,
    *,
    operand: str = "auto",
    runner_up: bool = False,
    first_row: int = 0,
    tile: Tile | None = None,
) -> Certified:
    """Return the labels that `nearest_centroid_reference` gives, and on request the runners-up, on any finite input.

    Args:
        points: (n, D) real, any strides, on the device of the centroids.
        centroids: result of `certified_operand`, or of `prepare_centroids`.
        operand: type to score in, for prepared centroids.
        runner_up: also find the second smallest (distance, index).
        first_row: number of the first point, for messages.
        tile: launch settings; those of the device where None.

    Raises:
        ValueError: a point holds NaN or infinity, named by its row, or the operand type cannot be used.
    """
    if not isinstance(centroids, CentroidOperand):
        centroids = certified_operand(centroids, operand, tile)
    tile = tile or tile_of(points.device, centroids.operand)
    wanted = 2 if runner_up and centroids.k > 1 else 1
    labels = torch.empty((wanted, len(points)), dtype=torch.int64, device=points.device)
    rescored = reopened = 0
    for start in range(0, len(points), _BLOCK_ROWS):
        block = points[start : start + _BLOCK_ROWS]
        block = block if block.is_floating_point() else as_real(block)
        decided, again = _certify_block(
            block, centroids, tile, labels[:, start : start + _BLOCK_ROWS], first_row + start
        )
        rescored, reopened = rescored + decided, reopened + again
    if not runner_up:
        return Certified(labels[0], rescored, reopened)
    second = labels[1] if wanted == 2 else torch.full_like(labels[0], -1)
    return Certified(labels[0], rescored, reopened, second)


def _certify_block(
    points: Tensor, centroids: CentroidOperand, tile: Tile, labels: Tensor, first_row: int
) -> tuple[int, int]:
    """Fill labels (wanted, n); return how many points float64 decided and how many needed pass 2."""
    operand = quantise_points(points, centroids)
    safe = _safe(operand, centroids)
    slack = reference_error(centroids.dim) * operand.lengths.to(torch.float64).square()
    groups = scan_groups(operand, centroids, tile)
    rows: Tensor | slice = slice(None)
    if len(labels) == 1:
        labels[0], settled = _settle(points, operand, groups, slack, safe, centroids, tile)
        rows = (~settled).nonzero()[:, 0]
    numbers = torch.arange(first_row, first_row + len(points), device=points.device)[rows]
    found = labels[:, rows]
    operand, groups = take_rows(operand, rows), groups.rows(rows)
    counts = _certify_rows(points[rows], operand, groups, slack[rows], safe[rows], centroids, tile, found, numbers)
    labels[:, rows] = found
    return counts


def _certify_rows(
    points: Tensor,
    operand: PointOperand,
    groups: Groups,
    slack: Tensor,
    safe: Tensor,
    centroids: CentroidOperand,
    tile: Tile,
    labels: Tensor,
    numbers: Tensor,
) -> tuple[int, int]:
    """Do what `_certify_block` does by scoring whole groups and listing candidates; numbers (n,) of the points."""
    if len(points) == 0:
        return 0, 0
    examined = _examine(points, operand, groups, slack, safe, centroids, tile, len(labels))
    limits = _rounded_up(examined.limit + slack)
    open_rows = (safe & (groups.third_bound <= limits)).nonzero()[:, 0]
    closed = safe.clone()
    closed[open_rows] = False
    rescored = _close(points, examined, closed, centroids, labels)
    batches = emit_candidates(take_rows(operand, open_rows), limits[open_rows], centroids, tile, _CAPACITY)
    for rows, columns in batches:
        rows = open_rows[rows]
        scores = float32_scores(points, rows, columns, centroids, width=1, step=1)[:, 0].to(torch.float64)
        norms = centroids.lengths[columns]
        keep = scores - _score_error(operand.lengths[rows], norms, centroids) <= examined.limit[rows]
        rescored += _decide(points, rows[keep], centroids.ids[columns[keep]], centroids, labels)
    unsafe = (~safe).nonzero()[:, 0]
    bad = (~torch.isfinite(points[unsafe]).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(f"point {int(numbers[unsafe[bad[0, 0]]])} holds NaN or infinity")
    every = torch.arange(centroids.k, device=points.device)
    for row in unsafe:
        _decide(points, row.expand(centroids.k), every, centroids, labels)
    return rescored + len(unsafe), len(open_rows)


def _settle(
    points: Tensor,
    operand: PointOperand,
    groups: Groups,
    slack: Tensor,
    safe: Tensor,
    centroids: CentroidOperand,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """Return labels (n,) int64 and where they are certain, (n,) bool: the first group holds one candidate alone.

    That is most points of most data, and little work each.
    """
    group = _existing(groups.first, centroids, tile)
    found = best_of_groups(points, group, centroids, tile.slots)
    error = _score_error(operand.lengths, centroids.tile_norms[group // tile.slots] / 2, centroids)
    limit = found.score.to(torch.float64) + error
    alone = found.next_score.to(torch.float64) - error > limit
    settled = safe & alone & (groups.second_bound > _rounded_up(limit + slack))
    columns = _first_column(group, centroids, tile) + tile.slots * found.place.to(torch.int64)
    return centroids.ids[columns], settled


def _safe(points: PointOperand, centroids: CentroidOperand) -> Tensor:
    """Return (n,) bool: nothing overflowed, nor could it on the way."""
    lengths, largest = points.lengths.to(torch.float64), centroids.lengths.amax()
    fits = 4 * lengths * largest + largest.square() < _LARGEST
    # The reference itself overflows beyond this, and then calls all distances equal.
    fits &= lengths + largest < _LONGEST * centroids.factor
    held = torch.isfinite(points.norms) & torch.isfinite(points.residuals)
    return fits & held if centroids.usable else torch.zeros_like(held)


def _score_error(lengths: Tensor, norms: Tensor, centroids: CentroidOperand) -> Tensor:
    """Bound float32 scores of points of norm `lengths` against centroids of norm `norms`, as float64."""
    wide = norms.to(torch.float64)
    return error_bound(lengths.to(torch.float64), wide, wide.square(), centroids.dim, centroids.factor)


def _rounded_up(values: Tensor) -> Tensor:
    narrow = values.to(torch.float32)
    return torch.nextafter(narrow, torch.full_like(narrow, math.inf))


def _examine(
    points: Tensor,
    operand: PointOperand,
    groups: Groups,
    slack: Tensor,
    safe: Tensor,
    centroids: CentroidOperand,
    tile: Tile,
    wanted: int,
) -> _Examined:
    """Score the first group of every point in float32, and the second group where its bound does not exclude it."""
    first = _score_group(points, operand, groups.first, safe, centroids, tile, wanted)
    needed = safe & (groups.second_bound <= _rounded_up(first.limit + slack))
    second = _score_group(points, operand, groups.second, needed, centroids, tile, wanted)
    upper = torch.cat([first.upper, second.upper], dim=1)
    return _Examined(
        columns=torch.cat([first.columns, second.columns], dim=1),
        lower=torch.cat([first.lower, second.lower], dim=1),
        upper=upper,
        limit=_smallest(upper, wanted),
    )


def _smallest(values: Tensor, rank: int) -> Tensor:
    """Return the rank-th smallest value of each row."""
    return values.topk(rank, dim=1, largest=False).values[:, -1]


def _score_group(
    points: Tensor,
    operand: PointOperand,
    groups: Tensor,
    needed: Tensor,
    centroids: CentroidOperand,
    tile: Tile,
    wanted: int,
) -> _Examined:
    """Score one group of columns per point, where needed; points of one group are neighbours, for the caches' sake."""
    width = centroids.columns // tile.slots
    groups = _existing(groups, centroids, tile)
    start = _first_column(groups, centroids, tile)
    rows = needed.nonzero()[:, 0]
    rows = rows[torch.argsort(groups[rows])]
    scores = torch.full((len(points), width), math.inf, dtype=torch.float64, device=points.device)
    found = float32_scores(points, rows, start[rows], centroids, width=width, step=tile.slots)
    scores[rows] = found.to(torch.float64)
    norms = centroids.tile_norms[groups // tile.slots] / 2
    error = _score_error(operand.lengths, norms, centroids)[:, None]
    columns = start[:, None] + tile.slots * torch.arange(width, device=points.device)
    upper = scores + error
    return _Examined(columns, scores - error, upper, _smallest(upper, wanted))


def _existing(groups: Tensor, centroids: CentroidOperand, tile: Tile) -> Tensor:
    """Return groups as int64, what is no group (of points that are not finite) replaced by one."""
    return groups.to(torch.int64).clamp(0, len(centroids.matrix) * tile.slots // centroids.columns - 1)


def _first_column(groups: Tensor, centroids: CentroidOperand, tile: Tile) -> Tensor:
    return groups // tile.slots * centroids.columns + groups % tile.slots


def _close(points: Tensor, examined: _Examined, closed: Tensor, centroids: CentroidOperand, labels: Tensor) -> int:
    """Fill the labels of closed points from the columns examined; return how many float64 decided."""
    wanted = len(labels)
    candidate = (examined.lower <= examined.limit[:, None]) & closed[:, None]
    places = examined.lower.topk(wanted, dim=1, largest=False).indices
    labels.copy_(centroids.ids[examined.columns.gather(1, places)].T)
    plain = candidate.sum(dim=1) == wanted
    if wanted == 2:
        apart = examined.lower.gather(1, places[:, 1:])[:, 0] > examined.upper.gather(1, places[:, :1])[:, 0]
        plain &= apart
    rows, chosen = (candidate & ~plain[:, None]).nonzero(as_tuple=True)
    return _decide(points, rows, centroids.ids[examined.columns[rows, chosen]], centroids, labels)


def _decide(points: Tensor, rows: Tensor, ids: Tensor, centroids: CentroidOperand, labels: Tensor) -> int:
    """Fill labels[:, rows] with the smallest (float64 distance, index) of its pairs; return how many had a choice."""
    if len(rows) == 0:
        return 0
    decided = int((torch.bincount(rows) > 1).sum())
    distances = exact_pair_distances(points, centroids.source, rows, ids)
    for rank in range(len(labels)):
        best = torch.full((len(points),), math.inf, dtype=torch.float64, device=points.device)
        best.scatter_reduce_(0, rows, distances, "amin")
        nearest = distances == best[rows]
        chosen = torch.full((len(points),), centroids.k, dtype=torch.int64, device=points.device)
        chosen.scatter_reduce_(0, rows[nearest], ids[nearest], "amin")
        labels[rank, rows] = chosen[rows]
        left = ids != chosen[rows]
        rows, ids, distances = rows[left], ids[left], distances[left]
    return decided
