"""Distance bounds of every vector, with which most vectors skip the comparison with all centroids.

A vector keeps its centroid, with index a, if an upper bound u of the distance to it is below a lower bound l of the
distance to every other centroid. When each centroid j moves by p_j, u grows by p_a and l falls by the largest p_j with
j != a (Hamerly 2010). If a few centroids move far, the vector is compared only with these movers. Then l falls only by
the largest move of the remaining centroids, which is 0 once they stand still.

Bounds are rounded outwards, and a vector is skipped only if u (1 + 2^-20) < l. This margin excludes ties and is far
larger than the errors of the float64 distances that define the nearest centroid, so skipping never changes a label.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances

from .cluster_sums import ClusterSums
from .moved_centroids import MovedCentroids

BYTES_PER_VECTOR = 12
DEFAULT_MEMORY = 16 << 30  # if the settings give none
_SHARE_OF_MEMORY = 8

_MARGIN = 1 + 2.0**-20
_OUT, _IN = 1 + 2.0**-22, 1 - 2.0**-22  # factors that exceed a float32 rounding
_TINY = 2.0**-126  # largest error of a float32 that is subnormal or flushed to zero
_REBUILD = 64  # the sums are computed again after this number of passes
_NONE = -1
_TIGHT = 2.0  # bounds hold for most vectors if their gap exceeds the typical move by this factor
_SCREENED_ROWS = 1 << 16
_PER_MOVER = 8  # at most one centroid in this number is a mover
_SCREENED_CENTROIDS = 2048  # with fewer centroids, comparing with movers first is not faster


def bounds_fit(rows: int, memory: int | None) -> bool:
    """Return whether the bounds of all rows fit an eighth of `memory` bytes, by default of 16 GiB."""
    return rows * BYTES_PER_VECTOR <= (memory or DEFAULT_MEMORY) // _SHARE_OF_MEMORY


class Moves:
    """Moves of k centroids in the last update: distances (k,) float64, rounded up.

    movers: (m,) int64, the centroids that moved farthest. slow: the largest move of the centroids that are not movers.
    others: (k,), for each centroid the largest move of any other centroid.
    """

    def __init__(self, moves: Tensor) -> None:
        k = len(moves)
        order = torch.argsort(moves, descending=True, stable=True)
        moving = int((moves > 0).sum())
        count = min(moving, k // _PER_MOVER) if k >= _SCREENED_CENTROIDS else 0
        self.moves = moves
        self.movers = order[:count].sort().values
        self.slow = float(moves[order[count]]) if count < k else 0.0
        self.others = torch.full_like(moves, float(moves[order[0]]))
        self.others[order[0]] = float(moves[order[1]]) if k > 1 else 0.0

    @property
    def typical(self) -> float:
        """Sum of the growth of u and the fall of l for most vectors."""
        return float(self.moves.mean()) + self.slow


@dataclass
class Bounds:
    """Bounds of n vectors, indexed by place, and the sums of their clusters.

    labels: (n,) int32, the last assignment, -1 before the first. upper, lower: (n,) float32, bounds of the Euclidean
    distances to the centroid of that label and to any other, before the centroids moved by `moves` (k,) float64.
    cluster_sums: the sums of all vectors by `labels`. spread: weighted sum of the squared distances of these vectors to
    `origin` (D,) float64, NaN until it is known. age: number of passes since the sums were last computed from all
    vectors. gap: median of l - u in a block. ranked: whether the last assignment had runner-ups.
    """

    labels: Tensor
    upper: Tensor
    lower: Tensor
    origin: Tensor
    moves: Tensor
    cluster_sums: ClusterSums
    spread: float = math.nan
    age: int = 0
    gap: float = 0.0
    ranked: bool = False
    last: Moves = field(init=False, repr=False)
    _touched: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.last = Moves(self.moves)
        self._touched = torch.zeros(0, dtype=torch.bool)

    @classmethod
    def empty(cls, rows: int, centroids: Tensor) -> "Bounds":
        """Return the bounds before the first pass over `rows` vectors, for centroids (k, D)."""
        k, dim = centroids.shape
        device = centroids.device
        return cls(
            labels=torch.full((rows,), _NONE, dtype=torch.int32, device=device),
            upper=torch.full((rows,), math.inf, device=device),
            lower=torch.zeros(rows, device=device),
            origin=centroids.to(torch.float64).mean(dim=0),
            moves=torch.zeros(k, dtype=torch.float64, device=device),
            cluster_sums=ClusterSums(k, dim, device),
        )

    @property
    def tight(self) -> bool:
        """Whether centroids move so little that the distances of runner-ups are worth their time."""
        return _TIGHT * self.last.typical < self.gap

    @property
    def screens(self) -> bool:
        """Whether comparing vectors only with the movers will decide many of them."""
        return self.last.slow == 0 or (len(self.last.movers) > 0 and self.tight and self.ranked)

    def start_pass(self, grown: bool) -> bool:
        """Prepare the cluster sums for a pass; return whether the pass can skip vectors.

        grown: the pass includes vectors that the last one did not have.
        """
        self._touched = torch.zeros_like(self.labels, dtype=torch.bool)
        self.cluster_sums.start_pass()
        if self.age >= _REBUILD:
            self.age = 0
        if self.age == 0:
            self.cluster_sums.clear()
            return False
        return not grown and not math.isnan(self.spread)

    def survivors(self, places: Tensor | None = None) -> Tensor:
        """Return a mask of the vectors (all, or those at places (m,)) whose nearest centroid may have changed."""
        part = slice(None) if places is None else places
        labels = self.labels[part]
        if not len(self.last.movers) and not self.last.slow:
            return labels == _NONE
        upper, lower = self._widened(self.upper[part], self.lower[part], labels)
        return ~(upper * _MARGIN < lower)

    def _widened(self, upper: Tensor, lower: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        index = labels.clamp(min=0).to(torch.int64)
        upper = (upper + _outwards(self.last.moves)[index]) * _OUT
        return upper, ((lower - _outwards(self.last.others)[index]) * _IN).clamp_(min=0)

    def screen(
        self, points: Tensor, places: Tensor, rows: Tensor, centroids: Tensor, movers: MovedCentroids | None
    ) -> Tensor:
        """Compare rows (m,) of points (n, D) at places (n,) with the movers; return the undecided rows, int64.

        centroids: the current ones (k, D). movers: the movers among them, or None if there are none.
        """
        left = [rows[:0]]
        for part in () if not len(rows) else torch.split(rows, _SCREENED_ROWS if movers is None else movers.step):
            first, last = int(part[0]), int(part[-1]) + 1
            # Copying rows takes longer than comparing a few that do not need it.
            span = slice(first, last) if last - first < 2 * len(part) else part
            labels = self.labels[places[span]].to(torch.int64).clamp(min=0)
            others = torch.full((), math.inf, device=points.device).expand(len(labels))
            if movers is not None:
                others = movers.distances_below(points[span], labels)
            if isinstance(span, slice):
                others = others[part - first]
            left.append(part[self._undecided(points, part, places[part], centroids, others)])
        return torch.cat(left)

    def _undecided(self, points: Tensor, rows: Tensor, places: Tensor, centroids: Tensor, others: Tensor) -> Tensor:
        """Return a mask (m,) of the undecided rows (m,) of points; `others` (m,): lower bounds of movers' distances."""
        labels = self.labels[places].to(torch.int64)
        upper, lower = self.upper[places], self.lower[places]
        moved = (self.last.moves[labels] > 0).nonzero()[:, 0]
        if len(moved):
            now = label_distances(points[rows[moved]], centroids, labels[moved])
            upper[moved] = distance_bound(now, up=True)
        if self.last.slow:
            lower = ((lower - _outwards(torch.tensor(self.last.slow))) * _IN).clamp_(min=0)
        # If neither the own centroid nor a non-mover moved, only the movers need a bound.
        needed = torch.minimum(lower, others) if self.last.slow else others.clone()
        needed[moved] = torch.minimum(lower[moved], others[moved])
        stays = upper * _MARGIN < needed
        self._store(places[stays], upper[stays], torch.minimum(lower, others)[stays])
        return ~stays

    def _store(self, places: Tensor, upper: Tensor, lower: Tensor) -> None:
        self.upper[places] = upper
        self.lower[places] = lower
        self._touched[places] = True

    def update(self, points: Tensor, places: Tensor, found: Assignment, weights: np.ndarray | None) -> None:
        """Update labels, bounds and sums for newly assigned points (m, D) at places (m,) with weights (m,)."""
        old = self.labels[places].to(torch.int64)
        self.cluster_sums.measure(found, weights)
        if self.age == 0:
            self.cluster_sums.accumulate(points, found.labels, weights)
        else:
            self._move(points, old, found.labels, weights)
        self.labels[places] = found.labels.to(torch.int32)
        self.ranked = found.second_distances is not None
        second = found.distances if found.second_distances is None else found.second_distances
        self._store(places, distance_bound(found.distances, up=True), distance_bound(second, up=False))

    def measure_gap(self, found: Assignment) -> None:
        """Measure the median gap between the bounds of newly assigned points; `found` has their runner-ups."""
        assert found.second_distances is not None
        self.gap = float((found.second_distances.sqrt() - found.distances.sqrt()).median())

    def _move(self, points: Tensor, old: Tensor, new: Tensor, weights: np.ndarray | None) -> None:
        moved = old != new
        for chosen, labels, sign in ((moved & (old != _NONE), old, -1), (moved, new, 1)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                part = None if weights is None else weights[rows.cpu().numpy()]
                self.cluster_sums.accumulate(points[rows], labels[rows], part, sign)

    def inertia(self, centroids: Tensor, cluster_sums: ClusterSums, skipped: bool) -> float:
        """Return the inertia of a pass with centroids (k, D) from its cluster sums; also update the spread.

        sum w |x - c|^2 = spread - 2 sum_j S_j·c_j + sum_j m_j |c_j|^2 relative to the origin. This includes the skipped
        vectors, whose distances were not computed.
        """
        wide = centroids.to(torch.float64) - self.origin
        mass = cluster_sums.weights.to(torch.float64)
        sums = cluster_sums.sums - mass[:, None] * self.origin
        explained = float((2 * (sums * wide).sum(dim=1) - mass * wide.square().sum(dim=1)).sum())
        if not skipped:
            self.spread = cluster_sums.inertia + explained
        return max(0.0, self.spread - explained) if skipped else cluster_sums.inertia

    def centroids_moved(self, before: Tensor, after: Tensor) -> None:
        """End a pass after which centroids (k, D) moved; widen the bounds of vectors that the pass did not update."""
        skipped = (~self._touched).nonzero()[:, 0]
        if len(skipped):
            self._store(skipped, *self._widened(self.upper[skipped], self.lower[skipped], self.labels[skipped]))
        gaps = (after.to(torch.float64) - before.to(torch.float64)).square_().sum(dim=1).sqrt_()
        self.moves = gaps * (1 + 2.0**-40)
        self.last = Moves(self.moves)
        self.age += 1


def distance_bound(squares: Tensor, *, up: bool) -> Tensor:
    """Return upper or lower float32 bounds of distances whose squares (m,) were rounded to float32."""
    wide = squares.to(torch.float64)
    if up:
        return _outwards((wide * (1 + 2.0**-23) + _TINY).sqrt())
    return ((wide * (1 - 2.0**-23) - _TINY).clamp(min=0).sqrt() * _IN).to(torch.float32)


def _outwards(values: Tensor) -> Tensor:
    """Convert float64 values to float32 values that are not smaller."""
    return (values * _OUT + _TINY).to(torch.float32)
