"""Layouts of the token streams of a file as ids for a language model, and run lengths of repeated tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

LAYOUTS = ("flat", "interleaved", "delayed", "parallel")
SHARED_SEQUENCE = ("flat", "interleaved")  # layouts in which only the ids distinguish the streams

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamLayout:
    """How tokens (n, streams) become the ids of one document; stored as JSON with an export.

    name:
        flat: one stream after the other, ids (n · streams,).
        interleaved: step after step, ids (n · streams,).
        delayed: stream j begins j steps late, and `pad` fills the gaps: ids (n + streams - 1, streams), the delay
            pattern of MusicGen (arXiv 2306.05284, section 2.2); no ids if n is 0.
        parallel: ids (n, streams).
    sizes: size of the codebook of each stream. offsets: added to the tokens of each stream.
    pad: id that fills the gaps of `delayed`. end: id after the end of a document, a whole step if ids are
    two-dimensional; None for no such id.
    flattened: put the steps of `delayed` in a row, ids ((n + streams - 1) · streams,), for formats without
    two-dimensional ids.

    Raises ValueError for numbers that do not match, a pad or end id that is also a token, and a flattened `parallel`.
    """

    name: str
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    pad: int | None = None
    end: int | None = None
    flattened: bool = False

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise ValueError(f"layout {self.name!r} is not one of {', '.join(LAYOUTS)}")
        if not self.sizes or min(self.sizes) < 1 or len(self.offsets) != len(self.sizes) or min(self.offsets) < 0:
            raise ValueError(
                f"sizes {self.sizes} and offsets {self.offsets} must have one positive size and one offset per stream"
            )
        if (self.pad is None) != (self.name != "delayed"):
            raise ValueError(f"the layout delayed needs a pad id, and others take none, not {self.name}")
        if self.flattened and self.name == "parallel":
            raise ValueError("parallel streams cannot be flattened; use interleaved, which puts the same ids in a row")
        for what, number in (("pad", self.pad), ("end", self.end)):
            taken = any(o <= number < o + size for o, size in self._ranges()) if number is not None else False
            if number is not None and (number < 0 or taken):
                raise ValueError(f"the {what} id {number} is negative or a token; the next free one is {self._top()}")

    def _ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.offsets, self.sizes, strict=True))

    def _top(self) -> int:
        return max(offset + size for offset, size in self._ranges())

    @property
    def vocabulary_size(self) -> int:
        """The largest possible id plus one."""
        return max(self._top(), *(number + 1 for number in (self.pad, self.end) if number is not None), 0)

    @property
    def dimensions(self) -> int:
        """Dimensions of the ids: 1 or 2."""
        return 1 if self.flattened or self.name in SHARED_SEQUENCE else 2

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Return the layout that `to_json` described."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**values)

    def apply(self, tokens: npt.NDArray[Any]) -> Ids:
        """Return the ids, int64, of integer tokens (n, streams).

        Raises ValueError for tokens of another shape or outside their codebooks.
        """
        if tokens.ndim != 2 or tokens.shape[1] != len(self.sizes) or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}, not integers (n, {len(self.sizes)})")
        if len(tokens) and ((tokens.min(axis=0) < 0) | (tokens.max(axis=0) >= self.sizes)).any():
            raise ValueError(f"tokens up to {tokens.max(axis=0)} are outside codebooks of {list(self.sizes)}")
        ids = tokens.astype(np.int64) + np.array(self.offsets, np.int64)
        if self.name == "flat":
            ids = ids.T.reshape(-1)
        elif self.name == "delayed":
            ids = _delay(ids, self.pad or 0)
        if self.dimensions == 1:
            ids = ids.reshape(-1)
        return ids if self.end is None else np.concatenate([ids, np.full((1, *ids.shape[1:]), self.end, np.int64)])

    def invert(self, ids: npt.ArrayLike) -> Ids:
        """Return the tokens, int64 (n, streams), of the ids of one document, integers as returned by `apply`.

        Raises ValueError for ids that `apply` cannot return.
        """
        found = np.asarray(ids)
        streams = len(self.sizes)
        if found.ndim != self.dimensions or (found.ndim == 2 and found.shape[1] != streams):
            raise ValueError(f"ids have shape {found.shape}, which is not the layout {self.name} of {streams} streams")
        rest = found.astype(np.int64)
        if self.end is not None:
            if not len(rest) or (rest[-1] != self.end).any():
                raise ValueError(f"the ids of a document do not end with {self.end}")
            rest = rest[:-1]
        if rest.size % streams:
            raise ValueError(f"{rest.size} ids cannot be divided into {streams} streams")
        steps = rest.reshape(streams, -1).T if self.name == "flat" else rest.reshape(-1, streams)
        if self.name == "delayed":
            steps = _undelay(steps, self.pad or 0)
        tokens = steps - np.array(self.offsets, np.int64)
        if ((tokens < 0) | (tokens >= self.sizes)).any():
            raise ValueError(f"ids are outside codebooks of {list(self.sizes)} at offsets {list(self.offsets)}")
        return tokens


def make_layout(
    name: str,
    sizes: Sequence[int],
    *,
    offsets: Sequence[int] | None = None,
    pad: int | None = None,
    end: int | bool | None = None,
    flattened: bool = False,
) -> StreamLayout:
    """Return a layout, with defaults for the arguments that are not given.

    offsets: one per stream, or the offset of the first stream, which the others follow. Default: 0 for the first
    stream of flat and interleaved, 0 for every stream of delayed and parallel.
    pad: default for delayed: the id after all tokens. end: True for the next free id; None or False for none.

    Raises ValueError as `StreamLayout`.
    """
    sizes = tuple(sizes)
    if offsets is None:
        offsets = (0,) if name in SHARED_SEQUENCE else (0,) * len(sizes)
    if len(offsets) == 1:
        offsets = tuple(offsets[0] + sum(sizes[:index]) for index in range(len(sizes)))
    if name == "delayed" and pad is None:
        pad = max(offset + size for offset, size in zip(offsets, sizes, strict=True))
    layout = StreamLayout(name, sizes, tuple(offsets), pad, None, flattened)
    if end is None or end is False:
        return layout
    return StreamLayout(name, sizes, tuple(offsets), pad, layout.vocabulary_size if end is True else end, flattened)


def deduplicate(tokens: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Reduce each run of equal steps of tokens (n, streams) to one step.

    Returns tokens (m, streams) of the same type, m ≤ n, and the lengths of the runs, int64 (m,), which sum to n.
    """
    starts = np.flatnonzero(np.concatenate([np.full(min(1, len(tokens)), True), (np.diff(tokens, axis=0) != 0).any(1)]))
    return tokens[starts], np.diff(np.append(starts, len(tokens)))


def expand_runs(tokens: npt.NDArray[Any], durations: npt.ArrayLike) -> npt.NDArray[Any]:
    """Undo `deduplicate` for tokens (m, streams) and integer durations (m,). Raises ValueError if lengths differ."""
    return np.repeat(tokens, np.asarray(durations), axis=0)


def _delay(ids: Ids, pad: int) -> Ids:
    length, streams = ids.shape
    grid = np.full((length + streams - 1 if length else 0, streams), pad, np.int64)
    for stream in range(streams if length else 0):
        grid[stream : stream + length, stream] = ids[:, stream]
    return grid


def _undelay(grid: Ids, pad: int) -> Ids:
    streams = grid.shape[1]
    length = max(0, len(grid) - streams + 1)
    ids = np.stack([grid[stream : stream + length, stream] for stream in range(streams)], axis=1)
    if not np.array_equal(_delay(ids, pad), grid):
        raise ValueError(f"each stream of ids must be one step later than the one before, with {pad} in the gaps")
    return ids
