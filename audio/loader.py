"""Windows of many files, decoded ahead in worker processes and given out in the order of the files."""

import fcntl
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.audio.inputs.sources import AudioItem

from .errors import AudioError
from .pieces import Piece, empty_span, read_pieces, window_rows
from .workers import run_worker

_STOP_SECONDS = 2.0
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Successive windows of one file.

    `waves` is float32 (w, WINDOW_SPAN) at 16 kHz: window i of the file covers its samples from i · WINDOW_SAMPLES,
    240 of them shared with the next window, zero after the end of the audio; row 0 is window `first_window`. `last`
    marks the end of the file, which then has `samples` samples. With an `error`, one line, the file ends here too:
    `waves` has no rows, `samples` is None, and windows given before it are of a file that is broken further on.
    """

    item: AudioItem
    first_window: int
    waves: NDArray[np.float32]
    last: bool
    samples: int | None
    error: str | None


class LoaderError(AudioError):
    """A decoding worker died; the message names the file that it was on."""


def load_windows(
    items: Iterable[AudioItem],
    *,
    workers: int,
    channel: int | None = None,
    ahead: int = 8,
    chunk_windows: int = 8,
) -> Iterator[Chunk]:
    """Yield the windows of `items` in their order, in chunks of at most `chunk_windows`; no chunk spans two files.

    File i is decoded by worker process i mod `workers`, each of which works at most `ahead` chunks and `ahead` files
    ahead, so that memory depends on these settings alone and `items` is consumed as needed. A file of n samples
    fills window_count(n) windows, the last of which may hold no audio. With workers=0 this process decodes. Closing
    the iterator ends the workers, and so does the death of this process.

    The workers are spawned: a script that calls this needs `if __name__ == "__main__":` around its work.

    Raises LoaderError if a worker dies, ValueError for settings out of range. A file that cannot be read gives a
    chunk with an `error`, never an exception.
    """
    if workers < 0 or ahead < 1 or chunk_windows < 1 or (channel is not None and channel < 0):
        settings = f"workers={workers}, ahead={ahead}, chunk_windows={chunk_windows}, channel={channel}"
        raise ValueError(f"{settings}: workers and channel must be at least 0, ahead and chunk_windows at least 1")
    if workers == 0:
        return _load_here(items, channel, chunk_windows)
    return _load_in_workers(items, workers, channel, ahead, chunk_windows)


def _load_here(items: Iterable[AudioItem], channel: int | None, chunk_windows: int) -> Iterator[Chunk]:
    for item in items:
        first = 0
        for piece in read_pieces(item, channel, chunk_windows):
            buffer = empty_span(piece.windows)
            buffer[: len(piece.audio)] = piece.audio
            yield _chunk(item, first, buffer, piece)
            first += piece.windows


def _chunk(item: AudioItem, first: int, buffer: NDArray[np.float32], piece: Piece) -> Chunk:
    last = piece.samples is not None or piece.error is not None
    return Chunk(item, first, window_rows(buffer), last, piece.samples, piece.error)


class _Worker:
    """A decoding process, the pipes to and from it, and the files it was given and has not finished."""

    def __init__(self, channel: int | None, chunk_windows: int, ahead: int) -> None:
        context = multiprocessing.get_context("spawn")
        tasks, self._tasks = context.Pipe(duplex=False)
        self._results, results = context.Pipe(duplex=False)
        _widen(results.fileno())
        self._current: Any = context.RawValue("q", -1)
        self._given: deque[tuple[int, AudioItem]] = deque()
        self._process: SpawnProcess = context.Process(
            target=run_worker,
            args=(tasks, results, self._current, os.getpid(), channel, chunk_windows, ahead),
            name="sctok-decoder",
            daemon=True,
        )
        with _sigint_blocked():
            self._process.start()
        # Only the worker may hold its ends: their closing is how each side learns of the other's death.
        tasks.close()
        results.close()

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    def give(self, number: int, item: AudioItem) -> None:
        self._given.append((number, item))
        # Metadata stays here: a worker has no use for it.
        bare = replace(item, metadata={})
        try:
            self._tasks.send((number, bare))
        except OSError as error:
            raise self.death() from error

    def receive(self, sentinels: list[int]) -> tuple[Piece, NDArray[np.float32]]:
        """Return the next piece of the worker's oldest file and its audio, zero padded to whole windows."""
        ready = connection.wait([self._results, *sentinels])
        try:
            if self._results not in ready:
                raise EOFError
            windows, samples, error, length = self._results.recv()
            buffer = empty_span(windows)
            _read_into(self._results.fileno(), buffer[:length].view(np.uint8).data)
        except (EOFError, OSError) as failure:
            raise self.death() from failure
        return Piece(np.empty(0, np.float32), windows, samples, error), buffer

    def finish_file(self) -> None:
        self._given.popleft()

    def is_dead(self) -> bool:
        return self._process.exitcode is not None

    def death(self) -> LoaderError:
        """Return what to raise for a worker that is gone: the file it was on and how it ended."""
        self._process.join(_STOP_SECONDS)
        code = self._process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        on = dict(self._given).get(self._current.value) or (self._given[0][1] if self._given else None)
        name = on.name if on is not None else "audio"
        advice = "run again, with fewer workers if memory was short; if it happens again, move the file away"
        return LoaderError(name, f"the worker process that was decoding it {how}; {advice}")

    def stop(self) -> None:
        self._tasks.close()
        self._results.close()

    def join(self) -> None:
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _read_into(pipe: int, rest: memoryview) -> None:
    """Fill memory from a pipe without the copies of Connection.recv_bytes_into. Raises EOFError where it ends."""
    while len(rest):
        if not (count := os.readv(pipe, [rest])):
            raise EOFError
        rest = rest[count:]


def _widen(pipe: int) -> None:
    """Let a pipe hold more, where the system allows it: fewer turns between the two sides."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Hold back Ctrl-C while a worker starts: it inherits that, until it has chosen to ignore the signal."""
    resource_tracker.ensure_running()  # the first worker would launch it, which lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load_in_workers(
    items: Iterable[AudioItem], workers: int, channel: int | None, ahead: int, chunk_windows: int
) -> Iterator[Chunk]:
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_Worker(channel, chunk_windows, ahead))
        sentinels = [worker.sentinel for worker in pool]
        waiting: deque[tuple[AudioItem, _Worker]] = deque()
        numbered = enumerate(items)
        while True:
            while len(waiting) < workers * ahead and (following := next(numbered, None)) is not None:
                number, item = following
                pool[number % workers].give(number, item)
                waiting.append((item, pool[number % workers]))
            if not waiting:
                return
            item, worker = waiting.popleft()
            yield from _receive_file(item, worker, pool, sentinels)
            worker.finish_file()
    finally:
        for worker in pool:
            worker.stop()
        for worker in pool:
            worker.join()


def _receive_file(item: AudioItem, worker: _Worker, pool: list[_Worker], sentinels: list[int]) -> Iterator[Chunk]:
    first, last = 0, False
    while not last:
        for other in pool:
            if other.is_dead():
                raise other.death()
        piece, buffer = worker.receive(sentinels)
        chunk = _chunk(item, first, buffer, piece)
        first, last = first + piece.windows, chunk.last
        yield chunk
