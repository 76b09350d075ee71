"""What a fit remembers of every vector from pass to pass, so that most need not be compared with all centroids again.

A vector keeps its centroid while an upper bound u of the distance to it stays below a lower bound l of the distance to
every other one. When centroids move by p_j, u grows by p_a and l falls by the largest p_j with j != a (Hamerly 2010).
Where that is too much because some centroids move far, the vector is compared with these movers alone: l then falls
only by what the others move, which is nothing once most stand still. Bounds are rounded outwards, and only
u (1 + 2^-20) < l counts: far more than the float64 distances that define the nearest centroid can be wrong by, and no
ties. Skipping never changes a label.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances

from .cluster_sums import Totals
from .moved_centroids import Movers

BYTES_PER_VECTOR = 12
DEFAULT_MEMORY = 16 << 30  # where the settings give none
_SHARE_OF_MEMORY = 8

_MARGIN = 1 + 2.0**-20
_OUT, _IN = 1 + 2.0**-22, 1 - 2.0**-22  # more than a float32 rounding
_TINY = 2.0**-126  # what a float32 may lose where it is subnormal, or flushed to zero
_REBUILD = 64  # passes after which sums are added up afresh
_NONE = -1
_TIGHT = 2.0  # gaps to moves from which bounds hold for most vectors
_SCREENED_ROWS = 1 << 16
_PER_MOVER = 8  # centroids per mover at least
_SCREENED_CENTROIDS = 2048  # from which comparing with all takes longer than comparing with movers first


def bounds_fit(rows: int, memory: int | None) -> bool:
    """Return whether the state of so many vectors fits an eighth of the memory in bytes (None: of 16 GiB)."""
    return rows * BYTES_PER_VECTOR <= (memory or DEFAULT_MEMORY) // _SHARE_OF_MEMORY


class Moves:
    """How far k centroids moved in the last update, by moves (k,) float64, rounded up.

    movers: (m,) int64, the centroids to compare with; slow: bound of the moves of all others. among: (k,) bool, which
    are movers. others: (k,), the largest move of any other centroid.
    """

    def __init__(self, moves: Tensor) -> None:
        k = len(moves)
        order = torch.argsort(moves, descending=True, stable=True)
        moving = int((moves > 0).sum())
        count = min(moving, k // _PER_MOVER) if k >= _SCREENED_CENTROIDS else 0
        self.moves = moves
        self.movers = order[:count].sort().values
        self.slow = float(moves[order[count]]) if count < k else 0.0
        self.among = torch.zeros(k, dtype=torch.bool, device=moves.device)
        self.among[self.movers] = True
        self.others = torch.full_like(moves, float(moves[order[0]]))
        self.others[order[0]] = float(moves[order[1]]) if k > 1 else 0.0

    @property
    def typical(self) -> float:
        """What u grows and l falls by for most vectors."""
        return float(self.moves.mean()) + self.slow


@dataclass
class Bounds:
    """State of n vectors, by their places, and of k clusters.

    labels: (n,) int32 of the last assignment, -1 where there was none. upper, lower: (n,) float32, of the Euclidean
    distances to the centroid of that label and to any other, before the centroids moved by `moves` (k,) float64.
    totals: of all vectors by `labels`. spread: weighted sum of the squared distances of these vectors to `origin` (D,)
    float64, NaN until it is known. age: passes since the sums were added up afresh. gap: median of l - u in a
    block. ranked: whether runners-up were asked for last.
    """

    labels: Tensor
    upper: Tensor
    lower: Tensor
    origin: Tensor
    moves: Tensor
    totals: Totals
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
        """Return the state before the first pass over `rows` vectors, for centroids (k, D)."""
        k, dim = centroids.shape
        device = centroids.device
        return cls(
            labels=torch.full((rows,), _NONE, dtype=torch.int32, device=device),
            upper=torch.full((rows,), math.inf, device=device),
            lower=torch.zeros(rows, device=device),
            origin=centroids.to(torch.float64).mean(dim=0),
            moves=torch.zeros(k, dtype=torch.float64, device=device),
            totals=Totals(k, dim, device),
        )

    @property
    def tight(self) -> bool:
        """Whether centroids move so little that the distances of runners-up, which cost some time, will pay."""
        return _TIGHT * self.last.typical < self.gap

    @property
    def screens(self) -> bool:
        """Whether comparing vectors with the movers alone will settle many of them."""
        return self.last.slow == 0 or (len(self.last.movers) > 0 and self.tight and self.ranked)

    def start_pass(self, grown: bool) -> bool:
        """Prepare the totals for a pass; return whether it may skip vectors.

        grown: there are vectors now that the last pass did not have.
        """
        self._touched = torch.zeros_like(self.labels, dtype=torch.bool)
        self.totals.start_pass()
        if self.age >= _REBUILD:
            self.age = 0
        if self.age == 0:
            self.totals.clear()
            return False
        return not grown and not math.isnan(self.spread)

    def survivors(self, places: Tensor | None = None) -> Tensor:
        """Return which of the vectors (all, or those at places (m,)) may have another nearest centroid now, bool."""
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

    def screen(self, points: Tensor, places: Tensor, rows: Tensor, centroids: Tensor, movers: Movers | None) -> Tensor:
        """Compare rows (m,) of points (n, D) at places (n,) with the movers; return those undecided, int64.

        centroids: (k, D) as they are now. movers: those among them, None where there are none.
        """
        left = [rows[:0]]
        for part in () if not len(rows) else torch.split(rows, _SCREENED_ROWS if movers is None else movers.step):
            first, last = int(part[0]), int(part[-1]) + 1
            # Copying rows costs more than comparing some that need not be.
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
        """Return which rows (m,) of points, at places (m,) and `others` (m,) from movers, are undecided, bool."""
        labels = self.labels[places].to(torch.int64)
        upper, lower = self.upper[places], self.lower[places]
        moved = (self.last.moves[labels] > 0).nonzero()[:, 0]
        if len(moved):
            now = label_distances(points[rows[moved]], centroids, labels[moved])
            upper[moved] = distance_bound(now, up=True)
        if self.last.slow:
            lower = ((lower - _outwards(torch.tensor(self.last.slow))) * _IN).clamp_(min=0)
        # Where neither the own centroid nor those that are no movers moved, these need no bound.
        needed = torch.minimum(lower, others) if self.last.slow else others.clone()
        needed[moved] = torch.minimum(lower[moved], others[moved])
        stays = upper * _MARGIN < needed
        self._keep(places[stays], upper[stays], torch.minimum(lower, others)[stays])
        return ~stays

    def _keep(self, places: Tensor, upper: Tensor, lower: Tensor) -> None:
        self.upper[places] = upper
        self.lower[places] = lower
        self._touched[places] = True

    def update(self, points: Tensor, places: Tensor, found: Assignment, weights: np.ndarray | None) -> None:
        """Take in newly assigned points (m, D) at places (m,) with their weights (m,)."""
        old = self.labels[places].to(torch.int64)
        self.totals.measure(found, weights)
        if self.age == 0:
            self.totals.accumulate(points, found.labels, weights)
        else:
            self._move(points, old, found.labels, weights)
        self.labels[places] = found.labels.to(torch.int32)
        self.ranked = found.second_distances is not None
        second = found.distances if found.second_distances is None else found.second_distances
        self._keep(places, distance_bound(found.distances, up=True), distance_bound(second, up=False))

    def measure_gap(self, found: Assignment) -> None:
        """Remember how far the bounds of newly assigned points lie apart, by their runners-up."""
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
        """End a pass whose centroids (k, D) moved: vectors that it left alone go by bounds of before the pass."""
        left = (~self._touched).nonzero()[:, 0]
        if len(left):
            self._keep(left, *self._widened(self.upper[left], self.lower[left], self.labels[left]))
        gaps = (after.to(torch.float64) - before.to(torch.float64)).square_().sum(dim=1).sqrt_()
        self.moves = gaps * (1 + 2.0**-40)
        self.last = Moves(self.moves)
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
