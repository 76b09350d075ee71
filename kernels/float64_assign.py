"""Candidates for the nearest centroid by a float64 matrix product, for data that float32 products cannot tell apart."""

import math

import torch
from torch import Tensor

_UNIT = 2.0**-53  # float64 rounding
_BLOCK_SCORES = 1 << 22  # 32 MiB of float64
_GROUP_ROWS = 4  # for which shifting all centroids pays


def double_candidates(points: Tensor, centroids: Tensor, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the pairs (row, centroid) that may be among the `wanted` nearest by the float64 reference.

    points (n, D) and centroids (k, D): float32 or float64, finite. rows (r,) int64: the points to look at.
    Returns the rows (p,) and columns (p,) int64 of the pairs, at least `wanted` (or k) for each row. Rows that keep
    many centroids, because of the range of all of them, are compared again from a near one, where no digits are lost.
    """
    wide = centroids.to(torch.float64)
    center = wide.mean(dim=0)
    center = center.where(torch.isfinite(center), 0)
    step = max(1, _BLOCK_SCORES // len(wide))
    found = []
    for part in rows.split(step):
        candidates, nearest = _candidates(points[part].to(torch.float64) - center, wide - center, wanted)
        many = (candidates.sum(dim=1) > wanted + 1).nonzero()[:, 0]
        owners, members = nearest[many].unique(return_inverse=True)
        order = members.argsort(stable=True)
        for owner, group in zip(owners, many[order].split(members.bincount().tolist()), strict=True):
            if len(group) >= _GROUP_ROWS:
                origin = wide[owner]
                shifted = points[part[group]].to(torch.float64) - origin
                candidates[group] &= _candidates(shifted, wide - origin, wanted)[0]
        place, columns = candidates.nonzero(as_tuple=True)
        found.append((part[place], columns))
    return torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found])


def _candidates(shifted: Tensor, wide: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return which of k centroids may be among the nearest of n points, bool (n, k), and about the nearest (n,)."""
    squares = wide.square().sum(dim=1)
    scores = torch.addmm(squares, shifted, wide.T, alpha=-2)
    nearest = scores.argmin(dim=1)
    errors = _error_bound(shifted.square().sum(dim=1)[:, None], squares, wide.shape[1])
    highest = scores + errors
    count = min(wanted, len(wide))
    upper = highest.amin(dim=1) if count == 1 else highest.kthvalue(count, dim=1).values
    # Scores that overflow compare with nothing: their centroids stay candidates.
    return ~(scores.sub_(errors) > upper[:, None]), nearest


def _error_bound(point_squares: Tensor, squares: Tensor, dim: int) -> Tensor:
    """Bound how far scores lie from those of the reference, (n, k) float64.

    Every rounding of the centred operands, of the product in any order, of the squares and of the reference itself is
    relative to (|x| + |c|)^2 <= 2 (|x|^2 + |c|^2); products may also be lost to underflow.
    """
    terms = (2 * dim + 64) * _UNIT
    return (2 * terms * (point_squares + squares)).add_(math.ldexp(dim + 8, -1020))
