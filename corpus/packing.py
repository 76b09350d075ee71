"""Windows of many files packed into full batches for the encoder, and handed back file by file."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sctok.audio.loader import Chunk
from sctok.audio.sources import AudioItem

from .lanes import Lanes


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
    chunks: Iterable[Chunk], lanes: Lanes, open_clip: Callable[[AudioItem], ClipT]
) -> Generator[Event[ClipT], None, None]:
    """Encode the windows of files in full batches, whatever files they are of.

    Yields:
        for each file in order, its wanted windows in order and then its end. Memory: the lanes and one chunk.
    """
    batch = _Batch[ClipT](lanes)
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
    yield from batch.flush()


def _fault(chunk: Chunk) -> str | None:
    if chunk.error is not None:
        return chunk.error
    if chunk.last and not chunk.samples:
        return "it holds no audio"
    return None


class _Batch(Generic[ClipT]):
    """Windows that wait for the encoder or are with it, and the ends of files between them."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._waves, self._last = lanes.buffers()
        self._waiting: list[tuple[ClipT, int] | FileEnd[ClipT]] = []
        self._filled = 0
        self._begun: deque[tuple[list[tuple[ClipT, int] | FileEnd[ClipT]], Callable[[], Iterable[Any]]]] = deque()

    def add(self, clip: ClipT, window: int, wave: npt.NDArray[np.float32], last: bool) -> bool:
        """Add a window; return whether the batch is full."""
        self._waves[self._filled] = wave
        self._last[self._filled] = last
        self._waiting.append((clip, window))
        self._filled += 1
        return self._filled == len(self._waves)

    def end_file(self, end: FileEnd[ClipT]) -> Iterator[FileEnd[ClipT]]:
        """Yield the end of a file at once if nothing is on its way before it, else let it wait."""
        if self._waiting or self._begun:
            self._waiting.append(end)
        else:
            yield end

    def run(self) -> Iterator[Event[ClipT]]:
        """Begin to encode what waits, and yield in order what was begun before, but for what lies ahead."""
        finish = self._lanes.begin(self._filled) if self._filled else tuple
        self._begun.append((self._waiting, finish))
        self._waiting, self._filled = [], 0
        while len(self._begun) > self._lanes.ahead:
            yield from self._take()
        self._waves, self._last = self._lanes.buffers()

    def flush(self) -> Iterator[Event[ClipT]]:
        """Yield all that is on its way."""
        while self._begun:
            yield from self._take()

    def _take(self) -> Iterator[Event[ClipT]]:
        entries, finish = self._begun.popleft()
        results = iter(finish())
        for entry in entries:
            yield entry if isinstance(entry, FileEnd) else WindowResult(*entry, next(results))
