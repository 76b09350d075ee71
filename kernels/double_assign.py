"""Candidates for the nearest centroid by a float64 matrix product, for data that float32 products cannot tell apart."""

import math

import torch
from torch import Tensor

_UNIT = 2.0**-53  # float64 rounding
_BLOCK_SCORES = 1 << 22  # 32 MiB of float64


def double_candidates(points: Tensor, centroids: Tensor, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the pairs (row, centroid) that may be among the `wanted` nearest by the float64 reference.

    points (n, D) and centroids (k, D): float32 or float64, finite. rows (r,) int64: the points to look at, ascending.
    Returns the rows (p,) and columns (p,) int64 of the pairs in row-major order, at least `wanted` (or k) for each row.
    """
    center = centroids.to(torch.float64).mean(dim=0)
    center = center.where(torch.isfinite(center), 0)
    wide = centroids.to(torch.float64) - center
    found = [
        _block_candidates(points[part].to(torch.float64) - center, wide, part, wanted)
        for part in rows.split(max(1, _BLOCK_SCORES // len(centroids)))
    ]
    return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])


def _block_candidates(shifted: Tensor, wide: Tensor, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    squares = wide.square().sum(dim=1)
    scores = torch.addmm(squares, shifted, wide.T, alpha=-2)
    errors = _error_bound(shifted.square().sum(dim=1)[:, None], squares, wide.shape[1])
    upper = (scores + errors).kthvalue(min(wanted, len(wide)), dim=1).values
    # Scores that overflow compare with nothing: their centroids stay candidates.
    candidates = ~(scores.sub_(errors) > upper[:, None])
    place, columns = candidates.nonzero(as_tuple=True)
    return rows[place], columns


def _error_bound(point_squares: Tensor, squares: Tensor, dim: int) -> Tensor:
    """Bound how far scores lie from those of the reference, (n, k) float64.

    Every rounding of the centred operands, of the product in any order, of the squares and of the reference itself is
    relative to (|x| + |c|)^2 <= 2 (|x|^2 + |c|^2); products may also be lost to underflow.
    """
    terms = (2 * dim + 64) * _UNIT
    return (2 * terms * (point_squares + squares)).add_(math.ldexp(dim + 8, -1020))
