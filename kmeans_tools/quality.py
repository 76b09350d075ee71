"""What a codebook can prove of itself: explained variance, usage, and how close its centroids are."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import label_distances

_BLOCK_SCORES = 1 << 24


def codebook_certificate(centroids: Tensor, counts: Tensor, sums: Tensor, inertia: float) -> dict[str, Any]:
    """Return the quality of centroids (k, D) float32 over the vectors assigned to them, as JSON.

    counts (k,) int64 and sums (k, D) float64: of the vectors of each cluster. inertia: sum of squared distances.
    The keys: inertia; explained_variance, 1 - inertia / total sum of squares, None where all vectors are equal;
    perplexity of the counts in codes; dead_codes; min_centroid_distance, Euclidean, None for a single centroid.
    """
    total = _total_squares(centroids, counts, sums, inertia)
    shares = counts[counts > 0].to(torch.float64) / counts.sum()
    return {
        "inertia": inertia,
        "explained_variance": 1 - inertia / total if total > 0 else None,
        "perplexity": math.exp(float(-(shares * shares.log()).sum())),
        "dead_codes": int((counts == 0).sum()),
        "min_centroid_distance": min_centroid_distance(centroids),
    }


def _total_squares(centroids: Tensor, counts: Tensor, sums: Tensor, inertia: float) -> float:
    """Return the sum of squared distances of all vectors to their mean, from what one pass has left of them.

    sum |x - m|^2 = sum |x - c|^2 + 2 sum (x - c)·(c - m) + sum |c - m|^2, cluster by cluster: no large numbers cancel.
    """
    wide = centroids.to(torch.float64)
    weights = counts.to(torch.float64)[:, None]
    away = wide - sums.sum(dim=0) / weights.sum()
    residual = sums - weights * wide
    return inertia + float((2 * residual * away + weights * away * away).sum())


def min_centroid_distance(centroids: Tensor) -> float | None:
    """Return the Euclidean distance of the closest two of k centroids (k, D), as found by float32 scores."""
    k = len(centroids)
    if k < 2:
        return None
    centred = (centroids.to(torch.float64) - centroids.to(torch.float64).mean(dim=0)).to(torch.float32)
    squares = centred.square().sum(dim=1)
    closest = math.inf
    step = max(1, _BLOCK_SCORES // k)
    for start in range(0, k, step):
        part = centred[start : start + step]
        scores = torch.addmm(squares, part, centred.T, alpha=-2)
        scores.diagonal(offset=start).fill_(math.inf)
        found = label_distances(centroids[start : start + step], centroids, scores.argmin(dim=1))
        closest = min(closest, float(found.min()))
    return float(np.sqrt(closest))
