"""Decoding the windows of many files ahead of time in worker processes, in the order of the files."""

import fcntl
import multiprocessing
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.audio.inputs.sources import AudioItem
from sctok.runtime.worker_process import WorkerError, WorkerProcess, received

from .errors import AudioError
from .pieces import Piece, empty_span, read_pieces, window_rows

_PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Successive windows of one file.

    waves: float32 (w, WINDOW_SPAN) at 16 kHz; row 0 is window `first_window`. Window i of a file begins at sample
    i · WINDOW_SAMPLES, shares its last 240 samples with the next window, and is zero after the end of the audio.
    last: whether this is the last chunk of the file. samples: length of the file, in its last chunk.
    error: one line that says why the rest of the file cannot be read; the chunk is then the last, without windows.
    """

    item: AudioItem
    first_window: int
    waves: NDArray[np.float32]
    last: bool
    samples: int | None
    error: str | None


class LoaderError(AudioError):
    """A decoding worker died; the message names the file that it was decoding."""


def load_windows(
    items: Iterable[AudioItem],
    *,
    workers: int,
    channel: int | None = None,
    ahead: int = 8,
    chunk_windows: int = 8,
) -> Iterator[Chunk]:
    """Yield the windows of `items` in order, in chunks of at most `chunk_windows` windows of one file.

    Worker process i mod `workers` decodes file i. Each worker runs at most `ahead` chunks and `ahead` files ahead, so
    that memory depends only on these settings and `items` is consumed as needed. A file of n samples fills
    window_count(n) windows, the last of which may hold no audio. With workers=0, this process decodes. The workers end
    when the iterator is closed or this process dies.

    Workers are spawned: a script that calls this function needs `if __name__ == "__main__":` around its work.

    Raises LoaderError if a worker dies, ValueError for settings out of range. A file that cannot be read gives a
    chunk with an `error`, not an exception.
    """
    if workers < 0 or ahead < 1 or chunk_windows < 1 or (channel is not None and channel < 0):
        settings = f"workers={workers}, ahead={ahead}, chunk_windows={chunk_windows}, channel={channel}"
        raise ValueError(f"{settings}: workers and channel must be at least 0, ahead and chunk_windows at least 1")
    if workers == 0:
        return (chunk for item in items for chunk in file_chunks(item, read_pieces(item, channel, chunk_windows)))
    return _load_in_workers(items, workers, channel, ahead, chunk_windows)


def file_chunks(item: AudioItem, pieces: Iterable[Piece]) -> Iterator[Chunk]:
    """Yield the pieces of one file as chunks of windows."""
    first = 0
    for piece in pieces:
        buffer = empty_span(piece.windows)
        buffer[: len(piece.audio)] = piece.audio
        yield _chunk(item, first, buffer, piece)
        first += piece.windows


def _chunk(item: AudioItem, first: int, buffer: NDArray[np.float32], piece: Piece) -> Chunk:
    last = piece.samples is not None or piece.error is not None
    return Chunk(item, first, window_rows(buffer), last, piece.samples, piece.error)


class _Decoder:
    """A decoding process, and the files that it has not finished."""

    def __init__(self, channel: int | None, chunk_windows: int, ahead: int) -> None:
        self._current: Any = multiprocessing.get_context("spawn").RawValue("q", -1)
        self._given: deque[tuple[int, AudioItem]] = deque()
        self.process = WorkerProcess("sctok-decoder", _decode_files, self._current, channel, chunk_windows, ahead)
        _widen(self.process.results.fileno())

    def give(self, number: int, item: AudioItem) -> None:
        self._given.append((number, item))
        try:
            self.process.send((number, replace(item, metadata={})))  # a worker does not need the metadata
        except WorkerError as death:
            raise self.error(death) from None

    def receive(self) -> tuple[Piece, NDArray[np.float32]]:
        """Return the next piece of the worker's oldest file and its audio, zero padded to whole windows."""
        try:
            windows, samples, error, length = self.process.receive()
            buffer = empty_span(windows)
            if not _read_into(self.process.results.fileno(), buffer[:length].view(np.uint8).data):
                raise self.process.death()
        except WorkerError as death:
            raise self.error(death) from None
        return Piece(np.empty(0, np.float32), windows, samples, error), buffer

    def finish_file(self) -> None:
        self._given.popleft()

    def error(self, death: WorkerError) -> LoaderError:
        """Return the error that names the file that the dead worker was decoding."""
        item = dict(self._given).get(self._current.value) or (self._given[0][1] if self._given else None)
        name = item.name if item is not None else "audio"
        advice = "run again, with fewer workers if memory was short; if it happens again, move the file away"
        return LoaderError(name, f"the worker process that was decoding it {death.reason}; {advice}")


def _read_into(pipe: int, rest: memoryview) -> bool:
    """Fill memory from a pipe without the copies of Connection.recv_bytes_into; return False if the pipe ends first."""
    while len(rest):
        if not (count := os.readv(pipe, [rest])):
            return False
        rest = rest[count:]
    return True


def _widen(pipe: int) -> None:
    """Enlarge the buffer of a pipe if the system allows it, so that each side waits for the other less often."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _load_in_workers(
    items: Iterable[AudioItem], workers: int, channel: int | None, ahead: int, chunk_windows: int
) -> Iterator[Chunk]:
    decoders: list[_Decoder] = []
    try:
        for _ in range(workers):
            decoders.append(_Decoder(channel, chunk_windows, ahead))
        waiting: deque[tuple[AudioItem, _Decoder]] = deque()
        numbered = enumerate(items)
        while True:
            while len(waiting) < workers * ahead and (following := next(numbered, None)) is not None:
                number, item = following
                decoder = decoders[number % workers]
                decoder.give(number, item)
                waiting.append((item, decoder))
            if not waiting:
                return
            item, decoder = waiting.popleft()
            yield from _receive_file(item, decoder, decoders)
            decoder.finish_file()
    finally:
        for decoder in decoders:
            decoder.process.terminate()
        for decoder in decoders:
            decoder.process.close()


def _receive_file(item: AudioItem, decoder: _Decoder, decoders: list[_Decoder]) -> Iterator[Chunk]:
    results, sentinels = decoder.process.results, [each.process.sentinel for each in decoders]
    first, last = 0, False
    while not last:
        ready = connection.wait([results, *sentinels])
        for each in decoders:
            if not each.process.is_alive():
                raise each.error(each.process.death())
        if results in ready:
            piece, buffer = decoder.receive()
            chunk = _chunk(item, first, buffer, piece)
            first, last = first + piece.windows, chunk.last
            yield chunk


def _decode_files(
    tasks: Connection,
    results: Connection,
    current: Any,
    channel: int | None,
    piece_windows: int,
    ahead: int,
) -> None:
    """Decode the files that arrive on `tasks` in their order and write the pieces to `results`.

    A task is (number, item). A result is (windows, samples, error, length), followed by the bytes of the audio.
    `current.value` is set to the number of the file being decoded. The process ends when either pipe is closed.
    """
    given: queue.SimpleQueue[tuple[int, AudioItem]] = queue.SimpleQueue()
    done: queue.Queue[Piece] = queue.Queue(maxsize=ahead)
    # The threads serve both pipes while the decoder works, so that neither process blocks the other.
    threading.Thread(target=_receive, args=(tasks, given), daemon=True).start()
    threading.Thread(target=_send, args=(results, done), daemon=True).start()
    while True:
        number, item = given.get()
        current.value = number
        for piece in read_pieces(item, channel, piece_windows):
            done.put(piece)


def _receive(tasks: Connection, given: "queue.SimpleQueue[tuple[int, AudioItem]]") -> None:
    for task in received(tasks):
        given.put(task)
    os._exit(0)


def _send(results: Connection, done: "queue.Queue[Piece]") -> None:
    try:
        while True:
            piece = done.get()
            results.send((piece.windows, piece.samples, piece.error, len(piece.audio)))
            rest = np.ascontiguousarray(piece.audio).view(np.uint8).data
            while len(rest):
                rest = rest[os.write(results.fileno(), rest) :]
    except OSError:
        os._exit(0)
