"""Lower bounds of the distances to a few centroids, those that moved, at the cost of one small matrix product."""

import math

import torch
from torch import Tensor

from sctok.runtime.devices import full_float32

_UNIT = 2.0**-24
_SPARE = 16  # roundings beside those of the sum over D
_TINY = 2.0**-120  # per dimension, what squares may lose where they are subnormal
_FAR = 2.0**60  # scores of points beyond it could overflow
_SCORES = 1 << 22
_CACHED_ROWS = 2048


class Movers:
    """Some of k centroids (k, D): those at indices (m,) int64 ascending, m >= 1. step: points to compare at a time."""

    def __init__(self, centroids: Tensor, indices: Tensor) -> None:
        wide = centroids[indices].to(torch.float64)
        self.center = wide.mean(dim=0).to(torch.float32)
        self._operand = (wide - self.center).to(torch.float32)
        self._squares = self._operand.square().sum(dim=1)
        self._largest = float(torch.linalg.vector_norm(self._operand.to(torch.float64), dim=1).amax())
        self._column = torch.full((len(centroids),), -1, dtype=torch.int64, device=centroids.device)
        self._column[indices] = torch.arange(len(indices), device=centroids.device)
        rows = _CACHED_ROWS if centroids.device.type == "cpu" else _SCORES
        self.step = max(256, min(rows, _SCORES // len(indices)))

    def __len__(self) -> int:
        return len(self._operand)

    def distances_below(self, points: Tensor, labels: Tensor) -> Tensor:
        """Return lower bounds (n,) float32 of the Euclidean distances of points (n, D) to all movers but their own.

        labels: (n,) int64 in [0, k), the centroid of each point that is left out if it is a mover. Infinite where there
        is no other mover; NaN, which compares as false, where float32 does not reach.

        With x and c rounded after centring, each by at most 2^-24 of its norm, and (D + 16) 2^-24 (|x| + |c|)^2 the
        most that the computed square can be off, sums in any order.
        """
        shifted = points.to(torch.float32) - self.center
        norms = torch.linalg.vector_norm(shifted, dim=1).to(torch.float64)
        with full_float32():
            scores = torch.addmm(self._squares, shifted, self._operand.T, alpha=-2)
        columns = self._column[labels]
        own = (columns >= 0).nonzero()[:, 0]
        scores[own, columns[own]] = math.inf
        dim = points.shape[1]
        reach = norms * (1 + dim * _UNIT) + self._largest
        squares = scores.amin(dim=1).to(torch.float64) + norms.square()
        squares -= 2 * (dim + _SPARE) * _UNIT * reach.square() + dim * _TINY
        squares[~(reach < _FAR)] = math.nan
        below = squares.clamp(min=0).sqrt() - 4 * _UNIT * reach
        return (below.clamp(min=0) * (1 - 4 * _UNIT)).to(torch.float32)
