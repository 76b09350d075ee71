"""Token streams of one file laid out as ids for a language model, and back; repeated tokens with durations."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

LAYOUTS = ("flat", "interleaved", "delayed", "parallel")
SHARED_SEQUENCE = ("flat", "interleaved")  # layouts in which ids alone tell the streams apart

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamLayout:
    """How tokens (n, streams) become the ids of one document; stored as JSON beside an export.

    name:
        flat: one stream after the other, ids (n · streams,).
        interleaved: step after step, ids (n · streams,).
        delayed: stream j begins j steps late, `pad` where it has no token: ids (n + streams - 1, streams), the delay
            pattern of MusicGen (arXiv 2306.05284, section 2.2); no ids at all where n is 0.
        parallel: ids (n, streams).
    sizes: of the codebook of each stream. offsets: added to the tokens of each stream.
    pad: id of `delayed` where there is no token. end: id after the last of a document, as a whole step where ids are
    two-dimensional; none where None.
    flattened: the steps of `delayed` one after the other, ids ((n + streams - 1) · streams,), for formats that hold
    nothing two-dimensional.

    Raises ValueError for numbers that do not fit together, an id of its own among the ids of a stream, and `parallel`
    that is to be flattened.
    """

    name: str
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    pad: int | None = None
    end: int | None = None
    flattened: bool = False

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise ValueError(f"layout {self.name!r} is none of {', '.join(LAYOUTS)}")
        if not self.sizes or min(self.sizes) < 1 or len(self.offsets) != len(self.sizes) or min(self.offsets) < 0:
            raise ValueError(f"sizes {self.sizes} and offsets {self.offsets} are not one of each for every stream")
        if (self.pad is None) != (self.name != "delayed"):
            raise ValueError(f"a pad id belongs to the layout delayed, and to no other, not {self.name}")
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
        """One more than the largest id that can occur."""
        return max(self._top(), *(number + 1 for number in (self.pad, self.end) if number is not None), 0)

    @property
    def dimensions(self) -> int:
        """1 or 2: of the ids."""
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
        """Return the ids int64 of tokens (n, streams), any integers.

        Raises ValueError where tokens have another shape or lie outside their codebooks.
        """
        if tokens.ndim != 2 or tokens.shape[1] != len(self.sizes) or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}, not integers (n, {len(self.sizes)})")
        if len(tokens) and ((tokens.min(axis=0) < 0) | (tokens.max(axis=0) >= self.sizes)).any():
            raise ValueError(f"tokens up to {tokens.max(axis=0)} lie outside codebooks of {list(self.sizes)}")
        ids = tokens.astype(np.int64) + np.array(self.offsets, np.int64)
        if self.name == "flat":
            ids = ids.T.reshape(-1)
        elif self.name == "delayed":
            ids = _delay(ids, self.pad or 0)
        if self.dimensions == 1:
            ids = ids.reshape(-1)
        return ids if self.end is None else np.concatenate([ids, np.full((1, *ids.shape[1:]), self.end, np.int64)])

    def invert(self, ids: npt.ArrayLike) -> Ids:
        """Return the tokens (n, streams) int64 of one document's ids, as `apply` gave them, in any integer type.

        Raises ValueError where they have another shape, or hold ids that `apply` does not put there.
        """
        found = np.asarray(ids)
        streams = len(self.sizes)
        if found.ndim != self.dimensions or (found.ndim == 2 and found.shape[1] != streams):
            raise ValueError(f"ids have shape {found.shape}, not that of the layout {self.name} of {streams} streams")
        rest = found.astype(np.int64)
        if self.end is not None:
            if not len(rest) or (rest[-1] != self.end).any():
                raise ValueError(f"the ids of a document do not end with {self.end}")
            rest = rest[:-1]
        if rest.size % streams:
            raise ValueError(f"{rest.size} ids are not those of {streams} streams")
        steps = rest.reshape(streams, -1).T if self.name == "flat" else rest.reshape(-1, streams)
        if self.name == "delayed":
            steps = _undelay(steps, self.pad or 0)
        tokens = steps - np.array(self.offsets, np.int64)
        if ((tokens < 0) | (tokens >= self.sizes)).any():
            raise ValueError(f"ids lie outside codebooks of {list(self.sizes)} at offsets {list(self.offsets)}")
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
    """Return a layout with what is left open filled in.

    offsets: one per stream; or a single one, from which the streams follow each other; None is a single 0 for flat
    and interleaved, and 0 for every stream of delayed and parallel, whose places tell them apart.
    pad: None is the id after all tokens, for delayed. end: True is the id after those; False is none.

    Raises ValueError as StreamLayout does.
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
    """Return tokens (n, streams) with runs of equal steps, in all streams at once, reduced to one, and their lengths.

    Returns tokens (m, streams) of the same type, m ≤ n, and durations int64 (m,) that sum to n.
    """
    starts = np.flatnonzero(np.concatenate([np.full(min(1, len(tokens)), True), (np.diff(tokens, axis=0) != 0).any(1)]))
    return tokens[starts], np.diff(np.append(starts, len(tokens)))


def expand_runs(tokens: npt.NDArray[Any], durations: npt.ArrayLike) -> npt.NDArray[Any]:
    """Undo `deduplicate`: tokens (m, streams), durations integers (m,). Raises ValueError where the lengths differ."""
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
        raise ValueError(f"the ids are not those of streams each a step behind the one before, with {pad} beside them")
    return ids
