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
from .sources import Block, Weights

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
    """What the blocks that were added sum up to, cluster by cluster.

    sums: (k, D) float64, weighted. counts: (k,) int64, vectors of positive weight. mass: (k,) float64, their weights,
    None where every vector weighs 1. inertia: weighted sum of squared distances. rescored: rows.
    """

    def __init__(self, k: int, dim: int, device: torch.device) -> None:
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.counts = torch.zeros(k, dtype=torch.int64, device=device)
        self.mass: Tensor | None = None
        self.inertia = 0.0
        self.rescored = 0

    @property
    def weights(self) -> Tensor:
        """The mass of each cluster: (k,) int64, or float64 where vectors are weighted."""
        return self.counts if self.mass is None else self.mass

    def add(self, points: Tensor, found: Assignment, weights: Weights | None = None) -> None:
        """Add points (n, D) with their labels and distances, and their weights (n,): for one fit always or never."""
        self.inertia += weighted_sum(found.distances, weights)
        self.rescored += found.rescored
        if not np.isfinite(self.inertia):
            raise ValueError("squared distances overflow float32; scale the vectors down")
        if weights is None:
            centroid_sums(points, found.labels, len(self.counts), out=(self.sums, self.counts))
        else:
            self._add_weighted(points, found.labels, weights)

    def _add_weighted(self, points: Tensor, labels: Tensor, weights: Weights) -> None:
        k, device = len(self.counts), points.device
        kept = torch.from_numpy(np.flatnonzero(weights)).to(device)
        masses = torch.from_numpy(weights).to(device)[kept, None]
        if self.mass is None:
            self.mass = torch.zeros(k, dtype=torch.float64, device=device)
        centroid_sums(points[kept].to(torch.float64) * masses, labels[kept], k, out=(self.sums, self.counts))
        self.mass += centroid_sums(masses, labels[kept], k)[0][:, 0]

    def means(self, clusters: Tensor) -> Tensor:
        """Return the means (c, D) float32 of some clusters (c,), none of them empty."""
        return (self.sums[clusters] / self.weights[clusters, None]).to(torch.float32)


def weighted_sum(distances: Tensor, weights: Weights | None) -> float:
    """Return the sum of distances (n,), times their weights, in float64."""
    # NumPy's pairwise sum has one order; that of torch depends on the number of threads.
    values = distances.cpu().numpy()
    return float((values if weights is None else values * weights).sum(dtype=np.float64))


class LloydPass:
    """One iteration: assign every vector, then move each centroid to the mean of its cluster."""

    def __init__(self, state: ClusterState, config: KMeansConfig, rows: int, mass: float) -> None:
        self.state = state
        self._config = config
        self._mass = mass
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
            weights = None if block.weights is None else block.weights[kept]
            block = Block(block.places[kept], block.rows[kept], weights)
        if not len(points):
            return
        found = self._assign(points)
        self._totals.add(points, found, block.weights)
        self._pool.offer(block, found.distances.cpu().numpy())

    def finish(self) -> None:
        """Move the centroids and record the inertia that the old ones had."""
        totals, state = self._totals, self.state
        seen = float(totals.weights.sum())
        used = (totals.counts > 0).nonzero()[:, 0]
        state.centroids = state.centroids.clone()
        state.centroids[used] = totals.means(used)
        moved = repair_dead(state.centroids, (totals.counts == 0).nonzero()[:, 0], self._pool)
        state.history.append(totals.inertia * (self._mass / seen if seen else 1.0))
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
        self.totals.add(points, self._assign(points), block.weights)

    def finish(self) -> None:
        """Record the inertia."""
        self.state.history.append(self.totals.inertia)
