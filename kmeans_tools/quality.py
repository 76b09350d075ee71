"""What a codebook can prove of itself: explained variance, usage, and how close its centroids are."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid

_GAPS = tuple(f"{what}_centroid_distance" for what in ("min", "p5", "median", "mean"))


def codebook_certificate(centroids: Tensor, counts: Tensor, sums: Tensor, inertia: float) -> dict[str, Any]:
    """Return the quality of centroids (k, D) float32 over the vectors assigned to them, as JSON.

    counts (k,) int64, or float64 sums of weights, and sums (k, D) float64: of the vectors of each cluster. inertia: sum
    of squared distances. The keys: inertia; explained_variance, 1 - inertia / total sum of squares, None where all
    vectors are equal; perplexity of the counts in codes; dead_codes; and those of `centroid_gaps`.
    """
    total = _total_squares(centroids, counts, sums, inertia)
    shares = counts[counts > 0].to(torch.float64) / counts.sum()
    return {
        "inertia": inertia,
        "explained_variance": 1 - inertia / total if total > 0 else None,
        "perplexity": math.exp(float(-(shares * shares.log()).sum())),
        "dead_codes": int((counts == 0).sum()),
        **centroid_gaps(centroids),
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


def centroid_gaps(centroids: Tensor) -> dict[str, float | None]:
    """Return how far k centroids (k, D) float32 are from their nearest neighbours among them, in Euclidean distance.

    The keys: min_centroid_distance, p5_centroid_distance (the 5th percentile), median_centroid_distance and
    mean_centroid_distance; None for a single centroid.
    """
    if len(centroids) < 2:
        return dict.fromkeys(_GAPS)
    # The nearest centroid of a centroid is itself, or one that equals it; the next one is its neighbour.
    squares = nearest_centroid(centroids, centroids, precision="exact", runner_up=True).second_distances
    assert squares is not None
    gaps = squares.to(torch.float64).sqrt().cpu().numpy()
    values = (gaps.min(), np.percentile(gaps, 5), np.median(gaps), gaps.mean())
    return dict(zip(_GAPS, map(float, values), strict=True))
