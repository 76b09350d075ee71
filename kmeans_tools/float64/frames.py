"""Float64 vectors as the float32 engine sees them, and whether float32 resolves their clusters."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from sctok.kmeans_tools.sources.vectors import Block, Vectors, WideSource, source_weights, take_blocks

Wide = npt.NDArray[np.float64]

BLOCK_ELEMENTS = 1 << 22
# float32 resolves a cluster if its rounding errors are at most this share of the distances to the center, in the norm
# over the vectors of the cluster.
RESOLVED = 2.0**-12
_BLOCK_ROWS = 16_384
_NEAR = 4.0  # first centers farther from the data than this many times their range are not converted to float32
_SAFE_EXPONENT = 200  # squares of numbers below 2**200 and above 2**-200 add up without overflow or underflow


def rows_per_block(width: int) -> int:
    """Return the number of rows in a block of about 4 M numbers, `width` per row."""
    return max(1, BLOCK_ELEMENTS // width)


def safe_exponent(largest: float) -> int:
    """Return e such that numbers up to `largest`, times 2**-e, have squares that can be summed; 0 if no e is needed."""
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    return exponent if abs(exponent) > _SAFE_EXPONENT else 0


@dataclass(frozen=True)
class Float32Frame:
    """A transformation of float64 vectors for float32: (x - origin) times 2**-exponent; origin (D,) is mid-range.

    float32 then keeps 24 bits of the range of the vectors, whatever their offset and scale. The frame does not depend
    on the order or the repetition of vectors.
    """

    origin: Wide
    exponent: int

    @classmethod
    def between(cls, low: Wide, high: Wide) -> Self:
        """Return the frame of vectors with values between low (D,) and high (D,)."""
        origin = low / 2 + high / 2
        return cls(origin, int(np.frexp((high - origin).max())[1]))

    def inside(self, vectors: Wide) -> Vectors:
        """Convert vectors (n, D) to the frame."""
        with np.errstate(over="ignore"):
            return np.ldexp(vectors - self.origin, -self.exponent).astype(np.float32)

    def outside(self, centers: Vectors) -> Wide:
        """Convert centers (k, D) of the frame back to the space of the vectors."""
        return np.ldexp(centers.astype(np.float64), self.exponent) + self.origin

    def holds(self, centers: Wide) -> bool:
        """Return whether centers (k, D) are near enough to the vectors to be converted to float32."""
        return bool((np.abs(self.inside(centers)) <= _NEAR).all())

    def square_losses(self, vectors: Wide) -> Wide:
        """Return the squared rounding error (n,) of each vector in the frame, times 4**-exponent."""
        exact = np.ldexp(vectors - self.origin, -self.exponent)
        lost = exact - exact.astype(np.float32)
        return np.einsum("nd,nd->n", lost, lost)


def resolved(losses: Wide, squares: Wide) -> bool:
    """Return whether float32 resolves every cluster, by its sums (k,) of squared rounding errors and distances.

    By the triangle inequality the square root of the inertia of a cluster then changes by at most 2^-12 of itself.
    """
    return bool((losses <= RESOLVED**2 * squares).all())


class FramedSource:
    """A VectorSource that converts the float64 vectors of another source to a frame."""

    def __init__(self, source: WideSource, frame: Float32Frame) -> None:
        self._source, self._frame = source, frame
        self.rows, self.dim, self.name = source.rows, source.dim, source.name
        self.weights = source_weights(source)
        self.fingerprint = ""

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        """See VectorSource; always yields all vectors."""
        for block in self._source.wide_blocks(block_rows):
            yield Block(block.places, self._frame.inside(block.rows), block.weights)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        return take_blocks(self.blocks(_BLOCK_ROWS), places, np.empty((len(places), self.dim), np.float32))
