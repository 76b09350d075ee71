"""The process that decodes files for the loader."""

import os
import queue
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sctok.audio.inputs.sources import AudioItem

from .pieces import Piece, read_pieces

_PARENT_CHECK_SECONDS = 1.0


def run_worker(
    tasks: Connection,
    results: Connection,
    current: Any,
    parent: int,
    channel: int | None,
    piece_windows: int,
    ahead: int,
) -> None:
    """Decode the files that arrive on `tasks` in their order, writing the pieces to `results`, until told to stop.

    Each task is (number, item), each result (windows, samples, error, length) and then the bytes of the audio.
    `current` shows the number of the file at hand. Closing the pipes, or the death of the process `parent`, ends the
    process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    given: queue.SimpleQueue[tuple[int, AudioItem]] = queue.SimpleQueue()
    done: queue.Queue[Piece] = queue.Queue(maxsize=ahead)
    # The threads keep both pipes moving whatever the decoder does, so that neither side ever waits for the other.
    threading.Thread(target=_receive, args=(tasks, given, parent), daemon=True).start()
    threading.Thread(target=_send, args=(results, done), daemon=True).start()
    while True:
        number, item = given.get()
        current.value = number
        for piece in read_pieces(item, channel, piece_windows):
            done.put(piece)


def _receive(tasks: Connection, given: "queue.SimpleQueue[tuple[int, AudioItem]]", parent: int) -> None:
    try:
        while True:
            while not tasks.poll(_PARENT_CHECK_SECONDS):
                if os.getppid() != parent:
                    os._exit(0)
            given.put(tasks.recv())
    except (EOFError, OSError):
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
