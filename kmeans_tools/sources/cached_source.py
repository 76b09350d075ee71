"""Feature shards whose vectors stay in memory once they were read."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sctok.runtime.read_ahead import read_ahead

from .vectors import Block, Pieces, ShardSource, Vectors, VectorSource, piece_places, plan_blocks, sample_places


class ResidentSource:
    """The vectors of feature shards, kept as float16, which they are on disk: the same bits with or without.

    The first pass reads the shards, later ones the memory: 2 D + 1 bytes per vector that was read.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source
        self.dim, self.rows, self.name = source.dim, source.rows, source.name
        self._vectors = np.empty((self.rows, self.dim), np.float16)  # pages that are not written take no memory
        self._held = np.zeros(self.rows, np.bool_)

    @property
    def grain(self) -> int:
        """How many neighbouring vectors `take` reads together: of the shards, or none once all is in memory."""
        return 1 if self._held.all() else self._source.grain

    @property
    def fingerprint(self) -> str:
        """That of the shards."""
        return self._source.fingerprint

    def blocks(self, block_rows: int, seed: int | None = None, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """See VectorSource."""
        plan = list(plan_blocks(self.rows, block_rows, seed, part))
        if all(self._held[start:stop].all() for pieces in plan for start, stop in pieces):
            return read_ahead(self._from_memory(plan))
        return self._from_shards(block_rows, seed, part)

    def _from_memory(self, plan: list[Pieces]) -> Iterator[Block]:
        for pieces in plan:
            places = piece_places(pieces)
            wanted = slice(*pieces[0]) if len(pieces) == 1 else places
            yield Block(places, self._vectors[wanted].astype(np.float32))

    def _from_shards(self, block_rows: int, seed: int | None, part: tuple[int, int]) -> Iterator[Block]:
        for block in self._source.blocks(block_rows, seed, part):
            self._keep(block.places, block.rows)
            yield block

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource."""
        missing = places[~self._held[places]]
        if len(missing):
            self._keep(missing, self._source.take(missing))
        return self._vectors[places].astype(np.float32)

    def sample(self, count: int, seed: Sequence[int]) -> Vectors:
        """See VectorSource."""
        return self.take(sample_places(self.rows, count, seed))

    def _keep(self, places: npt.NDArray[np.int64], rows: Vectors) -> None:
        self._vectors[places] = rows
        self._held[places] = True


def keep_resident(source: ShardSource, memory: int) -> VectorSource:
    """Return a source that keeps the vectors in memory where they fit half of `memory` bytes, else `source` itself."""
    return ResidentSource(source) if (2 * source.dim + 1) * source.rows <= memory // 2 else source
