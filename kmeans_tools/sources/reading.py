"""Reading what the passes of a round need, and no more where the source allows."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sctok.kmeans_tools.seeding.first_centroids import source_weights
from sctok.runtime.read_ahead import read_ahead

from .shared_source import Own, SharedSource
from .vectors import Block, VectorSource

_WORTH_IT = 0.5  # share of the vectors up to which picking them beats reading all in order
_SCANNED_ROWS = 1 << 20


class PassReader(Protocol):
    """A pass, as far as it says what it needs to read."""

    @property
    def fraction(self) -> float:
        """Share of all vectors that it needs, about."""

    @property
    def scattered(self) -> bool:
        """Whether these lie here and there rather than in pieces."""

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the vectors at places (n,) it needs, bool."""


def needed_blocks(source: VectorSource, passes: Sequence[PassReader], block_rows: int) -> Iterator[Block]:
    """Yield in order all vectors that any of the passes needs, at most block_rows at a time; others may come too.

    A source that can pick vectors says so by `grain`: how many neighbours it reads for each. Of a source that several
    ranks share it is the part of this rank.
    """
    own = source.own if isinstance(source, SharedSource) else Own(source, 0, source.rows)
    grain: int | None = getattr(own.source, "grain", None)
    if grain is None or sum(_touched(one_pass, grain) for one_pass in passes) > _WORTH_IT:
        return source.blocks(block_rows)
    picked = _pick(own, passes, block_rows)
    return picked if grain == 1 else read_ahead(picked)


def _touched(one_pass: PassReader, grain: int) -> float:
    """Return the share of the vectors that picking would read."""
    return 1 - (1 - one_pass.fraction) ** grain if one_pass.scattered else one_pass.fraction


def _pick(own: Own, passes: Sequence[PassReader], block_rows: int) -> Iterator[Block]:
    weights = source_weights(own.source)
    pending = np.empty(0, np.int64)
    for start in range(own.start, own.stop, _SCANNED_ROWS):
        places = np.arange(start, min(own.stop, start + _SCANNED_ROWS), dtype=np.int64)
        chosen = np.logical_or.reduce([one_pass.select(places) for one_pass in passes])
        pending = np.concatenate([pending, places[chosen]])
        last = start + _SCANNED_ROWS >= own.stop
        while len(pending) >= block_rows or (last and len(pending)):
            part, pending = pending[:block_rows], pending[block_rows:]
            yield Block(part, own.source.take(part), None if weights is None else weights[part])
