"""Repair of empty and starved clusters: their centroids move into clusters that are large and wide.

The repair uses a random sample of the vectors, drawn only if a cluster needs repair. So the result does not depend on
the blocks, or on the vectors that a pass skipped.
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
    """Move the centroids of empty clusters to vectors of a sample, in place; return their indices (r,) int64.

    The vectors are drawn in proportion to weight times squared distance, as in k-means++. Wide clusters with a large
    share of the inertia are split, single outliers are rarely chosen. The other centroids (k, D) do not move, so no
    vector is farther from its nearest centroid than before, and the inertia falls. A centroid does not move if the
    sample has no vector left with a positive distance.

    empty: (e,) int64, indices of the empty clusters. sample: (n, D) with positive weights (n,), or None if all are 1.
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
    """Move centroids that have few vectors as `repair_empty` does, but only if the inertia of the sample falls.

    Their vectors go to other centroids, which raises the inertia; the gain elsewhere must be larger.
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
    """Draw the places of at most `count` distinct vectors in proportion to positive shares (n,).

    Samples without replacement by exponential keys (Efraimidis and Spirakis 2006).
    """
    uniforms = generator.random(len(shares))
    positive = np.flatnonzero(shares > 0)
    keys = -np.log1p(-uniforms[positive]) / shares[positive]
    order = positive[np.argsort(keys, kind="stable")]
    return order[distinct_rows(sample[order])[0][:count]]
