"""Labels, inertia and distances of data of any kind, computed in float64."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import PreparedCentroids, nearest_centroid, prepare_centroids
from sctok.kernels.certify import as_real
from sctok.kernels.reference import squared_distances
from sctok.kmeans_tools.sources.vectors import Data, WideSource

from .frames import Float32Frame, Wide, resolved, rows_per_block, safe_exponent

_CLOSE = 1e-7  # squared distances below this share of |x|^2 + |c|^2 have lost digits to cancellation


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labels (n,) int32 of data, and the inertia: the weighted sum of squared distances to the centers.

    resolved: whether float32 resolves every cluster; True if no frame was given.
    """

    labels: npt.NDArray[np.int32]
    inertia: float
    resolved: bool = True


def point_blocks(data: Data, centers: Tensor) -> Iterator[Tensor]:
    """Yield the vectors (n, D) of data in order on the device of centers (k, D), at most 4 M numbers at a time."""
    step = rows_per_block(max(centers.shape))
    if isinstance(data, Tensor):
        yield from (as_real(part).to(centers.device) for part in data.split(step))
    elif isinstance(data, np.ndarray):
        for start in range(0, len(data), step):
            yield torch.from_numpy(data[start : start + step].copy()).to(centers.device)
    else:
        blocks = cast(WideSource, data).wide_blocks(step) if getattr(data, "wide", False) else data.blocks(step)
        yield from (torch.from_numpy(block.rows).to(centers.device) for block in blocks)


class _Scaled:
    """Scales centers (k, D) and blocks of points by 2**-e, with e chosen per block so that squares do not overflow."""

    def __init__(self, centers: Tensor) -> None:
        self._centers = centers
        self._largest = _largest(centers)
        self._prepared: dict[int, PreparedCentroids] = {}

    def scale(self, points: Tensor) -> tuple[Tensor, PreparedCentroids, int]:
        """Return the scaled points (n, D), the scaled and prepared centers, and e."""
        wide = torch.float64 in (points.dtype, self._centers.dtype)
        exponent = safe_exponent(max(self._largest, _largest(points))) if wide else 0
        if exponent not in self._prepared:
            self._prepared[exponent] = prepare_centroids(_times_power(self._centers, -exponent))
        return _times_power(points, -exponent), self._prepared[exponent], exponent


def predict_blocks(data: Data, centers: Tensor) -> Iterator[Tensor]:
    """Yield the labels (n,) int64 of each block of vectors: the nearest center, the float64 argmin."""
    scaled = _Scaled(centers)
    for points in point_blocks(data, centers):
        inside, prepared, _ = scaled.scale(points)
        yield nearest_centroid(inside, prepared).labels


def evaluate(data: Data, weights: Wide | None, centers: Tensor, frame: Float32Frame | None = None) -> Evaluation:
    """Return the labels of data (n, D) and their inertia under weights (n,).

    With a frame, also return whether float32 resolves every cluster, see `resolved`.
    """
    scaled, k = _Scaled(centers), len(centers)
    labels, squares = [], []
    lost, found_squares = np.zeros(k), np.zeros(k)
    for points in point_blocks(data, centers):
        inside, prepared, exponent = scaled.scale(points)
        found = nearest_centroid(inside, prepared).labels
        near = squared_distances(inside, prepared.centroids[found]).cpu().numpy()
        labels.append(found.cpu().numpy().astype(np.int32))
        with np.errstate(over="ignore"):
            squares.append(np.ldexp(near, 2 * exponent))
        if frame is not None:
            losses = frame.square_losses(points.cpu().numpy())
            lost += np.bincount(labels[-1], np.where(near > 0, losses, 0), k)
            found_squares += np.bincount(labels[-1], np.ldexp(near, 2 * (exponent - frame.exponent)), k)
    joined = np.concatenate(squares)
    with np.errstate(over="ignore"):
        inertia = float(np.sum(joined if weights is None else weights * joined))
    return Evaluation(np.concatenate(labels), inertia, resolved(lost, found_squares))


def warn_of_overflow(inertia: float) -> float:
    """Return the inertia; emit a RuntimeWarning if it overflows float64."""
    if not np.isfinite(inertia):
        warnings.warn("the inertia overflows float64: scale X or sample_weight down", RuntimeWarning, stacklevel=4)
    return inertia


def distances(points: Tensor, centers: Tensor) -> Tensor:
    """Return the Euclidean distances (n, k) of points (n, D) to centers (k, D), computed in float64.

    Distances of close pairs are computed from differences. The result is float64 for float64 and integer points, and
    float32 for shorter floats.
    """
    exponent = safe_exponent(max(_largest(points), _largest(centers)))
    wide = _times_power(centers.to(torch.float64), -exponent)
    values = _times_power(points.to(torch.float64), -exponent)
    origin = wide.mean(dim=0)
    left, right = values - origin, wide - origin
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    squares = torch.addmm(scale, left, right.T, alpha=-2)
    rows, columns = (squares < _CLOSE * scale).nonzero(as_tuple=True)
    step = rows_per_block(points.shape[1])
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        squares[row, column] = squared_distances(values[row], wide[column])
    result = _times_power(squares.sqrt_(), exponent)
    narrow = points.is_floating_point() and points.dtype != torch.float64
    result = result.to(torch.float32) if narrow else result
    if not bool(torch.isfinite(result).all()):
        warnings.warn(f"distances overflow {result.dtype}: scale X down", RuntimeWarning, stacklevel=3)
    return result


def _largest(values: Tensor) -> float:
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _times_power(values: Tensor, exponent: int) -> Tensor:
    """Return values times 2**exponent, as float64 unless the exponent is 0. Two factors avoid an overflow of one."""
    if exponent == 0:
        return values
    half = exponent // 2
    return values.to(torch.float64) * 2.0**half * 2.0 ** (exponent - half)
