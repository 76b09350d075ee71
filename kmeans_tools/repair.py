"""Repair of empty clusters: a dead centroid takes over part of a cluster that is large and wide."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid

from .hashing import place_uniforms
from .seeding import distinct_rows
from .sources import Block, Vectors

_LARGEST_POOL = 1024


class RepairPool:
    """A random choice of vectors, drawn in one pass with probability in proportion to weight times squared distance.

    A cluster is drawn from in proportion to its share of the inertia, as a step of k-means++ would do it: the widest
    ones are split, single outliers rarely. Sampling without replacement by exponential keys (Efraimidis and Spirakis
    2006); the keys belong to the vectors' places, so the choice does not depend on blocks.
    """

    def __init__(self, k: int, dim: int, seed: Sequence[int]) -> None:
        self.capacity = min(k, _LARGEST_POOL)
        self._seed = tuple(seed)
        self._keys: npt.NDArray[np.float64] = np.empty(0)
        self._rows: Vectors = np.empty((0, dim), np.float32)

    def offer(self, block: Block, distances: npt.NDArray[np.float32]) -> None:
        """Consider the vectors of a block with their squared distances (n,) to their centroids."""
        shares = distances.astype(np.float64) * (1.0 if block.weights is None else block.weights)
        away = np.flatnonzero(shares > 0)
        keys = -np.log(place_uniforms(block.places[away], self._seed)) / shares[away]
        limit = self._keys[-1] if len(self._keys) == self.capacity else np.inf
        near = np.flatnonzero(keys < limit)
        if len(near) > self.capacity:
            near = near[np.argpartition(keys[near], self.capacity - 1)[: self.capacity]]
        merged = np.concatenate([self._keys, keys[near]])
        order = np.argsort(merged, kind="stable")[: self.capacity]
        self._keys = merged[order]
        self._rows = np.concatenate([self._rows, block.rows[away[near]]])[order]

    @property
    def rows(self) -> Vectors:
        """The vectors drawn so far, (at most capacity, D) float32, in random order."""
        return self._rows


def repair_dead(centroids: Tensor, dead: Tensor, pool: RepairPool) -> Tensor:
    """Move dead centroids onto vectors of the pool, in place, and return the indices (r,) int64 of those moved.

    The other centroids (k, D) are not touched, so no vector gets farther from its nearest one, and a vector that is
    itself a centroid now has distance 0. A move is accepted only where that vector lay away from every other
    centroid: then the inertia falls by at least that distance. Dead centroids that find no such vector stay.
    """
    candidates = pool.rows[distinct_rows(pool.rows)[0]] if len(dead) else pool.rows[:0]
    if not len(candidates):
        return dead[:0]
    vectors = torch.from_numpy(candidates).to(centroids.device)
    live = torch.ones(len(centroids), dtype=torch.bool, device=centroids.device)
    live[dead] = False
    vectors = vectors[nearest_centroid(vectors, centroids[live]).distances > 0]
    moved = dead[: len(vectors)]
    centroids[moved] = vectors[: len(moved)]
    return moved
