"""Float64 vectors as the float32 engine sees them, and how much of them float32 can hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from sctok.kmeans_tools.sources.vectors import Block, Vectors, Weights, WideSource, sample_places, take_blocks

Wide = npt.NDArray[np.float64]

# Largest ratio, in the norm over the rows of a cluster, of what float32 rounds off to the distances within the cluster.
RESOLVED = 2.0**-12
_BLOCK_ROWS = 16_384
_NEAR = 4.0  # ranges of the data within which first centers are given to float32


@dataclass(frozen=True)
class Float32Frame:
    """A view of float64 vectors from the middle of their range, origin (D,), times 2**-exponent.

    So float32 keeps 24 bits of the range of the vectors, whatever their offset and scale. Neither the order nor the
    repetition of vectors changes the frame.
    """

    origin: Wide
    exponent: int

    @classmethod
    def between(cls, low: Wide, high: Wide) -> Self:
        """Return the frame of vectors whose values lie between low (D,) and high (D,)."""
        origin = low / 2 + high / 2
        return cls(origin, int(np.frexp((high - origin).max())[1]))

    def inside(self, vectors: Wide) -> Vectors:
        """Return vectors (n, D) as the engine sees them."""
        with np.errstate(over="ignore"):
            result: Vectors = np.ldexp(vectors - self.origin, -self.exponent).astype(np.float32)
        return result

    def outside(self, centers: Vectors) -> Wide:
        """Return centers (k, D) of the engine in the space of the vectors."""
        wide: Wide = np.ldexp(centers.astype(np.float64), self.exponent) + self.origin
        return wide

    def holds(self, centers: Wide) -> bool:
        """Return whether centers (k, D) lie near enough to the vectors for float32 to hold them as well."""
        return bool((np.abs(self.inside(centers)) <= _NEAR).all())

    def square_losses(self, vectors: Wide) -> Wide:
        """Return the squared distance (n,) from each vector to what float32 keeps of it, times 4**-exponent."""
        exact = np.ldexp(vectors - self.origin, -self.exponent)
        lost = exact - exact.astype(np.float32)
        result: Wide = np.einsum("nd,nd->n", lost, lost)
        return result


def resolved(losses: Wide, squares: Wide) -> bool:
    """Return whether float32 resolves every cluster, by the sums over its rows (k,) of what is lost and of distances.

    By the triangle inequality the root of the inertia of a cluster then changes by at most 2^-12 of itself.
    """
    return bool((losses <= RESOLVED**2 * squares).all())


class FramedSource:
    """A source of float64 vectors in a frame, as a VectorSource of float32."""

    def __init__(self, source: WideSource, frame: Float32Frame) -> None:
        self._source, self._frame = source, frame
        self.rows, self.dim, self.name = source.rows, source.dim, source.name
        self.weights: Weights | None = getattr(source, "weights", None)
        self.fingerprint = ""

    def blocks(self, block_rows: int, seed: int | None = None, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """See VectorSource; always in order and whole."""
        for block in self._source.wide_blocks(block_rows):
            yield Block(block.places, self._frame.inside(block.rows), block.weights)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource."""
        return take_blocks(self.blocks(_BLOCK_ROWS), places, np.empty((len(places), self.dim), np.float32))

    def sample(self, count: int, seed: Sequence[int]) -> Vectors:
        """See VectorSource."""
        return self.take(sample_places(self.rows, count, seed))
