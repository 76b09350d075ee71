"""Data in the form that the float32 and float64 engines cluster."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sctok.kmeans_tools.sources.distinct import find_distinct
from sctok.kmeans_tools.sources.vectors import Array, ArraySource, Vectors, VectorSource, Weights, WideSource

from .frames import Float32Frame, FramedSource, Wide, rows_per_block
from .lloyd import WideData, scale_weights

_MERGED_ROWS = 16_384
_BLOCK_ROWS = 16_384
_FEW_NUMBERS, _FEW_NUMBERS_GIVEN = 1 << 26, 1 << 32  # numbers of differences n D k per pass


@dataclass(frozen=True)
class Problem:
    """Vectors to cluster.

    source: the vectors as float32. wide, frame: for float64 and integer data, the original vectors and the frame to
    which `source` converts them. distinct: the distinct vectors, if equal rows were merged. whole: whether the source
    has all rows of the data in their order.
    """

    source: VectorSource
    wide: WideData | None = None
    frame: Float32Frame | None = None
    distinct: Array | None = None
    whole: bool = True

    def is_small(self, k: int, *, given: bool) -> bool:
        """Return whether the data are small enough for k-means in float64.

        The limit is higher for given centers, because there every rounding can lead to another local minimum.
        """
        return self.source.rows * self.source.dim * k <= (_FEW_NUMBERS_GIVEN if given else _FEW_NUMBERS)

    def inside(self, centers: Wide) -> Vectors:
        """Convert centers (k, D) from the space of the data to that of the float32 engine."""
        return self.frame.inside(centers) if self.frame else centers.astype(np.float32)

    def all_distinct(self, most: int) -> Array:
        """Return at most `most` distinct vectors (m, D), in the space of the data."""
        if self.distinct is not None:
            return self.distinct
        if self.wide is None:
            return find_distinct(self.source.blocks(_BLOCK_ROWS), most).vectors
        return find_distinct(self.wide.source.wide_blocks(_BLOCK_ROWS), most).vectors


def pose_problem(data: Array | VectorSource, weights: Wide | None) -> Problem:
    """Prepare data, a source or an array (n, D) of float32 or float64, for the engines.

    Rows of weight 0 are removed from arrays, and extreme weights are scaled. Arrays of up to 16,384 rows are reduced to
    their distinct rows with summed weights, in an order that depends only on their values. The result then does not
    depend on the order of rows, and a row of weight 2 equals a row that occurs twice.
    """
    if not isinstance(data, np.ndarray):
        return _wide_problem(cast(WideSource, data)) if getattr(data, "wide", False) else Problem(data)
    rows = len(data)
    weights = None if weights is None else scale_weights(weights)
    if weights is not None and not weights.all():
        data, weights = data[weights > 0], weights[weights > 0]
    wide = data.dtype == np.float64
    if len(data) > _MERGED_ROWS:
        source = ArraySource(data, "X", weights)
        return _wide_problem(source, whole=len(data) == rows) if wide else Problem(source, whole=len(data) == rows)
    low, high = data.min(axis=0), data.max(axis=0)
    distinct, masses = _merge_equal(data, weights, Float32Frame.between(low, high) if wide else None)
    source = ArraySource(distinct, "X", None if (masses == 1).all() else masses)
    return _wide_problem(source, distinct) if wide else Problem(source, distinct=distinct, whole=False)


def _wide_problem(source: WideSource, distinct: Array | None = None, whole: bool = True) -> Problem:
    low, high = np.full(source.dim, np.inf), np.full(source.dim, -np.inf)
    for block in source.wide_blocks(rows_per_block(source.dim)):
        low, high = np.minimum(low, block.rows.min(axis=0)), np.maximum(high, block.rows.max(axis=0))
    frame = Float32Frame.between(low, high)
    data = WideData.between(source, low, high)
    framed: VectorSource = FramedSource(source, frame)
    if isinstance(source, ArraySource):  # it is in memory, so a copy of half the size fits too
        framed = ArraySource(framed.take(np.arange(source.rows)), source.name, source.weights)
    return Problem(framed, data, frame, distinct, whole and distinct is None)


def _merge_equal(
    vectors: npt.NDArray[Any], weights: Wide | None, frame: Float32Frame | None
) -> tuple[npt.NDArray[Any], Weights]:
    """Return the distinct vectors, ordered by their bytes in the frame, and the sum of the weights (n,) of each."""
    keys = _keys(vectors)
    first: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    distinct = vectors[list(first.values())] + vectors.dtype.type(0)
    known = list(first)
    if frame is not None:
        known = [near + key for near, key in zip(_keys(frame.inside(distinct)), known, strict=True)]
    order = sorted(range(len(known)), key=known.__getitem__)
    places = {key: place for place, key in enumerate(list(first)[index] for index in order)}
    masses = np.bincount([places[key] for key in keys], weights)
    return distinct[order], masses.astype(np.float64)


def _keys(vectors: npt.NDArray[Any]) -> list[bytes]:
    """Return the bytes of each vector of (n, D); equal vectors have equal bytes.

    Adding zero turns -0.0 into 0.0: they compare equal but have different bytes. The bytes are big-endian, sign and
    exponent first, so that rounding the vectors does not change their order.
    """
    values = (vectors + vectors.dtype.type(0)).astype(vectors.dtype.newbyteorder(">"))
    return [row.tobytes() for row in values]
