"""Certify labels: prove by error bounds which centroid is nearest, and let float64 decide the remaining cases.

This module does it with float32 matrix products, on any device. `cpu.certify` does the same with 8-bit products on CPUs
that have them, `triton.certify` with the tensor cores of GPUs; both use the error bounds and distances defined here.

A float32 product gives scores s_ij = |c_j|^2 - 2 x_i.c_j. Each is within E_ij of its true value in any order of
summation. Centroid j can be nearest only if s_ij - E_ij <= min_l (s_il + E_il). A point with one such candidate is
certified. The candidates of all other points are compared in float64, in one fixed order of summation.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .reference import squared_distances

UNIT = 2.0**-24  # relative rounding error of float32
LARGEST_SCORE = 2.0**126  # larger scores could overflow in an intermediate result

_UNIT_64 = 2.0**-53
_PAIR_ELEMENTS = 1 << 18  # float64 differences computed at once; 2 MiB stay in cache
_MANY_PAIRS = 4  # candidates per point from which a float64 matrix product is cheaper than separate distances
_BLOCK_SCORES = 1 << 22  # float64 scores computed at once, 32 MiB
_GROUP_ROWS = 4  # points from which shifting all centroids pays off


def as_real(values: Tensor) -> Tensor:
    """Convert narrower floats to float32, and integers to float64, without a gradient.

    float32 and float64 stay as they are. No value below 2^53 changes.

    Raises:
        ValueError: The tensor does not hold real numbers, is not dense, or has no data.
    """
    check_real(values)
    values = values.detach()
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.float64)


def check_real(values: Tensor, name: str = "the tensor") -> None:
    """Raise ValueError unless a tensor is dense, has data and holds real numbers."""
    kinds = {
        "complex": values.is_complex(),
        "nested": values.is_nested,
        "quantized": values.is_quantized,
        "sparse": values.layout is not torch.strided,
        "on the meta device, without data,": values.is_meta,
    }
    for kind, found in kinds.items():
        if found:
            raise ValueError(f"{name} is {kind} and not a dense matrix of real numbers; convert it first")


def require_finite(points: Tensor, numbers: Tensor) -> None:
    """Raise ValueError if a point (n, D) holds NaN or infinity, naming the first one by its number (n,)."""
    bad = (~torch.isfinite(points).all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(f"point {int(numbers[bad[0, 0]])} holds NaN or infinity")


@dataclass(frozen=True)
class FloatOperand:
    """Centroids for float32 scores: operand (k, D) float32, -2 (c - center) scale, with its squares and norms (k,)."""

    centroids: Tensor
    center: Tensor
    scale: float
    operand: Tensor
    squares: Tensor
    norms: Tensor
    exact: bool


def float_operand(centroids: Tensor, center: Tensor, scale: float, *, exact: bool) -> FloatOperand:
    """Center and scale centroids (k, D) float32 or float64."""
    wide = (centroids.to(torch.float64) - center.to(torch.float64)).mul_(scale)
    squares = (wide * wide).sum(dim=1)
    operand = wide.to(torch.float32).mul_(-2)
    return FloatOperand(centroids, center, scale, operand, squares.to(torch.float32), squares.sqrt(), exact)


def certify_block(points: Tensor, centroids: FloatOperand, wanted: int, first_row: int) -> tuple[Tensor, int]:
    """Find the `wanted` nearest centroids, 1 or 2, of a block of float32 or float64 points (n, D).

    Returns:
        labels (n, wanted) int64, k if there is no second centroid, and the number of points that float64 decided.

    Raises:
        ValueError: A point holds NaN or infinity. The message names its row, counted from first_row.
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
        wide = torch.float64 in (points.dtype, centroids.centroids.dtype)
        if wide and len(rows) > _MANY_PAIRS * int(undecided.sum()):
            rows, columns = float64_candidates(points, centroids.centroids, undecided.nonzero()[:, 0], wanted)
        elif wanted == 1:
            possible = _candidates(scores[rows, columns], norms, rows, columns, centroids)
            rows, columns = rows[possible], columns[possible]
        rescored = int((torch.bincount(rows, minlength=len(points)) > wanted).sum())
        decided = _decide(points, centroids.centroids, rows, columns, wanted)
        labels[undecided] = decided[undecided]
    unsafe = (~safe).nonzero()[:, 0]
    if len(unsafe):  # float32 cannot hold their scores
        require_finite(points[unsafe], unsafe + first_row)
        pairs = float64_candidates(points, centroids.centroids, unsafe, wanted)
        labels[unsafe] = _decide(points, centroids.centroids, *pairs, wanted)[unsafe]
    return labels, rescored + len(unsafe)


def _true_positions(mask: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return the row and column, int64, of every True in a matrix, in row-major order."""
    if mask.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        flat = mask.flatten().nonzero()[:, 0]
    return torch.div(flat, columns, rounding_mode="floor"), flat % columns


def _thresholds(best: Tensor, point_norms: Tensor, centroids: FloatOperand) -> tuple[Tensor, Tensor]:
    """Return the largest score of a candidate (n,) float32, and whether float32 can hold the scores (n,) bool.

    Each point has one bound, that of the centroid with the largest norm, so the score matrix is compared only once.
    """
    largest, squares = centroids.norms.amax(), centroids.squares.amax().to(torch.float64)
    dim = centroids.centroids.shape[1]
    safe = 4 * point_norms * largest + squares < LARGEST_SCORE
    if not centroids.exact:
        return best.where(safe, -math.inf), safe
    limit = best.to(torch.float64) + 2 * error_bound(point_norms, largest, squares, dim, centroids.scale)
    threshold = rounded_up(limit)
    safe &= torch.isfinite(threshold)
    return threshold.where(safe, -math.inf), safe


def _candidates(scores: Tensor, point_norms: Tensor, rows: Tensor, columns: Tensor, centroids: FloatOperand) -> Tensor:
    """Return whether each pair (p,) is still a candidate by the bound of its own centroid."""
    wide = scores.to(torch.float64)
    squares = centroids.squares[columns].to(torch.float64)
    dim = centroids.centroids.shape[1]
    errors = error_bound(point_norms[rows], centroids.norms[columns], squares, dim, centroids.scale)
    upper = torch.full_like(point_norms, math.inf).scatter_reduce_(0, rows, wide + errors, "amin")
    return wide - errors <= upper[rows]


def _decide(points: Tensor, centroids: Tensor, rows: Tensor, columns: Tensor, wanted: int) -> Tensor:
    """Return labels (n, wanted) by the float64 distances of pairs (p,), k if a point has too few pairs."""
    distances = pair_distances(points, centroids, rows, columns)
    labels = []
    for _ in range(wanted):
        nearest, taken = nearest_pairs(distances, rows, columns, len(points), len(centroids))
        labels.append(nearest)
        distances, rows, columns = distances[~taken], rows[~taken], columns[~taken]
    return torch.stack(labels, dim=1)


def gamma(dim: int) -> float:
    """Return the relative error bound of a float32 sum of `dim` products in any order, plus 8 more roundings."""
    terms = (dim + 8) * UNIT
    return terms / (1 - terms) if terms < 0.5 else math.inf


def row_norms(shifted: Tensor) -> Tensor:
    """Return upper bounds (n,) float64 of the norms of float32 rows, including squares that underflow."""
    dim = shifted.shape[1]
    computed = torch.linalg.vector_norm(shifted, dim=1).to(torch.float64)
    return computed * (1 + 2 * gamma(dim)) + math.sqrt(dim) * 2.0**-63


def reference_error(dim: int) -> float:
    """Return rho: the float64 reference is within rho (|x|^2 + |c|^2) of the true squared distance."""
    return (math.ceil(math.log2(dim)) + 6) * 2.0**-52


def error_bound(point_norms: Tensor, norms: Tensor, squares: Tensor, dim: int, scale: float) -> Tensor:
    """Bound |s_ij - true| plus the rounding of the float64 reference, in units of the scaled scores, float64.

    The terms are, in this order: the product and the rounding of both operands; the rounding of |c|^2 and of its
    addition; the float64 reference; products that underflow.
    """
    product = 2 * gamma(dim) * point_norms * norms
    reference = reference_error(dim) * (point_norms.square() + norms.square())
    underflow = dim * 2.0**-122 * (1 + point_norms + norms) + dim * 2.0**-1073 * scale * scale
    return (product + 4 * UNIT * squares + reference + underflow) * (1 + 2.0**-20)


def rounded_up(values: Tensor) -> Tensor:
    """Return float64 values as float32 values that are larger."""
    narrow = values.to(torch.float32)
    return torch.nextafter(narrow, torch.full_like(narrow, math.inf))


def pair_distances(points: Tensor, centroids: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Return (p,) float64 squared distances of points[rows] to centroids[columns]; rows None takes all in order."""
    result = torch.empty(len(columns), dtype=torch.float64, device=points.device)
    step = max(1, _PAIR_ELEMENTS // points.shape[1])
    for start in range(0, len(columns), step):
        part = slice(start, start + step)
        left = points[part] if rows is None else points[rows[part]]
        result[part] = squared_distances(left, centroids[columns[part]])
    return result


def nearest_pairs(distances: Tensor, rows: Tensor, columns: Tensor, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Find the nearest column of each row among pairs (p,) of rows and columns.

    Returns:
        columns (count,) int64, the lowest one if distances are equal and k for rows without pairs; and whether each
        pair (p,) was taken, bool.
    """
    best = torch.full((count,), math.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, rows, distances, "amin")
    equal = distances == best[rows]
    labels = torch.full((count,), k, dtype=torch.int64, device=rows.device)
    labels.scatter_reduce_(0, rows[equal], columns[equal], "amin")
    return labels, equal & (columns == labels[rows])


def float64_candidates(points: Tensor, centroids: Tensor, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the pairs (row, centroid) that may be among the `wanted` nearest, by a float64 matrix product.

    Use it for data that float32 products cannot tell apart. Points whose bound keeps many centroids, because the
    centroids span a wide range, are compared again relative to a near centroid, which loses no digits.

    Args:
        points: (n, D) float32 or float64, finite.
        centroids: (k, D) float32 or float64, finite.
        rows: (r,) int64, the points to compare.
        wanted: number of nearest centroids, 1 or 2.

    Returns:
        rows (p,) and columns (p,) int64 of the pairs, at least min(wanted, k) of each row.
    """
    wide = centroids.to(torch.float64)
    center = wide.mean(dim=0)
    center = center.where(torch.isfinite(center), 0)
    step = max(1, _BLOCK_SCORES // len(wide))
    found = []
    for part in rows.split(step):
        candidates, nearest = _float64_block(points[part].to(torch.float64) - center, wide - center, wanted)
        many = (candidates.sum(dim=1) > wanted + 1).nonzero()[:, 0]
        owners, members = nearest[many].unique(return_inverse=True)
        order = members.argsort(stable=True)
        for owner, group in zip(owners, many[order].split(members.bincount().tolist()), strict=True):
            if len(group) >= _GROUP_ROWS:
                origin = wide[owner]
                shifted = points[part[group]].to(torch.float64) - origin
                candidates[group] &= _float64_block(shifted, wide - origin, wanted)[0]
        place, columns = candidates.nonzero(as_tuple=True)
        found.append((part[place], columns))
    return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])


def _float64_block(shifted: Tensor, wide: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return whether each of k centroids may be among the nearest of n points (n, k), and the likely nearest (n,)."""
    squares = wide.square().sum(dim=1)
    scores = torch.addmm(squares, shifted, wide.T, alpha=-2)
    nearest = scores.argmin(dim=1)
    errors = _float64_error(shifted.square().sum(dim=1)[:, None], squares, wide.shape[1])
    highest = scores + errors
    count = min(wanted, len(wide))
    upper = highest.amin(dim=1) if count == 1 else highest.kthvalue(count, dim=1).values
    # Comparisons with scores that overflow are false, so their centroids stay candidates.
    return ~(scores.sub_(errors) > upper[:, None]), nearest


def _float64_error(point_squares: Tensor, squares: Tensor, dim: int) -> Tensor:
    """Bound the difference between float64 scores and those of the reference, (n, k) float64.

    Every rounding is relative to (|x| + |c|)^2 <= 2 (|x|^2 + |c|^2): of the centered operands, the product, the
    squares and the reference. Products may also underflow.
    """
    terms = (2 * dim + 64) * _UNIT_64
    return (2 * terms * (point_squares + squares)).add_(math.ldexp(dim + 8, -1020))
