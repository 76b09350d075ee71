"""Quality of a codebook: explained variance, usage, and distances between its centroids."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid

_GAPS = tuple(f"{name}_centroid_distance" for name in ("min", "p5", "median", "mean"))


def codebook_certificate(centroids: Tensor, counts: Tensor, sums: Tensor, inertia: float) -> dict[str, Any]:
    """Return quality measures of centroids (k, D) float32 for the vectors assigned to them, as JSON.

    counts: (k,) int64, or float64 sums of weights. sums: (k, D) float64, sum of the vectors of each cluster. inertia:
    sum of squared distances. The keys are inertia; explained_variance, 1 - inertia / total sum of squares, None if all
    vectors are equal; perplexity of the counts, in codes; dead_codes; and the keys of `centroid_gaps`.
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
    """Return the sum of squared distances of all vectors to their mean, from the cluster sums of one pass.

    sum |x - m|^2 = sum |x - c|^2 + 2 sum (x - c)·(c - m) + sum |c - m|^2, computed for each cluster, so that no large
    numbers cancel.
    """
    wide = centroids.to(torch.float64)
    weights = counts.to(torch.float64)[:, None]
    away = wide - sums.sum(dim=0) / weights.sum()
    residual = sums - weights * wide
    return inertia + float((2 * residual * away + weights * away * away).sum())


def centroid_gaps(centroids: Tensor) -> dict[str, float | None]:
    """Return statistics of the Euclidean distance from each of k centroids (k, D) float32 to its nearest neighbour.

    The keys are min_centroid_distance, p5_centroid_distance (the 5th percentile), median_centroid_distance and
    mean_centroid_distance; the values are None for a single centroid.
    """
    if len(centroids) < 2:
        return dict.fromkeys(_GAPS)
    # The nearest centroid of a centroid is itself or an equal one, so the neighbour is the runner-up.
    squares = nearest_centroid(centroids, centroids, precision="exact", runner_up=True).second_distances
    assert squares is not None
    gaps = squares.to(torch.float64).sqrt().cpu().numpy()
    values = (gaps.min(), np.percentile(gaps, 5), np.median(gaps), gaps.mean())
    return dict(zip(_GAPS, map(float, values), strict=True))
