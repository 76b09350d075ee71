"""Windows of many files packed into full batches for the encoder, and handed back file by file."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sctok.audio.loader import Chunk
from sctok.audio.sources import AudioItem
from sctok.audio.windows import WINDOW_SPAN

# (windows (w, 164,080) float32, which of them end a file (w,) bool) -> one result per window
Encode = Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_]], Iterable[Any]]


class Clip(Protocol):
    """What a command keeps about one file while its windows pass."""

    item: AudioItem

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether the window has to be encoded; `samples` is the file's length where it is the last one."""
        ...


ClipT = TypeVar("ClipT", bound=Clip)


@dataclass(frozen=True)
class WindowResult(Generic[ClipT]):
    """What the encoder made of one window of a file."""

    clip: ClipT
    window: int
    values: Any


@dataclass(frozen=True)
class FileEnd(Generic[ClipT]):
    """All windows of a file have passed: its length in samples at 16 kHz, or why it could not be read."""

    clip: ClipT
    item: AudioItem
    samples: int
    reason: str | None


Event = WindowResult[ClipT] | FileEnd[ClipT]


def encode_files(
    chunks: Iterable[Chunk], encode: Encode, batch_size: int, open_clip: Callable[[AudioItem], ClipT]
) -> Generator[Event[ClipT], None, None]:
    """Encode the windows of files in batches of `batch_size`, whatever files they are of.

    Yields:
        for each file in order, its wanted windows in order and then its end. Memory: one batch and one chunk.
    """
    batch = _Batch[ClipT](encode, batch_size)
    for _, pieces in itertools.groupby(chunks, key=lambda chunk: chunk.item.key):
        end: FileEnd[ClipT] | None = None
        for chunk in pieces:
            if end is None:
                end = FileEnd(open_clip(chunk.item), chunk.item, 0, None)
            reason = end.reason or _fault(chunk)
            end = FileEnd(end.clip, end.item, chunk.samples or 0, reason)
            for position, wave in enumerate(chunk.waves if reason is None else ()):
                last = chunk.last and position == len(chunk.waves) - 1
                window = chunk.first_window + position
                if end.clip.wants(window, end.samples if last else None) and batch.add(end.clip, window, wave, last):
                    yield from batch.run()
        assert end is not None
        yield from batch.end_file(end)
    yield from batch.run()


def _fault(chunk: Chunk) -> str | None:
    if chunk.error is not None:
        return chunk.error
    if chunk.last and not chunk.samples:
        return "it holds no audio"
    return None


class _Batch(Generic[ClipT]):
    """Windows that wait for the encoder, and the ends of files between them."""

    def __init__(self, encode: Encode, size: int) -> None:
        self._encode = encode
        self._waves = np.zeros((size, WINDOW_SPAN), np.float32)
        self._last = np.zeros(size, bool)
        self._waiting: list[tuple[ClipT, int] | FileEnd[ClipT]] = []
        self._filled = 0

    def add(self, clip: ClipT, window: int, wave: npt.NDArray[np.float32], last: bool) -> bool:
        """Add a window; return whether the batch is full."""
        self._waves[self._filled] = wave
        self._last[self._filled] = last
        self._waiting.append((clip, window))
        self._filled += 1
        return self._filled == len(self._waves)

    def end_file(self, end: FileEnd[ClipT]) -> Iterator[FileEnd[ClipT]]:
        """Yield the end of a file at once if nothing waits before it, else let it wait."""
        if self._waiting:
            self._waiting.append(end)
        else:
            yield end

    def run(self) -> Iterator[Event[ClipT]]:
        """Encode what waits and yield it in order."""
        waiting, filled = self._waiting, self._filled
        self._waiting, self._filled = [], 0
        results = iter(self._encode(self._waves[:filled], self._last[:filled]) if filled else ())
        for entry in waiting:
            yield entry if isinstance(entry, FileEnd) else WindowResult(*entry, next(results))
