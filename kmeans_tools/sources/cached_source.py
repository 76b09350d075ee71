"""Feature shards whose vectors stay in memory after the first read."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sctok.runtime.read_ahead import read_ahead

from .vectors import Block, ShardSource, Vectors, VectorSource, plan_blocks


class CachedSource:
    """The vectors of feature shards, cached as float16, which is also their dtype on disk.

    The first pass reads the shards, later ones read the memory: 2 D + 1 bytes per vector.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source
        self.dim, self.rows, self.name = source.dim, source.rows, source.name
        self._vectors = np.empty((self.rows, self.dim), np.float16)  # untouched pages take no memory
        self._cached = np.zeros(self.rows, np.bool_)

    @property
    def grain(self) -> int:
        """Number of neighbouring vectors that `take` reads together: 1 as soon as all are in memory."""
        return 1 if self._cached.all() else self._source.grain

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shards."""
        return self._source.fingerprint

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        plan = list(plan_blocks(self.rows, block_rows, span))
        if all(self._cached[start:stop].all() for start, stop in plan):
            return read_ahead(self._from_memory(plan))
        return self._from_shards(block_rows, span)

    def _from_memory(self, plan: list[tuple[int, int]]) -> Iterator[Block]:
        for start, stop in plan:
            yield Block(np.arange(start, stop, dtype=np.int64), self._vectors[start:stop].astype(np.float32))

    def _from_shards(self, block_rows: int, span: tuple[int, int] | None) -> Iterator[Block]:
        for block in self._source.blocks(block_rows, span):
            self._cache(block.places, block.rows)
            yield block

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        missing = places[~self._cached[places]]
        if len(missing):
            self._cache(missing, self._source.take(missing))
        return self._vectors[places].astype(np.float32)

    def _cache(self, places: npt.NDArray[np.int64], rows: Vectors) -> None:
        self._vectors[places] = rows
        self._cached[places] = True


def cache_if_fits(source: ShardSource, memory: int) -> VectorSource:
    """Return a source that caches the vectors if they fit half of `memory` bytes, else `source` itself."""
    return CachedSource(source) if (2 * source.dim + 1) * source.rows <= memory // 2 else source
