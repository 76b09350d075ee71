"""The part of a source that one rank of a process group reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sctok.runtime.distributed import Group

from .vectors import Block, Vectors, VectorSource, Weights, sample_places


@dataclass(frozen=True)
class Own:
    """The vectors at places start … stop - 1 of a source, which one process reads by itself."""

    source: VectorSource
    start: int
    stop: int


class SharedSource:
    """What one rank reads of a source: its own part of the blocks, and the samples of all ranks.

    dim, rows, weights, places, fingerprint and name are those of the whole source.
    """

    def __init__(self, source: VectorSource, group: Group) -> None:
        self._source, self._group = source, group
        self.dim, self.rows, self.name = source.dim, source.rows, source.name
        self.weights: Weights | None = getattr(source, "weights", None)

    @property
    def fingerprint(self) -> str:
        """That of the whole source."""
        return self._source.fingerprint

    @property
    def own(self) -> Own:
        """What this rank reads in order."""
        return Own(self._source, *self._group.span(self.rows))

    def blocks(self, block_rows: int, seed: int | None = None, part: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """See VectorSource; of the part that this rank has."""
        rank, world = part
        mine = (rank * self._group.world + self._group.rank, world * self._group.world)
        return self._source.blocks(block_rows, seed, mine)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource; all ranks ask for the same places, each reads those in its span."""
        first, last = np.searchsorted(places, self._group.span(self.rows))
        return np.concatenate(self._group.gather(self._source.take(places[first:last])))

    def sample(self, count: int, seed: Sequence[int]) -> Vectors:
        """See VectorSource; the same vectors as one process draws."""
        return self.take(sample_places(self.rows, count, seed))


def shared(source: VectorSource, group: Group) -> VectorSource:
    """Return what this rank reads of a source."""
    return source if group.world == 1 else SharedSource(source, group)
