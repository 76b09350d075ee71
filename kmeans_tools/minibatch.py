"""Mini-batch k-means: nested batches for vectors that can be read again, running means for streams.

Nested batches (Newling and Fleuret 2016): every batch contains the previous one, and each centroid is the mean of the
vectors of the batch that have its label now. So a round is a Lloyd iteration on the batch, and can skip vectors by
their bounds. The batch grows once the means have settled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, nearest_centroid
from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.sources.vectors import Weights

STARVED = 0.05  # share of the mean cluster below which a centroid may be moved elsewhere when the batch grows

_FIRST_ROWS = 4096
_FIRST_PER_CENTROID = 16
_GROWTH = 2.0
_SETTLED = 0.5
_PIECES = 1 << 16  # runs of neighbouring vectors that join a batch together, so that they are read together
_LARGEST_PIECE = 512


def first_share(k: int, rows: int, batch_rows: int | None) -> float:
    """Return the share of the rows in the first batch: `batch_rows` (default 4096), or 16 per centroid if more."""
    return min(1.0, max(batch_rows or _FIRST_ROWS, _FIRST_PER_CENTROID * k) / rows)


def grown_share(share: float) -> float:
    """Return the share of the next batch."""
    return min(1.0, _GROWTH * share)


def noise_level(k: int, rows: float) -> float:
    """Return the relative fall of the inertia per round below which the means of a batch have settled.

    The mean of n vectors of variance s^2 has an error of sqrt(s^2 / n), which increases the inertia by about k / rows,
    relatively. A fall of less than half of that is fitting noise.
    """
    return _SETTLED * k / rows


def in_batch(places: npt.NDArray[np.int64], share: float, rows: int, seed: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of the places in a random share of all rows; a larger share contains every smaller one."""
    if share >= 1:
        return np.ones(len(places), np.bool_)
    piece = max(1, min(_LARGEST_PIECE, rows // _PIECES))
    return place_uniforms(places // piece, seed) < share


def place_uniforms(places: npt.NDArray[np.int64], seed: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return a random number in (0, 1) for each place (n,): a hash (SplitMix64) of the place and the seed.

    The numbers depend only on the place, not on the order of drawing or the size of blocks.
    """
    start = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        mixed = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@dataclass
class RunningMeans:
    """Centroids as the means of all vectors ever assigned to them: c <- c + b / (n + b) (mean - c).

    centroids: (k, D) float32 or float64; in float32 they stop moving once the steps are smaller than the rounding.
    mass: (k,) float64, the weight of the vectors assigned to each centroid so far.
    """

    centroids: Tensor
    mass: Tensor

    def add(self, points: Tensor, weights: Weights | None = None) -> Assignment:
        """Assign points (n, D) with weights (n,), update their centroids, and return the assignment.

        Raises:
            ValueError: a point holds NaN or infinity.
        """
        found = nearest_centroid(points, self.centroids)
        k, old = len(self.centroids), self.centroids.to(torch.float64)
        masses = torch.ones(len(points)) if weights is None else torch.from_numpy(weights)
        masses = masses.to(points.device, torch.float64)[:, None]
        self.mass += centroid_sums(masses, found.labels, k)[0][:, 0]
        # Sums of differences do not lose digits to a common offset.
        shares = masses / self.mass[found.labels, None].clamp(min=torch.finfo(torch.float64).tiny)
        steps = centroid_sums(shares * (points.to(torch.float64) - old[found.labels]), found.labels, k)[0]
        self.centroids.copy_(old + steps)
        return found
