"""Reading of vectors: each rank of a group reads its own span, and only what the passes of a round need."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sctok.runtime.distributed import Group
from sctok.runtime.read_ahead import read_ahead

from .vectors import Block, Vectors, VectorSource, plan_blocks, source_weights

_WORTH_PICKING = 0.5  # picking vectors is faster than reading all of them up to this share
_SCANNED_ROWS = 1 << 20


class SharedSource:
    """A source of which each rank of a group reads its own span.

    whole: the source that is shared; dim, rows, weights, places, fingerprint and name are those of the whole.
    """

    def __init__(self, source: VectorSource, group: Group) -> None:
        self.whole, self._group, self.span = source, group, group.span(source.rows)
        self.dim, self.rows, self.name = source.dim, source.rows, source.name
        self.weights = source_weights(source)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole source."""
        return self.whole.fingerprint

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        """See VectorSource; always yields the span of this rank."""
        return self.whole.blocks(block_rows, self.span)

    def take(self, places: npt.NDArray[np.int64]) -> Vectors:
        """See VectorSource; all ranks ask for the same places, each reads those in its span."""
        first, last = np.searchsorted(places, self.span)
        return np.concatenate(self._group.gather(self.whole.take(places[first:last])))


def share_source(source: VectorSource, group: Group) -> VectorSource:
    """Return the source that this rank of a group reads; the source itself if there is only one rank."""
    return source if group.world == 1 else SharedSource(source, group)


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
    whole, span = (source.whole, source.span) if isinstance(source, SharedSource) else (source, (0, source.rows))
    grain: int | None = getattr(whole, "grain", None)
    if grain is None or sum(_touched(one_pass, grain) for one_pass in passes) > _WORTH_PICKING:
        return whole.blocks(block_rows, span)
    picked = _pick(whole, span, passes, block_rows)
    return picked if grain == 1 else read_ahead(picked)


def _touched(one_pass: PassReader, grain: int) -> float:
    """Return the share of the vectors that picking would read."""
    return 1 - (1 - one_pass.fraction) ** grain if one_pass.scattered else one_pass.fraction


def _pick(
    source: VectorSource, span: tuple[int, int], passes: Sequence[PassReader], block_rows: int
) -> Iterator[Block]:
    weights = source_weights(source)
    pending = np.empty(0, np.int64)
    for start, stop in plan_blocks(source.rows, _SCANNED_ROWS, span):
        places = np.arange(start, stop, dtype=np.int64)
        chosen = np.logical_or.reduce([one_pass.select(places) for one_pass in passes])
        pending = np.concatenate([pending, places[chosen]])
        is_last = stop == span[1]
        while len(pending) >= block_rows or (is_last and len(pending)):
            part, pending = pending[:block_rows], pending[block_rows:]
            yield Block(part, source.take(part), None if weights is None else weights[part])
