"""Plain float64 references of the kernels. They define the results that every fast path must return."""

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the squared Euclidean distance over the last axis of two broadcastable tensors (…, D) as (…,) float64.

    The sum over D halves the row repeatedly with elementwise additions. Its order, and so every bit of the result,
    depends only on D: not on other dimensions, the number of threads, the block size or the device. This makes the
    float64 argmin well defined, independent of the library that sums the row.
    """
    terms = points.to(torch.float64) - centroids.to(torch.float64)
    terms.mul_(terms)
    width = terms.shape[-1]
    while width > 1:
        half = width // 2
        terms[..., :half] += terms[..., width - half : width]
        width -= half
    return terms[..., 0]


def nearest_centroid_reference(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each point by brute force in float64, the lowest index if several tie.

    Args:
        points: (n, D), any real dtype, finite.
        centroids: (k, D), on the same device.

    Returns:
        labels (n,) int64 and squared distances (n,) float64.
    """
    rows, k = len(points), len(centroids)
    labels = torch.empty(rows, dtype=torch.int64, device=points.device)
    distances = torch.empty(rows, dtype=torch.float64, device=points.device)
    indices = torch.arange(k, device=points.device)
    step = max(1, _BLOCK_ELEMENTS // max(1, k * points.shape[1]))
    for start in range(0, rows, step):
        block = squared_distances(points[start : start + step, None], centroids[None])
        best = block.amin(dim=1)
        distances[start : start + step] = best
        labels[start : start + step] = torch.where(block == best[:, None], indices, k).amin(dim=1)
    return labels, distances


def segment_sum_reference(points: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the sum (k, D) float64 and the count (k,) int64 of the points (n, D) with each of k labels (n,)."""
    sums = torch.zeros((k, points.shape[1]), dtype=torch.float64, device=points.device)
    counts = torch.zeros(k, dtype=torch.int64, device=points.device)
    for label in range(k):
        members = points[labels == label]
        sums[label] = members.to(torch.float64).sum(dim=0)
        counts[label] = len(members)
    return sums, counts


def chain_product_reference(x: Tensor, weights: Tensor) -> Tensor:
    """Return x @ weights.T, (m, n) float32, summed by fused multiply-adds in the order of the factors.

    x: (m, k) float32. weights: (n, k) float32. Adding a product to a float32 in float64 and rounding again differs from
    rounding once in one of 2^29 cases.
    """
    total = x.new_zeros(len(x), len(weights))
    for factor in range(x.shape[1]):
        product = x[:, factor, None].double() * weights[None, :, factor].double()
        total = (product + total.double()).float()
    return total
