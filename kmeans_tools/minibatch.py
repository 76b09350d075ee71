"""Mini-batch k-means: centroids as true running means of the vectors assigned to them."""

import torch
from torch import Tensor

from .config import KMeansConfig
from .lloyd import ClusterState, Totals, make_assigner
from .repair import RepairPool, repair_dead
from .sources import Block

_REPAIR = 3

# Vectors that a centroid of the pass before stands for, as a share of its cluster. With all of them early, bad
# assignments weigh on the mean for good; with none the first batch alone decides it. Of 1, 0.5, 0.25, 0.1 and 0.02 a
# tenth gave the lowest inertia after 3, 5 and 10 passes.
_CARRIED = 0.1


class MiniBatchPass:
    """One pass over shuffled batches, after each of which the centroids move.

    A centroid is the mean of every vector that was assigned to it in this pass, c <- c + b / (n + b) (mean - c) for a
    batch of b after n vectors, kept as a float64 sum and a count so that no rounding builds up. It starts as that of
    the pass before with the weight of a tenth of its cluster.
    """

    def __init__(self, state: ClusterState, config: KMeansConfig) -> None:
        self.state = state
        self._config = config
        k, dim = state.centroids.shape
        self._centroids = state.centroids.clone()
        self._running = Totals(k, dim, state.centroids.device)
        if state.counts is not None:
            carried = (state.counts.to(torch.float64) * _CARRIED).ceil()
            self._running.counts.copy_(carried)
            self._running.mass = carried if state.counts.is_floating_point() else None
            self._running.sums.copy_(self._centroids).mul_(carried[:, None])
        self._carried = self._running.weights.clone()
        self._pool = RepairPool(k, dim, (config.seed, k, _REPAIR, state.passes))

    def add(self, points: Tensor, block: Block) -> None:
        """Take in one batch: points (n, D) float32 on the device, and the same on the host."""
        running = self._running
        found = make_assigner(self._centroids, self._config, final=False)(points)
        running.add(points, found, block.weights)
        self._pool.offer(block, found.distances.cpu().numpy())
        touched = torch.unique(found.labels)
        touched = touched[running.counts[touched] > 0]
        self._centroids[touched] = running.means(touched)

    def finish(self) -> None:
        """Record the inertia, each batch measured before it moved the centroids, and repair dead centroids."""
        state = self.state
        counts = self._running.weights - self._carried
        moved = repair_dead(self._centroids, (counts == 0).nonzero()[:, 0], self._pool)
        state.centroids, state.counts = self._centroids, counts
        state.history.append(self._running.inertia)
        state.settle(self._config, len(moved))
