"""Nearest centroids by a float32 matrix product with certificates: any device, any CPU, any shape.

The product gives scores s_ij = |c_j|^2 - 2 x_i.c_j, each within E_ij of its true value whatever the order of summation.
Centroid j can be nearest only where s_ij - E_ij <= min_l (s_il + E_il). A row that leaves one such candidate is
certified; the candidates of the other rows are scored again in float64.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .certify import error_bound, nearest_pairs, pair_distances, row_norms
from .float64_assign import double_candidates

_LARGEST = 2.0**126  # scores beyond this could overflow on the way
_MANY_PAIRS = 4  # per row, beyond which a float64 product is cheaper than the distances of all pairs


@dataclass(frozen=True)
class FloatOperand:
    """Centroids for scoring: operand (k, D) float32, -2 (c - center) scale; squares (k,) and norms (k,) of those."""

    centroids: Tensor
    center: Tensor
    scale: float
    operand: Tensor
    squares: Tensor
    norms: Tensor
    exact: bool


def float_operand(centroids: Tensor, center: Tensor, scale: float, *, exact: bool) -> FloatOperand:
    """Centre and scale centroids (k, D) float32 or float64."""
    wide = (centroids.to(torch.float64) - center.to(torch.float64)).mul_(scale)
    squares = (wide * wide).sum(dim=1)
    operand = wide.to(torch.float32).mul_(-2)
    return FloatOperand(centroids, center, scale, operand, squares.to(torch.float32), squares.sqrt(), exact)


class _Shortcuts:
    """The settings of PyTorch that allow TF32 and bf16 in float32 products, set aside while any thread needs that."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, [""]
        modules: Any = torch.backends
        backends = [modules.cuda.matmul, modules.mkldnn.matmul]
        self._backends = backends if all(hasattr(backend, "fp32_precision") for backend in backends) else []

    def set_aside(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            if not self._backends:  # before PyTorch 2.9
                self._before = [torch.get_float32_matmul_precision()]
                torch.set_float32_matmul_precision("highest")
                return
            self._before = [str(backend.fp32_precision) for backend in self._backends]
            for backend in self._backends:
                backend.fp32_precision = "ieee"

    def restore(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if not self._backends:
                torch.set_float32_matmul_precision(self._before[0])
            for backend, setting in zip(self._backends, self._before, strict=False):
                backend.fp32_precision = setting


_SHORTCUTS = _Shortcuts()


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32, bf16 and autocast out of float32 products: the error bound assumes 24 bits.

    Several threads may be inside at once; the last one to leave restores what the first one found.
    """
    _SHORTCUTS.set_aside()
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _SHORTCUTS.restore()


def assign_block(points: Tensor, centroids: FloatOperand, wanted: int, first_row: int) -> tuple[Tensor, int]:
    """Find the `wanted` nearest centroids, 1 or 2, of a block of float32 or float64 points (n, D).

    Returns:
        labels (n, wanted) int64, k where there is no second one, and how many rows float64 had to decide.

    Raises:
        ValueError: a point holds NaN or infinity, named by its row, counted from first_row.
    """
    k = len(centroids.centroids)
    shifted = (points - centroids.center).mul_(centroids.scale).to(torch.float32)
    scores = torch.mm(shifted, centroids.operand.T).add_(centroids.squares)
    norms = row_norms(shifted)
    best = scores.amin(dim=1) if min(wanted, k) == 1 else scores.topk(2, dim=1, largest=False).values[:, 1]
    threshold, safe = _thresholds(best, norms, centroids)
    rows, columns = _true_positions(scores <= threshold[:, None], k)
    counts = torch.bincount(rows, minlength=len(points))
    labels = torch.full((len(points), wanted), k, dtype=torch.int64, device=points.device)
    labels[safe, 0] = columns[(counts.cumsum(0) - counts)[safe]]
    undecided = (counts > 1) & safe
    rescored = 0
    if (centroids.exact or wanted > 1) and bool(undecided.any()):
        chosen = undecided[rows]
        rows, columns = rows[chosen], columns[chosen]
        if _needs_double(points, centroids.centroids, len(rows), int(undecided.sum())):
            rows, columns = double_candidates(points, centroids.centroids, undecided.nonzero()[:, 0], wanted)
        elif wanted == 1:
            keep = _candidates(scores[rows, columns], norms, rows, columns, centroids)
            rows, columns = rows[keep], columns[keep]
        rescored = int((torch.bincount(rows, minlength=len(points)) > wanted).sum())
        decided = _decide(points, centroids.centroids, rows, columns, wanted)
        labels[undecided] = decided[undecided]
    unsafe = (~safe).nonzero()[:, 0]
    if len(unsafe):
        labels[unsafe] = _search_wide(points, centroids.centroids, unsafe, wanted, first_row)
    return labels, rescored + len(unsafe)


def _needs_double(points: Tensor, centroids: Tensor, pairs: int, rows: int) -> bool:
    """Return whether float32 leaves so many pairs of some rows that a float64 product decides them sooner."""
    return torch.float64 in (points.dtype, centroids.dtype) and pairs > _MANY_PAIRS * rows


def _true_positions(mask: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the row and column, int64, of every True in a matrix, in row-major order."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        flat = mask.flatten().nonzero()[:, 0]
    return torch.div(flat, columns, rounding_mode="floor"), flat % columns


def _thresholds(best: Tensor, point_norms: Tensor, centroids: FloatOperand) -> tuple[Tensor, Tensor]:
    """Return (n,) float32 scores up to which a centroid is a candidate, and where (n,) bool that can be trusted.

    One bound per row, that of the centroid of largest norm, so that the matrix of scores is compared once.
    """
    largest, squares = centroids.norms.amax(), centroids.squares.amax().to(torch.float64)
    dim = centroids.centroids.shape[1]
    safe = 4 * point_norms * largest + squares < _LARGEST
    if not centroids.exact:
        return best.where(safe, -math.inf), safe
    limit = best.to(torch.float64) + 2 * error_bound(point_norms, largest, squares, dim, centroids.scale)
    rounded = limit.to(torch.float32)
    threshold = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    safe &= torch.isfinite(threshold)
    return threshold.where(safe, -math.inf), safe


def _candidates(scores: Tensor, point_norms: Tensor, rows: Tensor, columns: Tensor, centroids: FloatOperand) -> Tensor:
    """Return which (p,) of the pairs survive the bound of their own centroid rather than that of the largest."""
    wide = scores.to(torch.float64)
    squares = centroids.squares[columns].to(torch.float64)
    dim = centroids.centroids.shape[1]
    errors = error_bound(point_norms[rows], centroids.norms[columns], squares, dim, centroids.scale)
    upper = torch.full_like(point_norms, math.inf).scatter_reduce_(0, rows, wide + errors, "amin")
    return wide - errors <= upper[rows]


def _decide(points: Tensor, centroids: Tensor, rows: Tensor, columns: Tensor, wanted: int) -> Tensor:
    """Return labels (n, wanted) by the float64 distances of some pairs, k where a row has too few."""
    distances = pair_distances(points, centroids, rows, columns)
    labels = []
    for _ in range(wanted):
        nearest, taken = nearest_pairs(distances, rows, columns, len(points), len(centroids))
        labels.append(nearest)
        distances, rows, columns = distances[~taken], rows[~taken], columns[~taken]
    return torch.stack(labels, dim=1)


def _search_wide(points: Tensor, centroids: Tensor, rows: Tensor, wanted: int, first_row: int) -> Tensor:
    """Return the float64 labels (r, wanted) of points[rows] over all centroids, for values that float32 cannot hold."""
    bad = (~torch.isfinite(points[rows]).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(f"point {first_row + int(rows[bad[0, 0]])} holds NaN or infinity")
    pairs = double_candidates(points, centroids, rows, wanted)
    return _decide(points, centroids, *pairs, wanted)[rows]
