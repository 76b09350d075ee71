"""Reading ahead: the next item is made by a thread while the present one is in use."""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
