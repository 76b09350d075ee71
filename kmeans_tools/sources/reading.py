"""Reading only the vectors that the passes of a round need, if the source can do so efficiently."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sctok.runtime.read_ahead import read_ahead

from .shared_source import SharedSource, SourceSpan
from .vectors import Block, VectorSource, source_weights

_WORTH_PICKING = 0.5  # picking vectors is faster than reading all of them up to this share
_SCANNED_ROWS = 1 << 20


class PassReader(Protocol):
    """A pass that tells which vectors it needs to read."""

    @property
    def fraction(self) -> float:
        """Approximate share of all vectors that the pass needs."""

    @property
    def scattered(self) -> bool:
        """Whether the needed vectors are scattered, rather than in contiguous runs."""

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return a bool mask (n,) of the vectors at places (n,) that the pass needs."""


def needed_blocks(source: VectorSource, passes: Sequence[PassReader], block_rows: int) -> Iterator[Block]:
    """Yield in order all vectors that any of the passes needs, at most block_rows at a time, and possibly others.

    A source that can pick vectors has a `grain`: the number of neighbours that it reads for each. If ranks share the
    source, only the part of this rank is read.
    """
    own = source.own if isinstance(source, SharedSource) else SourceSpan(source, 0, source.rows)
    grain: int | None = getattr(own.source, "grain", None)
    if grain is None or sum(_touched(one_pass, grain) for one_pass in passes) > _WORTH_PICKING:
        return source.blocks(block_rows)
    picked = _pick(own, passes, block_rows)
    return picked if grain == 1 else read_ahead(picked)


def _touched(one_pass: PassReader, grain: int) -> float:
    """Return the share of the vectors that picking would read."""
    return 1 - (1 - one_pass.fraction) ** grain if one_pass.scattered else one_pass.fraction


def _pick(own: SourceSpan, passes: Sequence[PassReader], block_rows: int) -> Iterator[Block]:
    weights = source_weights(own.source)
    pending = np.empty(0, np.int64)
    for start in range(own.start, own.stop, _SCANNED_ROWS):
        places = np.arange(start, min(own.stop, start + _SCANNED_ROWS), dtype=np.int64)
        chosen = np.logical_or.reduce([one_pass.select(places) for one_pass in passes])
        pending = np.concatenate([pending, places[chosen]])
        is_last = start + _SCANNED_ROWS >= own.stop
        while len(pending) >= block_rows or (is_last and len(pending)):
            part, pending = pending[:block_rows], pending[block_rows:]
            yield Block(part, own.source.take(part), None if weights is None else weights[part])
