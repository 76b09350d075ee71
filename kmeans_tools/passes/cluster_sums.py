"""Sums over the vectors of each cluster, which is all that blocks and ranks need to combine."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment
from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.sources.vectors import Weights
from sctok.runtime.distributed import Group

_LOWEST, _POWERS, _DIGITS = -149, 279, 24  # a float32 is an integer of at most 24 bits times 2**-173 … 2**104


class ExactSum:
    """An exact sum of float32 numbers, independent of their order and grouping; only `value` rounds, once.

    bins: (279,) int64, the sum of the 24-bit mantissas for each exponent, for at most 2^39 numbers.
    """

    def __init__(self) -> None:
        self.bins = np.zeros(_POWERS, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Add finite numbers (n,)."""
        mantissas, exponents = np.frexp(values)
        whole = np.ldexp(mantissas.astype(np.float64), _DIGITS)
        self.bins += np.bincount(exponents - _LOWEST + 1, whole, _POWERS).astype(np.int64)

    @property
    def value(self) -> float:
        """The sum as float64."""
        total = sum(int(count) << power for power, count in enumerate(self.bins) if count)
        return total / (1 << (_DIGITS - _LOWEST + 1))


class ClusterSums:
    """Sums over the vectors of each of k clusters.

    sums: (k, D) float64, weighted. counts: (k,) int64, number of vectors of positive weight. mass: (k,) float64, their
    total weight, or None if all vectors weigh 1. rescored: number of rows that needed float64.
    """

    def __init__(self, k: int, dim: int, device: torch.device) -> None:
        self.sums = torch.zeros((k, dim), dtype=torch.float64, device=device)
        self.counts = torch.zeros(k, dtype=torch.int64, device=device)
        self.mass: Tensor | None = None
        self.rescored = 0
        self._squares, self._weighted_squares = ExactSum(), 0.0

    @property
    def inertia(self) -> float:
        """Weighted sum of squared distances; without weights it does not depend on the order or grouping of vectors."""
        return self._squares.value + self._weighted_squares

    def start_pass(self) -> None:
        """Reset the distances and the number of rescored rows, but not the clusters."""
        self.rescored = 0
        self._squares, self._weighted_squares = ExactSum(), 0.0

    @property
    def weights(self) -> Tensor:
        """Weight of each cluster: (k,) int64, or float64 if vectors are weighted."""
        return self.counts if self.mass is None else self.mass

    def clear(self) -> None:
        """Reset all sums."""
        for tensor in (self.sums, self.counts, self.mass):
            if tensor is not None:
                tensor.zero_()
        self.start_pass()

    def add(self, points: Tensor, found: Assignment, weights: Weights | None = None) -> None:
        """Add points (n, D) with their assignment and weights (n,). A fit passes weights either always or never."""
        self.measure(found, weights)
        self.accumulate(points, found.labels, weights)

    def measure(self, found: Assignment, weights: Weights | None) -> None:
        """Add distances and the number of rescored rows. Raises ValueError if squared distances overflow float32."""
        distances = found.distances.cpu().numpy()
        if not np.isfinite(distances).all():
            raise ValueError("squared distances overflow float32; scale the vectors down")
        if weights is None:
            self._squares.add(distances)
        else:
            # NumPy's pairwise sum has a fixed order; the order of torch depends on the number of threads.
            self._weighted_squares += float((distances * weights).sum(dtype=np.float64))
        self.rescored += found.rescored

    def accumulate(self, points: Tensor, labels: Tensor, weights: Weights | None, sign: int = 1) -> None:
        """Add points (n, D) to the clusters of labels (n,), or subtract them if sign is -1."""
        k, device, counts = len(self.counts), points.device, torch.zeros_like(self.counts)
        if weights is None:
            centroid_sums(points if sign > 0 else -points, labels, k, out=(self.sums, counts))
        else:
            kept = torch.from_numpy(np.flatnonzero(weights)).to(device)
            masses = sign * torch.from_numpy(weights).to(device)[kept, None]
            if self.mass is None:
                self.mass = torch.zeros(k, dtype=torch.float64, device=device)
            centroid_sums(points[kept].to(torch.float64) * masses, labels[kept], k, out=(self.sums, counts))
            self.mass += centroid_sums(masses, labels[kept], k)[0][:, 0]
        self.counts += sign * counts
        if sign < 0:  # remove rounding errors from clusters whose last vector was subtracted
            empty = self.counts == 0
            self.sums[empty] = 0
            if self.mass is not None:
                self.mass[empty] = 0

    def over(self, group: Group) -> "ClusterSums":
        """Return the sums of all ranks together; the sums of this rank do not change."""
        if group.world == 1:
            return self
        combined = ClusterSums(len(self.counts), self.sums.shape[1], self.sums.device)
        combined.sums.copy_(self.sums)
        combined.counts.copy_(self.counts)
        group.sum_(combined.sums, combined.counts)
        parts = group.gather((self._squares.bins, self._weighted_squares, self.rescored, self.mass is not None))
        bins, weighted, rescored, massive = zip(*parts, strict=True)
        combined._squares.bins = np.sum(bins, axis=0)
        combined._weighted_squares, combined.rescored = sum(weighted), sum(rescored)
        if any(massive):
            combined.mass = torch.zeros_like(self.sums[:, 0]) if self.mass is None else self.mass.clone()
            group.sum_(combined.mass)
        return combined

    def means(self, clusters: Tensor) -> Tensor:
        """Return the means (c, D) float32 of clusters (c,), none of which is empty."""
        return (self.sums[clusters] / self.weights[clusters, None]).to(torch.float32)
