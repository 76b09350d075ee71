"""Repair of empty and starved clusters: their centroids take over parts of clusters that are large and wide.

What the repair needs to know of the vectors it learns from a random sample of them, drawn only when it is needed. So
it does not depend on blocks, nor on which vectors a pass has skipped.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid
from sctok.kmeans_tools.sources.distinct import distinct_rows
from sctok.kmeans_tools.sources.vectors import Vectors, Weights


def repair_empty(
    centroids: Tensor, empty: Tensor, sample: Vectors, weights: Weights | None, generator: np.random.Generator
) -> Tensor:
    """Move centroids without vectors onto vectors of a sample, in place; return the indices (r,) int64 of those moved.

    The vectors are drawn in proportion to weight times squared distance, as a step of k-means++ would do it: a cluster
    gives by its share of the inertia, the widest ones are split, single outliers rarely. The other centroids (k, D)
    stay, so no vector gets farther from its nearest one, and a vector that is itself a centroid now has distance 0. It
    lay away from every other one: the inertia falls. Centroids that find no such vector stay.

    empty: (e,) int64. sample: (n, D) with positive weights (n,), None for 1.
    """
    live = torch.ones(len(centroids), dtype=torch.bool, device=centroids.device)
    live[empty] = False
    if not len(empty) or not bool(live.any()):
        return empty[:0]
    points = torch.from_numpy(sample).to(centroids.device)
    distances = nearest_centroid(points, centroids[live]).distances
    drawn = _draw_distinct(sample, _shares(distances, weights), len(empty), generator)
    moved = empty[: len(drawn)]
    centroids[moved] = points[torch.from_numpy(drawn).to(points.device)]
    return moved


def repair_starved(
    centroids: Tensor, starved: Tensor, sample: Vectors, weights: Weights | None, generator: np.random.Generator
) -> Tensor:
    """Do as `repair_empty` with centroids that have few vectors, if that lowers the inertia of the sample at all.

    Their vectors fall to others, which costs something; what is gained elsewhere must be more.
    """
    attempt = centroids.clone()
    moved = repair_empty(attempt, starved, sample, weights, generator)
    if not len(moved):
        return moved
    points = torch.from_numpy(sample).to(centroids.device)
    before, after = (_shares(nearest_centroid(points, c).distances, weights).sum() for c in (centroids, attempt))
    if after >= before:
        return moved[:0]
    centroids.copy_(attempt)
    return moved


def _shares(distances: Tensor, weights: Weights | None) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = distances.cpu().numpy().astype(np.float64)
    return shares if weights is None else shares * weights


def _draw_distinct(
    sample: Vectors, shares: npt.NDArray[np.float64], count: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw places of at most `count` different vectors in proportion to shares (n,), none of share 0.

    Sampling without replacement by exponential keys (Efraimidis and Spirakis 2006).
    """
    uniforms = generator.random(len(shares))
    away = np.flatnonzero(shares > 0)
    keys = -np.log1p(-uniforms[away]) / shares[away]
    order = away[np.argsort(keys, kind="stable")]
    drawn: npt.NDArray[np.int64] = order[distinct_rows(sample[order])[0][:count]]
    return drawn
