"""What a fit remembers of every vector from pass to pass, so that most need not be assigned again.

Hamerly's bounds (2010): a vector keeps its centroid while an upper bound u of the distance to it stays below a lower
bound l of the distance to every other one. When centroids move by p_j, u grows by p_a and l falls by the largest p_j
with j != a. Both are rounded outwards, and only u (1 + 2^-20) < l counts: far more than the float64 distances that
define the nearest centroid can be wrong by, and no ties. Skipping never changes a label.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment

from .totals import Totals

BYTES_PER_VECTOR = 12
DEFAULT_MEMORY = 16 << 30  # where the settings give none
_SHARE_OF_MEMORY = 8

_MARGIN = 1 + 2.0**-20
_OUT, _IN = 1 + 2.0**-22, 1 - 2.0**-22  # more than a float32 rounding
_TINY = 2.0**-126  # what a float32 may lose where it is subnormal, or flushed to zero
_REBUILD = 16  # passes after which sums are added up afresh
_NONE = -1


def bounds_fit(rows: int, memory: int | None) -> bool:
    """Return whether the state of so many vectors fits an eighth of the memory in bytes (None: of 16 GiB)."""
    return rows * BYTES_PER_VECTOR <= (memory or DEFAULT_MEMORY) // _SHARE_OF_MEMORY


@dataclass
class Bounds:
    """State of n vectors, by their places, and of k clusters.

    labels: (n,) int32 of the last assignment, -1 where there was none. upper, lower: (n,) float32 of Euclidean
    distances to the centroids as they are now; lower 0 where none is known. totals: of all vectors by `labels`.
    spread: weighted sum of the squared distances of these vectors to `origin` (D,) float64, NaN until it is known.
    age: passes since the sums were added up afresh. gap: median of l - u in a block. drift: bound of
    what u + (largest other move) was for most vectors in the last update.
    """

    labels: Tensor
    upper: Tensor
    lower: Tensor
    origin: Tensor
    totals: Totals
    spread: float = math.nan
    age: int = 0
    gap: float = 0.0
    drift: float = math.inf

    @classmethod
    def empty(cls, rows: int, centroids: Tensor) -> "Bounds":
        """Return the state before the first pass over `rows` vectors, for centroids (k, D)."""
        k, dim = centroids.shape
        device = centroids.device
        return cls(
            labels=torch.full((rows,), _NONE, dtype=torch.int32, device=device),
            upper=torch.full((rows,), math.inf, device=device),
            lower=torch.zeros(rows, device=device),
            origin=centroids.to(torch.float64).mean(dim=0),
            totals=Totals(k, dim, device),
        )

    @property
    def tight(self) -> bool:
        """Whether centroids move so little that runner-up distances, which cost some time, will pay."""
        return self.drift < self.gap

    def start_pass(self, grown: bool) -> bool:
        """Prepare the totals for a pass; return whether it may skip vectors.

        grown: there are vectors now that the last pass did not have.
        """
        self.totals.inertia, self.totals.rescored = 0.0, 0
        if self.age >= _REBUILD:
            self.age = 0
        if self.age == 0:
            self.totals.clear()
            return False
        return not grown and not math.isnan(self.spread)

    def survivors(self, places: Tensor | None = None) -> Tensor:
        """Return which of the vectors (all, or those at places (m,)) must be assigned again, bool."""
        upper, lower = (self.upper, self.lower) if places is None else (self.upper[places], self.lower[places])
        return ~(upper * _MARGIN < lower)

    def update(self, points: Tensor, places: Tensor, found: Assignment, weights: np.ndarray | None) -> None:
        """Take in newly assigned points (m, D) at places (m,) with their weights (m,)."""
        old = self.labels[places].to(torch.int64)
        self.totals.measure(found, weights)
        if self.age == 0:
            self.totals.accumulate(points, found.labels, weights)
        else:
            self._move(points, old, found.labels, weights)
        self.labels[places] = found.labels.to(torch.int32)
        self.upper[places] = distance_bound(found.distances, up=True)
        second = found.second_distances
        self.lower[places] = 0.0 if second is None else distance_bound(second, up=False)

    def measure_gap(self, found: Assignment) -> None:
        """Remember how far the bounds of newly assigned points lie apart, by their runner-ups."""
        assert found.second_distances is not None
        self.gap = float((found.second_distances.sqrt() - found.distances.sqrt()).median())

    def _move(self, points: Tensor, old: Tensor, new: Tensor, weights: np.ndarray | None) -> None:
        moved = old != new
        for chosen, labels, sign in ((moved & (old != _NONE), old, -1), (moved, new, 1)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                part = None if weights is None else weights[rows.cpu().numpy()]
                self.totals.accumulate(points[rows], labels[rows], part, sign)

    def inertia(self, centroids: Tensor, totals: Totals, skipped: bool) -> float:
        """Return the inertia of a pass under centroids (k, D), from its totals; remember the spread.

        sum w |x - c|^2 = spread - 2 sum_j S_j·c_j + sum_j m_j |c_j|^2 about the origin: vectors that were skipped,
        whose distances nobody measured, count too.
        """
        wide = centroids.to(torch.float64) - self.origin
        mass = totals.weights.to(torch.float64)
        sums = totals.sums - mass[:, None] * self.origin
        explained = float((2 * (sums * wide).sum(dim=1) - mass * wide.square().sum(dim=1)).sum())
        if not skipped:
            self.spread = totals.inertia + explained
        return max(0.0, self.spread - explained) if skipped else totals.inertia

    def centroids_moved(self, before: Tensor, after: Tensor) -> None:
        """Widen the bounds for centroids (k, D) that moved, and end the pass."""
        moves = (after.to(torch.float64) - before.to(torch.float64)).square_().sum(dim=1).sqrt_().mul_(1 + 2.0**-40)
        largest = torch.topk(moves, min(2, len(moves)))
        others = torch.full_like(moves, float(largest.values[0]))
        others[largest.indices[0]] = float(largest.values[1]) if len(moves) > 1 else 0.0
        labels = self.labels.clamp(min=0).to(torch.int64)
        self.upper.add_(_outwards(moves)[labels]).mul_(_OUT)
        self.lower.sub_(_outwards(others)[labels]).mul_(_IN).clamp_(min=0)
        self.drift = float(moves.mean() + others.mean())
        self.age += 1


def distance_bound(squares: Tensor, *, up: bool) -> Tensor:
    """Return float32 bounds, from above or below, of distances whose squares (m,) were rounded to float32."""
    wide = squares.to(torch.float64)
    if up:
        return _outwards((wide * (1 + 2.0**-23) + _TINY).sqrt())
    return ((wide * (1 - 2.0**-23) - _TINY).clamp(min=0).sqrt() * _IN).to(torch.float32)


def _outwards(values: Tensor) -> Tensor:
    """Return float32 numbers not below float64 ones."""
    return (values * _OUT + _TINY).to(torch.float32)
