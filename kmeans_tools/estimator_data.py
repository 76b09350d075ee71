"""What the estimators take as data: one check at the door, and the form in which the engine sees it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid, prepare_centroids
from sctok.kernels.reference import squared_distances

from .iterables import IterableSource
from .sources import ArraySource, ShardSource, Vectors, VectorSource, Weights, as_array

Array = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]
Data = Array | Tensor | VectorSource

_BLOCK_ELEMENTS = 1 << 22

_MERGED_ROWS = 16_384
_CLOSE = 1e-7  # share of |x|^2 + |c|^2 below which a squared distance has lost digits to cancellation


@dataclass(frozen=True)
class Frame:
    """How the engine sees float64 vectors: from the middle of their range, origin (D,), times 2**-exponent.

    So float32 keeps 24 bits of what tells the vectors apart, whatever their offset and scale. Neither the order nor the
    repetition of vectors changes it.
    """

    origin: Wide
    exponent: int

    @classmethod
    def around(cls, vectors: Wide) -> Self:
        """Return the frame of vectors (n, D)."""
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        origin = low / 2 + high / 2
        return cls(origin, int(np.frexp((high - origin).max())[1]))

    def inside(self, vectors: Wide) -> Vectors:
        """Return vectors (n, D) as the engine sees them."""
        result = np.empty(vectors.shape, np.float32)
        step = max(1, _BLOCK_ELEMENTS // vectors.shape[1])
        for start in range(0, len(vectors), step):
            result[start : start + step] = np.ldexp(vectors[start : start + step] - self.origin, -self.exponent)
        return result

    def outside(self, centers: Vectors) -> Wide:
        """Return centers (k, D) of the engine in the space of the vectors."""
        wide: Wide = np.ldexp(centers.astype(np.float64), self.exponent) + self.origin
        return wide


@dataclass(frozen=True)
class Problem:
    """Data as the engine clusters it.

    frame: of float64 arrays. distinct: all that there is to cluster, each vector once, where it was merged. whole: the
    source has all rows of the data, in their order and dtype.
    """

    source: VectorSource
    frame: Frame | None = None
    distinct: Vectors | None = None
    whole: bool = True

    def inside(self, centers: Wide) -> Vectors:
        """Return centers (k, D) in the space of the data as the engine sees them."""
        return self.frame.inside(centers) if self.frame else centers.astype(np.float32)

    def outside(self, centers: Vectors) -> Array:
        """Return centers (k, D) of the engine in the space and dtype of the data."""
        return self.frame.outside(centers) if self.frame else centers


def pose_problem(data: Array | VectorSource, weights: Wide | None) -> Problem:
    """Return data, an array (n, D) float32 or float64 or a source, as the engine takes it.

    Rows of weight 0 are left out. Arrays of up to 16,384 rows become their distinct rows, in an order of their own,
    with summed weights: the order of rows cannot matter then, and a weight of 2 is exactly a row that is there twice.
    """
    if not isinstance(data, np.ndarray):
        return Problem(data)
    rows = len(data)
    if weights is not None and not weights.all():
        data, weights = data[weights > 0], weights[weights > 0]
    frame = Frame.around(data) if data.dtype == np.float64 else None
    vectors = frame.inside(data) if frame else data
    if len(data) > _MERGED_ROWS:
        return Problem(ArraySource(vectors, "X", weights), frame, whole=frame is None and len(data) == rows)
    distinct, masses = _merge_equal(vectors, weights)
    merged = ArraySource(distinct, "X", None if (masses == 1).all() else masses)
    return Problem(merged, frame, distinct, whole=False)


def _merge_equal(vectors: Vectors, weights: Wide | None) -> tuple[Vectors, Weights]:
    """Return the distinct vectors, ordered by their bytes, and the sum of the weights (n,) of each."""
    # Adding zero turns -0.0 into 0.0, which compare equal and differ in their bytes. With the sign and the exponent
    # first, rounding of the vectors does not change the order.
    keys = [row.tobytes() for row in (vectors + np.float32(0)).astype(">f4")]
    ordered = sorted(set(keys))
    places = {key: place for place, key in enumerate(ordered)}
    masses = np.bincount([places[key] for key in keys], weights)
    distinct = np.frombuffer(b"".join(ordered), ">f4").reshape(-1, vectors.shape[1])
    return distinct.astype(np.float32), masses.astype(np.float64)


def as_source(X: Any) -> VectorSource | None:
    """Return X as a source of vectors, or None where it is an array or what NumPy makes one of.

    Sources are VectorSources, paths of feature shards (read unstacked), lists of matrices and other iterables that are
    no array-likes, and functions that return iterables.
    """
    if callable(getattr(X, "blocks", None)) and callable(getattr(X, "take", None)):
        source: VectorSource = X
        return source
    items = [X] if isinstance(X, str | os.PathLike) else X
    if isinstance(items, list | tuple):
        if items and all(isinstance(item, str | os.PathLike) for item in items):
            return ShardSource(items, 1)
        blocks = bool(items) and all(isinstance(item, np.ndarray | Tensor) and item.ndim == 2 for item in items)
    else:
        array = any(hasattr(X, name) for name in ("shape", "__array__", "__array_interface__", "__dataframe__"))
        blocks = not array and (callable(X) or isinstance(X, Iterable))
    return IterableSource(X, "X") if blocks else None


def check_tensor(X: Tensor) -> None:
    """Raise ValueError unless X is a matrix of real numbers with at least one row and column."""
    if X.ndim != 2 or 0 in X.shape or X.is_complex():
        raise ValueError(f"X must be a matrix of real numbers with rows and columns, not {X.dtype} {tuple(X.shape)}")


def check_finite_rows(rows: Array | Tensor) -> None:
    """Raise ValueError naming the first of the rows (n, D) that holds NaN or infinity."""
    step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        bad = ~(as_array(torch.isfinite(part)) if isinstance(part, Tensor) else np.isfinite(part)).all(axis=1)
        if bad.any():
            raise ValueError(f"X: row {start + int(bad.argmax())} holds NaN or infinity; remove it and try again")


def read_weights(sample_weight: Any, data: Data) -> Wide | None:
    """Return sample weights (n,) float64, those that a source has itself, or None where all rows weigh 1.

    Raises:
        ValueError: weights that do not fit data (n, D), are negative, not finite or all zero, or go with a source.
    """
    if not isinstance(data, np.ndarray | Tensor):
        if sample_weight is not None:
            raise ValueError("sample_weight goes with arrays and tensors; sources bring weights of their own")
        own: Wide | None = getattr(data, "weights", None)
        return own
    if sample_weight is None:
        return None
    weights: Wide = np.asarray(as_array(sample_weight), np.float64)
    if weights.shape != (len(data),):
        raise ValueError(f"sample_weight of shape {weights.shape} does not fit the {len(data)} rows of X")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"sample_weight of row {row} is {weights[row]}, not a number of at least 0")
    if not weights.any():
        raise ValueError("sample_weight is zero for every row")
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise ValueError("sample_weight is too large to be summed; scale the weights down")
    return weights


def point_blocks(data: Data, centers: Tensor) -> Iterator[Tensor]:
    """Yield the vectors (n, D) of data in order on the device of centers (k, D), at most 4 M numbers at a time."""
    step = max(1, _BLOCK_ELEMENTS // max(centers.shape))
    if isinstance(data, Tensor):
        yield from (part.detach().to(centers.device) for part in data.split(step))
    elif isinstance(data, np.ndarray):
        for start in range(0, len(data), step):
            yield torch.from_numpy(data[start : start + step].copy()).to(centers.device)
    else:
        yield from (torch.from_numpy(block.rows).to(centers.device) for block in data.blocks(step))


def assigned_blocks(data: Data, centers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each block of vectors (n, D) with the places (n,) int64 of their nearest centers, the float64 argmin."""
    prepared = prepare_centroids(centers)
    for points in point_blocks(data, centers):
        yield points, nearest_centroid(points, prepared).labels


def evaluate(data: Data, weights: Wide | None, centers: Tensor) -> tuple[npt.NDArray[np.int32], float]:
    """Return the labels (n,) of data and the sum of their squared distances, times weights (n,)."""
    labels, squares = [], []
    for points, found in assigned_blocks(data, centers):
        labels.append(found.cpu().numpy().astype(np.int32))
        squares.append(squared_distances(points, centers[found]).cpu().numpy())
    joined = np.concatenate(squares)
    return np.concatenate(labels), float(np.sum(joined if weights is None else weights * joined))


def distances(points: Tensor, centers: Tensor) -> Tensor:
    """Return the distances (n, k) of points (n, D) to centers (k, D), computed in float64, close pairs term by term.

    In the dtype of the points, of integers in float32.
    """
    origin = centers.to(torch.float64).mean(dim=0)
    left, right = points.to(torch.float64) - origin, centers.to(torch.float64) - origin
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    squares = torch.addmm(scale, left, right.T, alpha=-2)
    rows, columns = (squares < _CLOSE * scale).nonzero(as_tuple=True)
    step = max(1, _BLOCK_ELEMENTS // points.shape[1])
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        squares[row, column] = squared_distances(points[row], centers[column])
    return squares.sqrt_().to(points.dtype if points.is_floating_point() else torch.float32)
