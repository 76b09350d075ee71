"""Lloyd's algorithm, one pass over the vectors at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, nearest_centroid, prepare_centroids
from sctok.kernels.update import centroid_sums

from .config import KMeansConfig
from .faiss_backend import FaissAssigner
from .hashing import place_uniforms
from .repair import RepairPool, repair_dead
from .sources import Block

_SUBSET, _REPAIR = 1, 2  # keep the random numbers of different purposes apart

Assigner = Callable[[Tensor], Assignment]


@dataclass
class ClusterState:
    """One codebook in the making, complete between two passes.

    centroids: (k, D) float32. counts: (k,) int64, vectors per cluster in the last pass of mini-batches, None for Lloyd.
    history: inertia of each pass. converged: the tolerance was reached. settled: only the final pass is left.
    """

    centroids: Tensor
    counts: Tensor | None = None
    history: list[float] = field(default_factory=list)
    converged: bool = False
    settled: bool = False

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def passes(self) -> int:
        """Passes done."""
        return len(self.history)

    def settle(self, config: KMeansConfig, repaired: int) -> None:
        """Decide after a pass whether another one is worth it."""
        if self.passes >= 2 and not repaired:
            before, now = self.history[-2:]
            self.converged = before - now <= config.tol * before
        self.settled = self.converged or self.history[-1] == 0 or self.passes >= config.most_iterations


def make_assigner(centroids: Tensor, config: KMeansConfig, *, final: bool) -> Assigner:
    """Return the function that assigns points (n, D) float32 to these centroids (k, D)."""
    if config.backend == "faiss" and not (final and config.precision == "exact"):
        return FaissAssigner(centroids)
    prepared = prepare_centroids(centroids, precision=config.precision)
    return lambda points: nearest_centroid(points, prepared)


class Totals:
    """Sums (k, D) float64, counts (k,) int64, inertia and re-scored rows of the blocks that were added."""

    def __init__(self, k: int, dim: int, device: torch.device) -> None:
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.counts = torch.zeros(k, dtype=torch.int64, device=device)
        self.inertia = 0.0
        self.rescored = 0

    def add(self, points: Tensor, found: Assignment) -> None:
        """Add points (n, D) with their labels and distances."""
        centroid_sums(points, found.labels, len(self.counts), out=(self.sums, self.counts))
        self.inertia += _sum(found.distances)
        self.rescored += found.rescored
        if not np.isfinite(self.inertia):
            raise ValueError("squared distances overflow float32; scale the vectors down")


def _sum(distances: Tensor) -> float:
    # NumPy's pairwise sum has one order; that of torch depends on the number of threads.
    return float(distances.cpu().numpy().sum(dtype=np.float64))


class LloydPass:
    """One iteration: assign every vector, then move each centroid to the mean of its cluster."""

    def __init__(self, state: ClusterState, config: KMeansConfig, rows: int) -> None:
        self.state = state
        self._config = config
        self._rows = rows
        k, dim = state.centroids.shape
        self._assign = make_assigner(state.centroids, config, final=False)
        self._totals = Totals(k, dim, state.centroids.device)
        self._pool = RepairPool(k, dim, (config.seed, k, _REPAIR, state.passes))
        limit = config.max_points_per_centroid
        self._share = min(1.0, k * limit / rows) if limit else 1.0

    def add(self, points: Tensor, block: Block) -> None:
        """Take in one block: points (n, D) float32 on the device, and the same on the host."""
        if self._share < 1:
            kept = place_uniforms(block.places, (self._config.seed, self.state.k, _SUBSET)) < self._share
            points = points[torch.from_numpy(kept).to(points.device)]
            block = Block(block.places[kept], block.rows[kept])
        if not len(points):
            return
        found = self._assign(points)
        self._totals.add(points, found)
        self._pool.offer(block, found.distances.cpu().numpy())

    def finish(self) -> None:
        """Move the centroids and record the inertia that the old ones had."""
        totals, state = self._totals, self.state
        seen = int(totals.counts.sum())
        used = totals.counts > 0
        state.centroids = state.centroids.clone()
        state.centroids[used] = (totals.sums[used] / totals.counts[used, None]).to(torch.float32)
        moved = repair_dead(state.centroids, (~used).nonzero()[:, 0], self._pool)
        state.history.append(totals.inertia * (self._rows / seen if seen else 1.0))
        state.settle(self._config, len(moved))


class FinalPass:
    """Assign every vector to the centroids that stay: the totals are those of the result."""

    def __init__(self, state: ClusterState, config: KMeansConfig) -> None:
        self.state = state
        k, dim = state.centroids.shape
        self._assign = make_assigner(state.centroids, config, final=True)
        self.totals = Totals(k, dim, state.centroids.device)

    def add(self, points: Tensor, block: Block) -> None:
        """Take in one block: points (n, D) float32 on the device."""
        self.totals.add(points, self._assign(points))

    def finish(self) -> None:
        """Record the inertia."""
        self.state.history.append(self.totals.inertia)
