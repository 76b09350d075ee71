"""What the next steps of a training need, made by threads while a step is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Calls `make` for up to `ahead` steps after the one that is asked for, each in a thread of its own."""

    def __init__(self, make: Callable[[int], T], ahead: int) -> None:
        self._make, self._ahead = make, ahead
        self._made: dict[int, Future[T]] = {}
        self._pool = ThreadPoolExecutor(ahead, "read-ahead")

    def take(self, step: int) -> T:
        """Return what `make` gives for a step. Raises what it raises."""
        for number in range(step, step + self._ahead + 1):
            if number not in self._made:
                self._made[number] = self._pool.submit(self._make, number)
        return self._made.pop(step).result()
