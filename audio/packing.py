"""Packing windows of many files into full batches for the encoder; the results come back file by file."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sctok.audio.inputs.sources import AudioItem

from .loader import Chunk
from .transfer import Lanes
from .windows import WINDOW_COLUMNS, span_columns, span_samples, token_columns, windows_at_once

_MAX_PENDING_BATCHES = 8  # with fewer, windows of many lengths would often be encoded in batches that are not full


class PackedClip(Protocol):
    """What a command knows about one file while its windows are encoded."""

    item: AudioItem

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether to encode a window; `samples` is the length of the file if it is the last window."""
        ...


ClipT = TypeVar("ClipT", bound=PackedClip)


@dataclass(frozen=True)
class WindowResult(Generic[ClipT]):
    """The encoder's result for one window of a file."""

    clip: ClipT
    window: int
    values: Any


@dataclass(frozen=True)
class FileEnd(Generic[ClipT]):
    """The end of a file: its length in samples at 16 kHz, and the reason if it could not be read."""

    clip: ClipT
    item: AudioItem
    samples: int
    reason: str | None


Event = WindowResult[ClipT] | FileEnd[ClipT]


def encode_files(
    chunks: Iterable[Chunk], lanes: Lanes, open_clip: Callable[[AudioItem], ClipT], *, cut: bool = False
) -> Generator[Event[ClipT], None, None]:
    """Encode windows in full batches that mix files.

    cut: pass only those columns of a file's last window to the encoder that get tokens. A batch holds windows with the
    same number of columns.

    Yields:
        for each file in order, the results of its windows in order, then its end. Memory: the lanes, and the windows
        and results of a few batches.
    """
    queue = _Queue[ClipT](lanes)
    for _, pieces in itertools.groupby(chunks, key=lambda chunk: chunk.item):
        end: FileEnd[ClipT] | None = None
        for chunk in pieces:
            if end is None:
                end = FileEnd(open_clip(chunk.item), chunk.item, 0, None)
            reason = end.reason or chunk.error or ("it holds no audio" if chunk.last and not chunk.samples else None)
            end = FileEnd(end.clip, end.item, chunk.samples or 0, reason)
            for position, wave in enumerate(chunk.waves if reason is None else ()):
                last = chunk.last and position == len(chunk.waves) - 1
                window = chunk.first_window + position
                if end.clip.wants(window, end.samples if last else None):
                    samples = _cut_off(wave, window, end.samples) if cut and last else wave
                    queue.add_window(end.clip, window, samples, last)
                    yield from queue.ready()
        assert end is not None
        queue.add_end(end)
        yield from queue.ready()
    queue.finish()
    yield from queue.ready()


def _cut_off(wave: npt.NDArray[np.float32], window: int, samples: int) -> npt.NDArray[np.float32]:
    """Return those columns of a file's last window that get tokens."""
    columns = min(WINDOW_COLUMNS, token_columns(samples) - window * WINDOW_COLUMNS)
    # A copy, so that the remaining samples do not stay in memory while the window waits.
    return wave if columns == WINDOW_COLUMNS else wave[: span_samples(columns)].copy()


@dataclass(eq=False)
class _Window(Generic[ClipT]):
    """A window that waits for the encoder, or its result."""

    clip: ClipT
    window: int
    columns: int
    result: WindowResult[ClipT] | None = None


class _Queue(Generic[ClipT]):
    """The windows and ends of files in their order. Each stays here until its result is yielded."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._entries: deque[_Window[ClipT] | FileEnd[ClipT]] = deque()
        self._columns = 0  # of the windows in `_entries`
        self._max_columns = _MAX_PENDING_BATCHES * lanes.size * WINDOW_COLUMNS
        # Windows that wait for the encoder and their samples, by the number of their columns.
        self._waiting: dict[int, list[tuple[_Window[ClipT], tuple[npt.NDArray[np.float32], bool]]]] = {}
        self._begun: deque[tuple[list[_Window[ClipT]], Callable[[], Iterable[Any]]]] = deque()

    def add_window(self, clip: ClipT, window: int, wave: npt.NDArray[np.float32], last: bool) -> None:
        """Add the next window; encode the windows of its length if they fill a batch."""
        entry = _Window(clip, window, span_columns(len(wave)))
        self._entries.append(entry)
        self._columns += entry.columns
        waiting = self._waiting.setdefault(entry.columns, [])
        waiting.append((entry, (wave, last)))
        if len(waiting) == self._lanes.size * windows_at_once(entry.columns):
            self._begin(entry.columns)

    def add_end(self, end: FileEnd[ClipT]) -> None:
        """Add the end of a file."""
        self._entries.append(end)

    def ready(self) -> Iterator[Event[ClipT]]:
        """Yield encoded results in order. If too many windows wait for one window, encode it together with the others
        of the same length.
        """
        while self._entries:
            first = self._entries[0]
            if isinstance(first, FileEnd):
                yield first
            else:
                if first.result is None and self._columns > self._max_columns:
                    self._encode_now(first)
                if first.result is None:
                    return
                self._columns -= first.columns
                yield first.result
            self._entries.popleft()

    def finish(self) -> None:
        """Encode all remaining windows."""
        for columns in list(self._waiting):
            self._begin(columns)
        while self._begun:
            self._take()

    def _encode_now(self, first: _Window[ClipT]) -> None:
        waiting = self._waiting.get(first.columns)
        if waiting and waiting[0][0] is first:
            self._begin(first.columns)
        while first.result is None:
            self._take()

    def _begin(self, columns: int) -> None:
        """Begin a batch of waiting windows; take the results of earlier batches, except those that may run ahead."""
        windows, batch = zip(*self._waiting.pop(columns), strict=True)
        self._begun.append((list(windows), self._lanes.begin(batch)))
        while len(self._begun) > self._lanes.ahead:
            self._take()

    def _take(self) -> None:
        windows, finish = self._begun.popleft()
        for window, values in zip(windows, finish(), strict=True):
            window.result = WindowResult(window.clip, window.window, values)
