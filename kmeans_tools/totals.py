"""What the vectors of a pass add up to: the only thing that passes over blocks, or several processes, must combine."""

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment
from sctok.kernels.update import centroid_sums

from .distributed import Group
from .sources import Weights


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

    def clear(self) -> None:
        """Forget everything."""
        for tensor in (self.sums, self.counts, self.mass):
            if tensor is not None:
                tensor.zero_()
        self.inertia, self.rescored = 0.0, 0

    def add(self, points: Tensor, found: Assignment, weights: Weights | None = None) -> None:
        """Add points (n, D) with their labels and distances, and their weights (n,): for one fit always or never."""
        self.measure(found, weights)
        self.accumulate(points, found.labels, weights)

    def measure(self, found: Assignment, weights: Weights | None) -> None:
        """Add distances and re-scored rows. Raises ValueError where squared distances overflow float32."""
        # NumPy's pairwise sum has one order; that of torch depends on the number of threads.
        distances = found.distances.cpu().numpy()
        self.inertia += float((distances if weights is None else distances * weights).sum(dtype=np.float64))
        self.rescored += found.rescored
        if not np.isfinite(self.inertia):
            raise ValueError("squared distances overflow float32; scale the vectors down")

    def accumulate(self, points: Tensor, labels: Tensor, weights: Weights | None, sign: int = 1) -> None:
        """Add points (n, D) of labels (n,) to their clusters, or with sign -1 take them away."""
        k, device = len(self.counts), points.device
        if weights is None:
            counts = torch.zeros_like(self.counts)
            centroid_sums(points if sign > 0 else -points, labels, k, out=(self.sums, counts))
        else:
            kept = torch.from_numpy(np.flatnonzero(weights)).to(device)
            masses = sign * torch.from_numpy(weights).to(device)[kept, None]
            if self.mass is None:
                self.mass = torch.zeros(k, dtype=torch.float64, device=device)
            counts = torch.zeros_like(self.counts)
            centroid_sums(points[kept].to(torch.float64) * masses, labels[kept], k, out=(self.sums, counts))
            self.mass += centroid_sums(masses, labels[kept], k)[0][:, 0]
        self.counts += sign * counts
        if sign < 0:
            self._empty_out()

    def _empty_out(self) -> None:
        """Leave nothing of rounding where the last vector has gone."""
        empty = self.counts == 0
        self.sums[empty] = 0
        if self.mass is not None:
            self.mass[empty] = 0

    def over(self, group: Group) -> "Totals":
        """Return the totals of all ranks together; those of this rank stay as they are."""
        if group.world == 1:
            return self
        combined = Totals(len(self.counts), self.sums.shape[1], self.sums.device)
        combined.sums.copy_(self.sums)
        combined.counts.copy_(self.counts)
        group.sum_(combined.sums, combined.counts)
        parts = group.gather((self.inertia, self.rescored, self.mass is not None))
        combined.inertia, combined.rescored = sum(part[0] for part in parts), sum(part[1] for part in parts)
        if any(part[2] for part in parts):
            combined.mass = torch.zeros_like(self.sums[:, 0]) if self.mass is None else self.mass.clone()
            group.sum_(combined.mass)
        return combined

    def means(self, clusters: Tensor) -> Tensor:
        """Return the means (c, D) float32 of some clusters (c,), none of them empty."""
        return (self.sums[clusters] / self.weights[clusters, None]).to(torch.float32)
