"""The part of a source that one rank of a process group reads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sctok.runtime.distributed import Group

from .vectors import Block, Vectors, VectorSource, source_weights


@dataclass(frozen=True)
class SourceSpan:
    """The vectors of a source from place `start` to `stop` (exclusive), which one process reads without the others."""

    source: VectorSource
    start: int
    stop: int


class SharedSource:
    """A source of which each rank of a group reads its own part.

    dim, rows, weights, places, fingerprint and name are those of the whole source.
    """

    def __init__(self, source: VectorSource, group: Group) -> None:
        self._source, self._group = source, group
        self.dim, self.rows, self.name = source.dim, source.rows, source.name
        self.weights = source_weights(source)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole source."""
        return self._source.fingerprint

    @property
    def own(self) -> SourceSpan:
        """The vectors that this rank reads in order."""
        return SourceSpan(self._source, *self._group.span(self.rows))

    def blocks(self, block_rows: int, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """See VectorSource; yields only the vectors of this rank."""
        rank, world = part
        mine = (rank * self._group.world + self._group.rank, world * self._group.world)
        return self._source.blocks(block_rows, mine)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource; all ranks ask for the same places, each reads those in its span."""
        first, last = np.searchsorted(places, self._group.span(self.rows))
        return np.concatenate(self._group.gather(self._source.take(places[first:last])))


def share_source(source: VectorSource, group: Group) -> VectorSource:
    """Return the source that this rank of a group reads; the source itself if there is only one rank."""
    return source if group.world == 1 else SharedSource(source, group)
