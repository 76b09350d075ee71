"""What every exact search shares: bounds of float32 scores, and float64 distances in one fixed order of summation."""

import math

import torch
from torch import Tensor

from .reference import squared_distances

UNIT = 2.0**-24  # float32 rounding

_PAIR_ELEMENTS = 1 << 18  # of float64 differences, 2 MiB, so that they stay in cache


def as_real(values: Tensor) -> Tensor:
    """Return float32 for narrower floats and float64 for integers and float64: no value changes below 2^53.

    The result has no gradient.

    Raises:
        ValueError: numbers that are not real, or a tensor that is not dense and in memory.
    """
    check_real(values)
    values = values.detach()
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.is_floating_point() else torch.float64)


def check_real(values: Tensor, name: str = "the tensor") -> None:
    """Raise ValueError unless a tensor holds real numbers, each of them in memory."""
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


def gamma(dim: int) -> float:
    """Return the relative error bound of a float32 sum of `dim` products in any order, with room for 8 roundings."""
    terms = (dim + 8) * UNIT
    return terms / (1 - terms) if terms < 0.5 else math.inf


def row_norms(shifted: Tensor) -> Tensor:
    """Return upper bounds (n,) float64 of the norms of float32 rows, squares that underflow included."""
    dim = shifted.shape[1]
    computed = torch.linalg.vector_norm(shifted, dim=1).to(torch.float64)
    bound: Tensor = computed * (1 + 2 * gamma(dim)) + math.sqrt(dim) * 2.0**-63
    return bound


def error_bound(point_norms: Tensor, norms: Tensor, squares: Tensor, dim: int, scale: float) -> Tensor:
    """Bound |s_ij - true| plus the rounding of the float64 reference, in units of the scaled scores, float64.

    In turn: the product and the rounding of both operands; the rounding of ||c||^2 and of its addition; the float64
    reference, which rounds distances of up to (|x| + |c|)^2 a few times; products lost to underflow or flushed to zero.
    """
    product = 2 * gamma(dim) * point_norms * norms
    reference = (math.ceil(math.log2(dim)) + 6) * 2.0**-52 * (point_norms.square() + norms.square())
    underflow = dim * 2.0**-122 * (1 + point_norms + norms) + dim * 2.0**-1073 * scale * scale
    bound: Tensor = (product + 4 * UNIT * squares + reference + underflow) * (1 + 2.0**-20)
    return bound


def pair_distances(points: Tensor, centroids: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Return (p,) float64 squared distances of points[rows] (all in order where None) to centroids[columns]."""
    result = torch.empty(len(columns), dtype=torch.float64, device=points.device)
    step = max(1, _PAIR_ELEMENTS // points.shape[1])
    for start in range(0, len(columns), step):
        part = slice(start, start + step)
        left = points[part] if rows is None else points[rows[part]]
        result[part] = squared_distances(left, centroids[columns[part]])
    return result


def nearest_pairs(distances: Tensor, rows: Tensor, columns: Tensor, count: int, k: int) -> tuple[Tensor, Tensor]:
    """Return per row (count,) the column of the smallest of its pairs' distances (p,), and which pair (p,) bool it is.

    The lowest column where several are equal; k for rows without pairs.
    """
    best = torch.full((count,), math.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, rows, distances, "amin")
    equal = distances == best[rows]
    labels = torch.full((count,), k, dtype=torch.int64, device=rows.device)
    labels.scatter_reduce_(0, rows[equal], columns[equal], "amin")
    return labels, equal & (columns == labels[rows])
