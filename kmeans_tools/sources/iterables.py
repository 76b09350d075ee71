"""Vectors from an iterable of blocks, which every pass iterates over from the start."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.runtime.read_ahead import read_ahead

from .vectors import Block, Vectors, as_array, check_finite, is_wide, plan_blocks

Blocks = Iterable[Any] | Callable[[], Iterable[Any]]
_HASH_CHARACTERS = 16


class IterableSource:
    """Vectors of the arrays (n, D) that an iterable yields, of any real dtype; n >= 0 can differ from array to array.

    blocks: an iterable that starts again each time it is iterated over, or a function that returns an iterable; its
    arrays are of NumPy or torch. The constructor reads it once to count and check the vectors, and each pass reads it
    again. Memory holds one of its arrays and two blocks at a time. It must yield the same vectors each time.
    wide: whether any array holds float64 or integers.
    beyond_float32: accept finite values that exceed the range of float32, which only `wide_blocks` can represent.

    Raises:
        ValueError: there are no vectors; the iterable is a one-shot iterator; arrays differ in D; a vector, which is
            named, holds NaN or infinity. Raised by a later pass if that yields other numbers or widths of vectors.
    """

    def __init__(self, blocks: Blocks, name: str = "iterable", *, beyond_float32: bool = False) -> None:
        self.name = name
        self._beyond = beyond_float32
        self._make = blocks if callable(blocks) else lambda: blocks
        if not callable(blocks) and iter(blocks) is blocks:
            raise ValueError(f"{name} can be read only once; pass a function that returns a new iterator each time")
        self.dim = self.rows = 0
        self.wide = False
        digest = hashlib.sha256()
        for start, array in self._arrays(None):
            rows = self._narrow(start, array)
            self.dim, self.rows = rows.shape[1], start + len(rows)
            self.wide = self.wide or is_wide(array.dtype)
            digest.update(rows.data)
        if not self.rows:
            raise ValueError(f"{name} yields no vectors")
        self.fingerprint = digest.hexdigest()[:_HASH_CHARACTERS]

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        spans = plan_blocks(self.rows, block_rows, span)
        return read_ahead(self._blocks(np.arange(start, stop, dtype=np.int64) for start, stop in spans))

    def wide_blocks(self, block_rows: int) -> Iterator[Block]:
        """Yield all vectors in order as float64, at most block_rows at a time."""
        for start, array in self._arrays(self.rows):
            for first in range(0, len(array), block_rows):
                rows = np.ascontiguousarray(array[first : first + block_rows], np.float64)
                yield Block(np.arange(start + first, start + first + len(rows), dtype=np.int64), rows)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        (block,) = self._blocks(iter([places]))
        return block.rows

    def _blocks(self, wanted: Iterator[npt.NDArray[np.int64]]) -> Iterator[Block]:
        """Yield one block for each array of places; the places ascend over all blocks."""
        arrays = self._arrays(self.rows)
        first, rest = 0, np.empty((0, self.dim), np.float32)
        for places in wanted:
            result = np.empty((len(places), self.dim), np.float32)
            done = 0
            while done < len(places):
                stop = int(np.searchsorted(places, first + len(rest)))
                result[done:stop] = rest[places[done:stop] - first]
                done = stop
                if done < len(places):
                    first, array = next(arrays)
                    rest = self._narrow(first, array)
            yield Block(places, result)
        if first + len(rest) >= self.rows:
            for _ in arrays:  # raises if vectors are left
                pass

    def _narrow(self, start: int, array: npt.NDArray[Any]) -> Vectors:
        """Convert an array to float32 in C order; `start` is the place of its first vector."""
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, np.float32)
        if not self._beyond:
            check_finite(rows, np.arange(start, start + len(rows)), self.name, "vector")
        return rows

    def _arrays(self, expected: int | None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield each non-empty array with the place of its first vector.

        Raises:
            ValueError: the arrays do not hold `expected` vectors in total, or an array is not a matrix of numbers.
        """
        start, dim = 0, self.dim
        for index, values in enumerate(self._make()):
            array = as_array(values)
            if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
                raise ValueError(
                    f"{self.name}: block {index} must be numbers of shape (n, D), not {array.dtype} {array.shape}"
                )
            if dim and array.shape[1] != dim:
                raise ValueError(f"{self.name}: block {index} has vectors of width {array.shape[1]}, others of {dim}")
            dim = array.shape[1]
            if len(array):
                if self._beyond:
                    check_finite(array, np.arange(start, start + len(array)), self.name, "vector")
                yield start, array
                start += len(array)
        if expected is not None and start != expected:
            raise ValueError(f"{self.name} yields {start} vectors, and {expected} the first time it was read")
