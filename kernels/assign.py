"""Nearest centroid: the exact float64 argmin at the speed of a float32 matrix product.

Distances do not change when points x and centroids c move together, so both are centred, and scaled by a power of two.
A float32 product gives scores s_ij = ||c_j||^2 - 2 x_i·c_j, each within E_ij of its true value whatever the order of
summation. Centroid j can be nearest only where s_ij - E_ij <= min_l (s_il + E_il). A row that leaves one such
candidate is certified; the candidates of the other rows are scored again in float64.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .reference import squared_distances

PRECISIONS = ("exact", "fp32")

_UNIT = 2.0**-24  # float32 rounding
_LARGEST = 2.0**126  # scores beyond this could overflow on the way
_SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}  # elements of a block of scores: 32 MiB and 1 GiB
_PAIR_ELEMENTS = 1 << 18  # of float64 differences, 2 MiB, so that they stay in cache


@dataclass(frozen=True)
class Assignment:
    """Nearest centroids of n points.

    labels: (n,) int64. distances: (n,) float32, squared, rounded from float64. rescored: rows that the float32 scores
    could not decide and float64 did. second_labels, second_distances: of the runner-up, where it was asked for.
    """

    labels: Tensor
    distances: Tensor
    rescored: int
    second_labels: Tensor | None = None
    second_distances: Tensor | None = None


@dataclass(frozen=True)
class PreparedCentroids:
    """Centroids with what scoring needs of them, made once by `prepare_centroids` and used for many blocks of points.

    centroids: (k, D) as given. center: (D,) float32. scale: power of two. operand: (k, D) float32, -2 (c - center)
    scale. squares: (k,) float32 squared norms and norms: (k,) float64 norms of the centred and scaled centroids.
    """

    centroids: Tensor
    center: Tensor
    scale: float
    operand: Tensor
    squares: Tensor
    norms: Tensor
    precision: str


def prepare_centroids(centroids: Tensor, *, precision: str = "exact") -> PreparedCentroids:
    """Prepare centroids (k, D), finite, for `nearest_centroid`.

    Args:
        centroids: (k, D) floating or integer, on the device that the points will be on.
        precision: "exact" (the float64 argmin) or "fp32" (the argmin of the float32 scores, which may differ from it
            between near ties and there depend on the batch).

    Raises:
        ValueError: not a non-empty matrix, NaN or infinity in it, or an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if centroids.ndim != 2 or 0 in centroids.shape:
        raise ValueError(f"centroids must be a matrix (k, D) with k and D at least 1, not {tuple(centroids.shape)}")
    centroids = _as_real(centroids)
    finite = torch.isfinite(centroids).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(f"centroid {int((~finite).nonzero()[0])} holds NaN or infinity")
    wide = centroids.to(torch.float64)
    center = wide.mean(dim=0).to(torch.float32)
    if not bool(torch.isfinite(center).all()):
        center.zero_()
    wide = wide - center.to(torch.float64)
    scale = _power_of_two(float(wide.abs().amax()))
    wide *= scale
    squares = (wide * wide).sum(dim=1)
    return PreparedCentroids(
        centroids=centroids,
        center=center,
        scale=scale,
        operand=wide.to(torch.float32).mul_(-2),
        squares=squares.to(torch.float32),
        norms=squares.sqrt(),
        precision=precision,
    )


def nearest_centroid(
    points: Tensor, centroids: Tensor | PreparedCentroids, *, precision: str | None = None
) -> Assignment:
    """Find the nearest centroid of each point, by squared Euclidean distance, the lowest index where several tie.

    With precision "exact" the labels are those of `nearest_centroid_reference` on any finite input, whatever the
    blocks, the number of threads or the device. Memory beyond the input is bounded: points go through in blocks.

    Args:
        points: (n, D) floating or integer, any strides.
        centroids: (k, D) on the same device, or the result of `prepare_centroids`.
        precision: "exact" (default) or "fp32"; prepared centroids bring their own.

    Raises:
        ValueError: shapes that do not fit, or a point with NaN or infinity, named by its row.
    """
    if isinstance(centroids, PreparedCentroids):
        if precision not in (None, centroids.precision):
            raise ValueError(f"centroids prepared for precision {centroids.precision!r}, asked for {precision!r}")
        prepared = centroids
    else:
        prepared = prepare_centroids(centroids, precision=precision or "exact")
    k, dim = prepared.centroids.shape
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"points must be a matrix (n, {dim}) as the centroids are, not {tuple(points.shape)}")
    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    distances = torch.empty(len(points), dtype=torch.float32, device=points.device)
    rescored = 0
    budget = _SCORES.get(points.device.type, _SCORES["cpu"])
    step = max(1, min(budget // k, budget // dim))
    with _full_float32():
        for start in range(0, len(points), step):
            block = _as_real(points[start : start + step])
            found, undecided = _assign_block(block, prepared, start)
            labels[start : start + step] = found
            distances[start : start + step] = _pair_distances(block, prepared.centroids, None, found)
            rescored += undecided
    return Assignment(labels, distances, rescored)


def label_distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance (n,) float32, rounded from float64, of points (n, D) to centroids[labels]."""
    return _pair_distances(_as_real(points), _as_real(centroids), None, labels).to(torch.float32)


def _as_real(values: Tensor) -> Tensor:
    """Return float32 for narrower floats and float64 for integers and float64: no value changes below 2^53."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.float64)


def _power_of_two(largest: float) -> float:
    """Return the power of two that brings `largest` near 1, or 1 where float32 needs no help."""
    if largest == 0 or 2.0**-20 < largest < 2.0**20:
        return 1.0
    if not math.isfinite(largest):
        return 2.0**-400
    return 2.0 ** max(-400, min(400, -math.frexp(largest)[1]))


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep TF32 and bf16 shortcuts out of float32 products: the error bound assumes 24 bits."""
    modules: Any = torch.backends
    backends = [modules.cuda.matmul, modules.mkldnn.matmul]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # before PyTorch 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    settings = [str(backend.fp32_precision) for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, setting in zip(backends, settings, strict=True):
            backend.fp32_precision = setting


def _assign_block(points: Tensor, prepared: PreparedCentroids, first_row: int) -> tuple[Tensor, int]:
    """Return the labels (n,) of one block of float32 or float64 points and how many rows float64 had to decide."""
    k = len(prepared.centroids)
    shifted = (points - prepared.center).mul_(prepared.scale).to(torch.float32)
    scores = torch.mm(shifted, prepared.operand.T).add_(prepared.squares)
    norms = _row_norms(shifted)
    threshold, safe = _thresholds(scores.amin(dim=1), norms, prepared)
    rows, columns = _true_positions(scores <= threshold[:, None], k)
    counts = torch.bincount(rows, minlength=len(points))
    first = counts.cumsum(0) - counts
    labels = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    labels[safe] = columns[first[safe]]
    undecided = (counts > 1) & safe
    rescored = 0
    if prepared.precision == "exact" and bool(undecided.any()):
        chosen = undecided[rows]
        rows, columns = rows[chosen], columns[chosen]
        keep = _candidates(scores[rows, columns], norms, rows, columns, prepared)
        rows, columns = rows[keep], columns[keep]
        labels[undecided] = _rescore(points, prepared.centroids, rows, columns)[undecided]
        rescored = int((torch.bincount(rows, minlength=len(points)) > 1).sum())
    unsafe = (~safe).nonzero()[:, 0]
    if len(unsafe):
        labels[unsafe] = _brute_force(points, prepared.centroids, unsafe, first_row)
    return labels, rescored + len(unsafe)


def _true_positions(mask: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the row and column, int64, of every True in a matrix, in row-major order."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        flat = mask.flatten().nonzero()[:, 0]
    return torch.div(flat, columns, rounding_mode="floor"), flat % columns


def _row_norms(shifted: Tensor) -> Tensor:
    """Return upper bounds (n,) float64 of the norms of float32 rows, squares that underflow included."""
    dim = shifted.shape[1]
    computed = torch.linalg.vector_norm(shifted, dim=1).to(torch.float64)
    bound: Tensor = computed * (1 + 2 * _gamma(dim)) + math.sqrt(dim) * 2.0**-63
    return bound


def _gamma(dim: int) -> float:
    """Return the relative error bound of a float32 sum of `dim` products in any order, with room for 8 roundings."""
    terms = (dim + 8) * _UNIT
    return terms / (1 - terms) if terms < 0.5 else math.inf


def _error_bound(point_norms: Tensor, norms: Tensor, squares: Tensor, dim: int, scale: float) -> Tensor:
    """Bound |s_ij - true| plus the rounding of the float64 reference, in units of the scaled scores, float64.

    In turn: the product and the rounding of both operands; the rounding of ||c||^2 and of its addition; the float64
    reference, which rounds distances of up to (|x| + |c|)^2 a few times; products lost to underflow or flushed to zero.
    """
    product = 2 * _gamma(dim) * point_norms * norms
    reference = (math.ceil(math.log2(dim)) + 6) * 2.0**-52 * (point_norms.square() + norms.square())
    underflow = dim * 2.0**-122 * (1 + point_norms + norms) + dim * 2.0**-1073 * scale * scale
    bound: Tensor = (product + 4 * _UNIT * squares + reference + underflow) * (1 + 2.0**-20)
    return bound


def _thresholds(best: Tensor, point_norms: Tensor, prepared: PreparedCentroids) -> tuple[Tensor, Tensor]:
    """Return (n,) float32 scores up to which a centroid is a candidate, and where (n,) bool that can be trusted.

    One bound per row, that of the centroid of largest norm, so that the matrix of scores is compared once.
    """
    largest, squares = prepared.norms.amax(), prepared.squares.amax().to(torch.float64)
    dim = prepared.centroids.shape[1]
    safe = 4 * point_norms * largest + squares < _LARGEST
    if prepared.precision == "fp32":
        return best.where(safe, -math.inf), safe
    limit = best.to(torch.float64) + 2 * _error_bound(point_norms, largest, squares, dim, prepared.scale)
    rounded = limit.to(torch.float32)
    threshold = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    safe &= torch.isfinite(threshold)
    return threshold.where(safe, -math.inf), safe


def _candidates(
    scores: Tensor, point_norms: Tensor, rows: Tensor, columns: Tensor, prepared: PreparedCentroids
) -> Tensor:
    """Return which (p,) of the pairs survive the bound of their own centroid rather than that of the largest."""
    wide = scores.to(torch.float64)
    squares = prepared.squares[columns].to(torch.float64)
    dim = prepared.centroids.shape[1]
    errors = _error_bound(point_norms[rows], prepared.norms[columns], squares, dim, prepared.scale)
    upper = torch.full_like(point_norms, math.inf).scatter_reduce_(0, rows, wide + errors, "amin")
    return wide - errors <= upper[rows]


def _rescore(points: Tensor, centroids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return labels (n,): per row the column of the smallest float64 distance among its pairs, else k."""
    distances = _pair_distances(points, centroids, rows, columns)
    best = torch.full((len(points),), math.inf, dtype=torch.float64, device=points.device)
    best.scatter_reduce_(0, rows, distances, "amin")
    nearest = distances == best[rows]
    labels = torch.full((len(points),), len(centroids), dtype=torch.int64, device=points.device)
    return labels.scatter_reduce_(0, rows[nearest], columns[nearest], "amin")


def _pair_distances(points: Tensor, centroids: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Return (p,) float64 squared distances of points[rows] (all in order where None) to centroids[columns]."""
    result = torch.empty(len(columns), dtype=torch.float64, device=points.device)
    step = max(1, _PAIR_ELEMENTS // points.shape[1])
    for start in range(0, len(columns), step):
        part = slice(start, start + step)
        left = points[part] if rows is None else points[rows[part]]
        result[part] = squared_distances(left, centroids[columns[part]])
    return result


def _brute_force(points: Tensor, centroids: Tensor, rows: Tensor, first_row: int) -> Tensor:
    """Return the float64 argmin of points[rows] over all centroids, for values that float32 cannot hold."""
    bad = (~torch.isfinite(points[rows]).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(f"point {first_row + int(rows[bad[0, 0]])} holds NaN or infinity")
    labels = torch.empty(len(rows), dtype=torch.int64, device=points.device)
    indices = torch.arange(len(centroids), device=points.device)
    for position, row in enumerate(rows.tolist()):
        distances = _pair_distances(points, centroids, torch.full_like(indices, row), indices)
        labels[position] = torch.where(distances == distances.amin(), indices, len(centroids)).amin()
    return labels
