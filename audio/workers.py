"""The process that decodes files for the loader."""

import os
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sctok.audio.inputs.sources import AudioItem
from sctok.runtime.worker_process import received

from .pieces import Piece, read_pieces


def decode_files(
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
    # The threads keep both pipes moving whatever the decoder does, so that neither side ever waits for the other.
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
