"""Vectors that come as an iterable of blocks, read again from the start in every pass."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.runtime.read_ahead import read_ahead

from .vectors import Block, Vectors, as_array, check_finite, check_finite_wide, is_wide, plan_blocks, sample_places

Blocks = Iterable[Any] | Callable[[], Iterable[Any]]
_HASH_CHARACTERS = 16


class IterableSource:
    """Vectors of arrays (n, D) that an iterable yields, of any real dtype, n >= 0 of its own choice each.

    blocks: an iterable that starts afresh each time it is iterated over, or a function that returns one; arrays of
    NumPy or torch. It is read once here to count and check the vectors, and once per pass; one of its
    arrays and two blocks are in memory at a time. It must yield the same vectors each time, and cannot be shuffled:
    "shuffled" blocks come in its own order. wide: whether any array holds float64 or integers.
    beyond_float32: accept finite values that exceed the range of float32, which only `wide_blocks` can give.

    Raises:
        ValueError: no vectors; a one-shot iterator; arrays of different D or none; NaN or infinity, naming the vector;
            later also where it yields fewer, more or wider vectors than the first time.
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

    def blocks(self, block_rows: int, seed: int | None = None, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """See VectorSource."""
        return read_ahead(self._blocks(self._wanted(block_rows, seed, part)))

    def wide_blocks(self, block_rows: int) -> Iterator[Block]:
        """Yield all vectors in order as float64, at most block_rows at a time."""
        for start, array in self._arrays(self.rows):
            for first in range(0, len(array), block_rows):
                rows = np.ascontiguousarray(array[first : first + block_rows], np.float64)
                yield Block(np.arange(start + first, start + first + len(rows), dtype=np.int64), rows)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource."""
        (block,) = self._blocks(iter([places]))
        return block.rows

    def sample(self, count: int, seed: Sequence[int]) -> Vectors:
        """See VectorSource."""
        return self.take(sample_places(self.rows, count, seed))

    def _wanted(self, block_rows: int, seed: int | None, part: tuple[int, int]) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the ascending places of each block."""
        rank, world = part
        if seed is None:
            for ((start, stop),) in plan_blocks(self.rows, block_rows, None, part):
                yield np.arange(start, stop, dtype=np.int64)
            return
        for ((start, stop),) in plan_blocks(self.rows, block_rows, None):
            yield np.arange(start + rank, stop, world, dtype=np.int64)

    def _blocks(self, wanted: Iterator[npt.NDArray[np.int64]]) -> Iterator[Block]:
        """Yield the vectors at places that ascend over all blocks."""
        arrays = self._arrays(self.rows)
        first, held = 0, np.empty((0, self.dim), np.float32)
        for places in wanted:
            result = np.empty((len(places), self.dim), np.float32)
            done = 0
            while done < len(places):
                stop = int(np.searchsorted(places, first + len(held)))
                result[done:stop] = held[places[done:stop] - first]
                done = stop
                if done < len(places):
                    first, array = next(arrays)
                    held = self._narrow(first, array)
            yield Block(places, result)
        if first + len(held) >= self.rows:
            for _ in arrays:  # there must be none left
                pass

    def _narrow(self, start: int, array: npt.NDArray[Any]) -> Vectors:
        """Return an array as float32, C order."""
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, np.float32)
        if not self._beyond:
            check_finite(rows, np.arange(start, start + len(rows)), self.name, "vector")
        return rows

    def _arrays(self, expected: int | None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield each array that is not empty with the place of its first vector, `expected` vectors in all."""
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
                    check_finite_wide(array, start, self.name, "vector")
                yield start, array
                start += len(array)
        if expected is not None and start != expected:
            raise ValueError(f"{self.name} yields {start} vectors, and {expected} the first time it was read")
