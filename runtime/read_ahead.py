"""Reading ahead: the next item is made by a thread while the present one is in use."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the items of an iterator, which runs in a thread of its own and is one item ahead.

    At most two items exist at a time. What the iterator raises is raised here, at the place of the item. When this
    generator ends or is closed, the item on its way is waited for, and the iterator is closed.
    """
    worker = ThreadPoolExecutor(1, "read-ahead")
    try:
        coming: Future[tuple[Item] | None] = worker.submit(_next, items)
        while (found := coming.result()) is not None:
            coming = worker.submit(_next, items)
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
    """Calls `make` for up to `ahead` steps after the one that is asked for, each in a thread of its own."""

    def __init__(self, make: Callable[[int], Item], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._made: dict[int, Future[Item]] = {}
        self._pool = ThreadPoolExecutor(ahead, "read-ahead")

    def take(self, step: int) -> Item:
        """Return what `make` gives for a step. Raises what it raises."""
        for number in range(step, step + self._ahead + 1):
            if number not in self._made:
                self._made[number] = self._pool.submit(self._make, number)
        return self._made.pop(step).result()
