"""A thread that writes shards, so that the encoder does not wait for the disk."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

EventT = TypeVar("EventT")

_POLL_SECONDS = 0.5


class _AbandonedError(Exception):
    """Ends the consumer when the work is abandoned."""


class ConsumerThread(Generic[EventT]):
    """A context manager that passes events to a function in a thread; the function consumes an iterator of them.

    At the end of the block, the consumer has received all events. If the block fails, the iterator raises, so that the
    consumer can clean up. An error of the consumer is raised by `put` or at the end of the block.
    """

    def __init__(self, consume: Callable[[Iterator[EventT]], None], ahead: int) -> None:
        self._events: queue.Queue[EventT | None] = queue.Queue(maxsize=ahead)
        self._abandoned = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(consume,), name="sctok-writer", daemon=True)

    def put(self, event: EventT | None) -> None:
        """Pass on an event; wait while `ahead` events are queued."""
        while True:
            if not self._thread.is_alive() and self._error is not None:
                raise self._error
            try:
                self._events.put(event, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def _run(self, consume: Callable[[Iterator[EventT]], None]) -> None:
        try:
            consume(self._received())
        except _AbandonedError:
            pass
        except BaseException as error:  # raised again in the thread that puts events
            self._error = error

    def _received(self) -> Iterator[EventT]:
        while True:
            try:
                event = self._events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                event = None
                if not self._abandoned.is_set():
                    continue
            if self._abandoned.is_set():
                raise _AbandonedError
            if event is None:
                return
            yield event

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                self.put(None)
        except BaseException:
            self._abandoned.set()
            raise
        finally:
            if error is not None:
                self._abandoned.set()
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error
