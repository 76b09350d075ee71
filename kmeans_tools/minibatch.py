"""Mini-batch k-means: nested batches for vectors that can be read again, running means for those that cannot.

Nested batches (Newling and Fleuret 2016): every batch holds the one before, none is drawn twice, and a centroid is the
mean of the vectors of the batch that have its label now; a vector that changes its label takes what it added with it.
So a round is a Lloyd iteration on the batch, skipping included, and the batch grows when the means have settled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, nearest_centroid
from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.sources.vectors import Weights

STARVED = 0.05  # share of the mean cluster below which a cluster may be given up when the batch grows

_FIRST_ROWS = 4096
_FIRST_PER_CENTROID = 16
_GROWTH = 2.0
_SETTLED = 0.5


def first_share(k: int, rows: int, batch_rows: int | None) -> float:
    """Return the share of so many rows in the first batch: `batch_rows` (4096) of them, or 16 per centroid if more."""
    return min(1.0, max(batch_rows or _FIRST_ROWS, _FIRST_PER_CENTROID * k) / rows)


def grown_share(share: float) -> float:
    """Return the share of the next batch."""
    return min(1.0, _GROWTH * share)


def noise_level(k: int, rows: float) -> float:
    """Return the relative fall of the inertia per round below which the means of a batch have settled.

    The mean of n vectors of variance s^2 lies sqrt(s^2 / n) off, which adds about k / rows to the inertia, relatively:
    moving means by less than half of that is fitting noise.
    """
    return _SETTLED * k / rows


@dataclass
class RunningMeans:
    """Centroids as the means of all vectors that were ever assigned to them: c <- c + b / (n + b) (mean - c).

    centroids: (k, D) float32 or float64; in float32 they stop once steps are below their rounding. mass: (k,) float64,
    the weight of the vectors that each one stands for so far.
    """

    centroids: Tensor
    mass: Tensor

    def add(self, points: Tensor, weights: Weights | None = None, *, precision: str = "exact") -> Assignment:
        """Assign points (n, D) of weights (n,), move the centroids that they go to, and return where they went.

        Raises:
            ValueError: a point with NaN or infinity.
        """
        found = nearest_centroid(points, self.centroids, precision=precision)
        k, old = len(self.centroids), self.centroids.to(torch.float64)
        masses = torch.ones(len(points)) if weights is None else torch.from_numpy(weights)
        masses = masses.to(points.device, torch.float64)[:, None]
        self.mass += centroid_sums(masses, found.labels, k)[0][:, 0]
        # Differences keep the digits that sums would lose to an offset.
        shares = masses / self.mass[found.labels, None].clamp(min=torch.finfo(torch.float64).tiny)
        steps = centroid_sums(shares * (points.to(torch.float64) - old[found.labels]), found.labels, k)[0]
        self.centroids.copy_(old + steps)
        return found
