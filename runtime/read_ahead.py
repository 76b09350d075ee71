"""Read ahead: threads make the next items while the current one is in use."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the items of an iterator that runs in its own thread, one item ahead.

    At most two items exist at a time. An exception of the iterator is raised here, in place of the item. When this
    generator ends or is closed, it waits for the pending item and closes the iterator.
    """
    worker = ThreadPoolExecutor(1, "read-ahead")
    try:
        pending: Future[tuple[Item] | None] = worker.submit(_next, items)
        while (found := pending.result()) is not None:
            pending = worker.submit(_next, items)
            yield found[0]
    finally:
        worker.shutdown(wait=True, cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def _next(items: Iterator[Item]) -> tuple[Item] | None:
    for item in items:
        return (item,)
    return None


class ReadAhead(Generic[Item]):
    """Call `make` in threads for up to `ahead` steps after the requested one."""

    def __init__(self, make: Callable[[int], Item], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._made: dict[int, Future[Item]] = {}
        self._pool = ThreadPoolExecutor(ahead, "read-ahead")

    def take(self, step: int) -> Item:
        """Return the result of `make` for a step, or raise its exception."""
        for number in range(step, step + self._ahead + 1):
            if number not in self._made:
                self._made[number] = self._pool.submit(self._make, number)
        return self._made.pop(step).result()
