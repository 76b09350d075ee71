"""Certify labels on GPUs: the exact float64 argmin at the speed of tensor cores.

Low-precision scores with their error bounds give a lower bound of every true score.

1. The group scan finds, for each point, the two groups of centroids with the smallest lower bounds, and a lower bound
   for all other groups.
2. The first group is scored in float32, and so is the second unless its bound excludes it. This gives an upper bound of
   the best score. If the lower bound of all other groups is larger, no other centroid can be nearest.
3. For the remaining points, the candidate scan lists every centroid whose lower bound does not exclude it.
4. Float64 compares the candidates that float32 cannot separate. Its order of summation defines the reference; the
   lowest index wins a tie.

Most points need only the first group and have one candidate in it. A separate kernel settles these.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sctok.kernels.certify import (
    LARGEST_SCORE,
    as_real,
    error_bound,
    nearest_pairs,
    reference_error,
    require_finite,
    rounded_up,
)

from .operands import CentroidOperand, PointOperand, quantise_points
from .pairs import exact_pair_distances
from .rescore import best_of_groups, float32_scores
from .scan import Groups, emit_candidates, scan_groups

_BLOCK_ROWS = 1 << 18
_CAPACITY = 1 << 22  # candidate pairs held at once
_LARGEST_NORM = 2.0**500


@dataclass(frozen=True)
class Certified:
    """Exact nearest centroids of n points.

    labels: (n,) int64. rescored: number of points that float64 decided. reopened: number of points that needed the
    candidate scan. second_labels: (n,) int64, the runners-up if requested, -1 if k is 1.
    """

    labels: Tensor
    rescored: int
    reopened: int
    second_labels: Tensor | None = None


@dataclass(frozen=True)
class _Block:
    """Points (n, D) and everything that certifying them needs.

    numbers: (n,) int64, rows of the points in the whole input. operand: the rounded points. groups: result of the group
    scan. slack: (n,) float64, error of the reference that depends on the point. safe: (n,) bool, whether no score
    overflows.
    """

    points: Tensor
    numbers: Tensor
    operand: PointOperand
    groups: Groups
    slack: Tensor
    safe: Tensor
    centroids: CentroidOperand

    def take(self, rows: Tensor) -> "_Block":
        """Return the block of some points (r,)."""
        return replace(
            self,
            points=self.points[rows],
            numbers=self.numbers[rows],
            operand=self.operand.take(rows),
            groups=self.groups.take(rows),
            slack=self.slack[rows],
            safe=self.safe[rows],
        )

    def score_error(self, norms: Tensor) -> Tensor:
        """Bound the error of float32 scores against centroids of given norms, float64."""
        return _score_error(self.operand.lengths, norms, self.centroids)


@dataclass(frozen=True)
class _Examined:
    """Bounds of the true scores of the columns scored in float32, float64.

    columns: (n, w) int64. lower, upper: (n, w), infinite for columns that were not scored. limit: (n,) upper bound of
    the best score, or of the second best for runners-up.
    """

    columns: Tensor
    lower: Tensor
    upper: Tensor
    limit: Tensor


def certified_labels(
    points: Tensor, centroids: CentroidOperand, *, runner_up: bool = False, first_row: int = 0
) -> Certified:
    """Return the labels of `nearest_centroid_reference`, and optionally the runners-up, for any finite input.

    Args:
        points: (n, D) real, any strides, on the device of the centroids.
        centroids: result of `prepare_operand`.
        runner_up: also find the second smallest (distance, index).
        first_row: number of the first point, for error messages.

    Raises:
        ValueError: A point holds NaN or infinity. The message names its row.
    """
    wanted = 2 if runner_up and centroids.k > 1 else 1
    labels = torch.empty((wanted, len(points)), dtype=torch.int64, device=points.device)
    rescored = reopened = 0
    for start in range(0, len(points), _BLOCK_ROWS):
        part = points[start : start + _BLOCK_ROWS]
        part = part if part.is_floating_point() else as_real(part)
        counts = _certify_block(part, centroids, labels[:, start : start + _BLOCK_ROWS], first_row + start)
        rescored, reopened = rescored + counts[0], reopened + counts[1]
    if not runner_up:
        return Certified(labels[0], rescored, reopened)
    second = labels[1] if wanted == 2 else torch.full_like(labels[0], -1)
    return Certified(labels[0], rescored, reopened, second)


def _certify_block(points: Tensor, centroids: CentroidOperand, labels: Tensor, first_row: int) -> tuple[int, int]:
    """Fill labels (wanted, n); return how many points float64 decided and how many needed the candidate scan."""
    operand = quantise_points(points, centroids)
    block = _Block(
        points=points,
        numbers=torch.arange(first_row, first_row + len(points), device=points.device),
        operand=operand,
        groups=scan_groups(operand, centroids),
        slack=reference_error(centroids.dim) * operand.lengths.to(torch.float64).square(),
        safe=_safe(operand, centroids),
        centroids=centroids,
    )
    if len(labels) > 1:
        return _certify_rows(block, labels)
    labels[0], settled = _settle(block)
    rows = (~settled).nonzero()[:, 0]
    found = labels[:, rows]
    counts = _certify_rows(block.take(rows), found)
    labels[:, rows] = found
    return counts


def _certify_rows(block: _Block, labels: Tensor) -> tuple[int, int]:
    """Certify points by scoring whole groups and listing candidates; fill and return the same as `_certify_block`."""
    points, centroids = block.points, block.centroids
    if len(points) == 0:
        return 0, 0
    examined = _examine(block, len(labels))
    limits = rounded_up(examined.limit + block.slack)
    open_rows = (block.safe & (block.groups.third_bound <= limits)).nonzero()[:, 0]
    closed = block.safe.clone()
    closed[open_rows] = False
    rescored = _close(block, examined, closed, labels)
    for rows, columns in emit_candidates(block.operand.take(open_rows), limits[open_rows], centroids, _CAPACITY):
        rows = open_rows[rows]
        scores = float32_scores(points, rows, columns, centroids, width=1, step=1)[:, 0].to(torch.float64)
        errors = _score_error(block.operand.lengths[rows], centroids.lengths[columns], centroids)
        possible = scores - errors <= examined.limit[rows]
        rescored += _decide(block, rows[possible], centroids.ids[columns[possible]], labels)
    unsafe = (~block.safe).nonzero()[:, 0]
    require_finite(points[unsafe], block.numbers[unsafe])
    every = torch.arange(centroids.k, device=points.device)
    for row in unsafe:
        _decide(block, row.expand(centroids.k), every, labels)
    return rescored + len(unsafe), len(open_rows)


def _settle(block: _Block) -> tuple[Tensor, Tensor]:
    """Return labels (n,) int64, and whether each is certain (n,) bool because its first group holds one candidate."""
    centroids = block.centroids
    group = _existing(block.groups.first, centroids)
    found = best_of_groups(block.points, group, centroids)
    error = block.score_error(centroids.tile_norms[group // centroids.tile.slots] / 2)
    limit = found.score.to(torch.float64) + error
    single = found.next_score.to(torch.float64) - error > limit
    settled = block.safe & single & (block.groups.second_bound > rounded_up(limit + block.slack))
    columns = _first_column(group, centroids) + centroids.tile.slots * found.place.to(torch.int64)
    return centroids.ids[columns], settled


def _safe(points: PointOperand, centroids: CentroidOperand) -> Tensor:
    """Return whether no score of a point overflows, nor any intermediate result, (n,) bool."""
    lengths, largest = points.lengths.to(torch.float64), centroids.lengths.amax()
    fits = 4 * lengths * largest + largest.square() < LARGEST_SCORE
    # Beyond this norm the reference itself overflows, and calls all distances equal.
    fits &= lengths + largest < _LARGEST_NORM * centroids.factor
    held = torch.isfinite(points.norms) & torch.isfinite(points.residuals)
    return fits & held if centroids.usable else torch.zeros_like(held)


def _score_error(lengths: Tensor, norms: Tensor, centroids: CentroidOperand) -> Tensor:
    """Bound the error of float32 scores of points of norm `lengths` against centroids of norm `norms`, float64."""
    wide = norms.to(torch.float64)
    return error_bound(lengths.to(torch.float64), wide, wide.square(), centroids.dim, centroids.factor)


def _examine(block: _Block, wanted: int) -> _Examined:
    """Score the first group of every point in float32, and the second group unless its bound excludes it."""
    first = _score_group(block, block.groups.first, block.safe, wanted)
    needed = block.safe & (block.groups.second_bound <= rounded_up(first.limit + block.slack))
    second = _score_group(block, block.groups.second, needed, wanted)
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


def _score_group(block: _Block, groups: Tensor, needed: Tensor, wanted: int) -> _Examined:
    """Score one group of columns for each point that needs it."""
    centroids, tile = block.centroids, block.centroids.tile
    width = tile.columns // tile.slots
    groups = _existing(groups, centroids)
    start = _first_column(groups, centroids)
    rows = needed.nonzero()[:, 0]
    rows = rows[torch.argsort(groups[rows])]  # points of one group read the same centroids from cache
    scores = torch.full((len(block.points), width), math.inf, dtype=torch.float64, device=start.device)
    found = float32_scores(block.points, rows, start[rows], centroids, width=width, step=tile.slots)
    scores[rows] = found.to(torch.float64)
    error = block.score_error(centroids.tile_norms[groups // tile.slots] / 2)[:, None]
    columns = start[:, None] + tile.slots * torch.arange(width, device=start.device)
    upper = scores + error
    return _Examined(columns, scores - error, upper, _smallest(upper, wanted))


def _existing(groups: Tensor, centroids: CentroidOperand) -> Tensor:
    """Return groups as int64; points that are not finite have no group and get any existing one."""
    tile = centroids.tile
    return groups.to(torch.int64).clamp(0, len(centroids.matrix) * tile.slots // tile.columns - 1)


def _first_column(groups: Tensor, centroids: CentroidOperand) -> Tensor:
    return groups // centroids.tile.slots * centroids.tile.columns + groups % centroids.tile.slots


def _close(block: _Block, examined: _Examined, closed: Tensor, labels: Tensor) -> int:
    """Fill the labels of closed points from the examined columns; return how many points float64 decided."""
    wanted, ids = len(labels), block.centroids.ids
    candidate = (examined.lower <= examined.limit[:, None]) & closed[:, None]
    places = examined.lower.topk(wanted, dim=1, largest=False).indices
    labels.copy_(ids[examined.columns.gather(1, places)].T)
    plain = candidate.sum(dim=1) == wanted
    if wanted == 2:
        apart = examined.lower.gather(1, places[:, 1:])[:, 0] > examined.upper.gather(1, places[:, :1])[:, 0]
        plain &= apart
    rows, chosen = (candidate & ~plain[:, None]).nonzero(as_tuple=True)
    return _decide(block, rows, ids[examined.columns[rows, chosen]], labels)


def _decide(block: _Block, rows: Tensor, ids: Tensor, labels: Tensor) -> int:
    """Fill labels[:, rows] with the smallest (float64 distance, index) of the pairs (rows, ids).

    Returns how many rows had more than one pair.
    """
    if len(rows) == 0:
        return 0
    decided = int((torch.bincount(rows) > 1).sum())
    distances = exact_pair_distances(block.points, block.centroids.source, rows, ids)
    for rank in range(len(labels)):
        nearest, taken = nearest_pairs(distances, rows, ids, len(block.points), block.centroids.k)
        labels[rank, rows] = nearest[rows]
        rows, ids, distances = rows[~taken], ids[~taken], distances[~taken]
    return decided
