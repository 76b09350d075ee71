"""Reading ahead keeps the order, passes errors on and leaves no thread behind."""

import threading
from collections.abc import Callable, Iterator

import pytest

from sctok.runtime.read_ahead import ReadAhead, read_ahead


class _Stop(BaseException):
    """An exception that `except Exception` does not catch."""


class _Counted:
    """An iterator of numbers that records how many it made and whether it was closed."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.made, self.closed = 0, False
        self._count, self._error = count, error
        self.reached = [threading.Event() for _ in range(count + 1)]

    def __call__(self) -> Iterator[int]:
        try:
            for value in range(self._count):
                self.made += 1
                self.reached[value].set()
                yield value
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


@pytest.fixture
def readers() -> Callable[[], list[str]]:
    """Return the names of the reading threads of this test. Threads of other tests may still be idle."""
    others = set(threading.enumerate())
    return lambda: [
        each.name for each in threading.enumerate() if each.name.startswith("read-ahead") if each not in others
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_all_items_come_in_order(count: int, readers: Callable[[], list[str]]) -> None:
    source = _Counted(count)
    assert list(read_ahead(source())) == list(range(count))
    assert source.closed
    assert not readers()


def test_exactly_one_item_is_made_ahead() -> None:
    source = _Counted(10)
    reader = read_ahead(source())
    for value in range(5):
        assert next(reader) == value
        assert source.reached[value + 1].wait(10)
        assert source.made == value + 2
    reader.close()


@pytest.mark.parametrize("error", [ValueError("row 3"), _Stop()])
def test_an_error_comes_after_the_items_before_it(error: BaseException, readers: Callable[[], list[str]]) -> None:
    reader = read_ahead(_Counted(3, error)())
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(reader)
    assert not readers()


def test_leaving_early_closes_the_iterator_and_ends_the_thread(readers: Callable[[], list[str]]) -> None:
    source = _Counted(10)
    reader = read_ahead(source())
    assert next(reader) == 0
    with pytest.raises(KeyboardInterrupt):
        reader.throw(KeyboardInterrupt)
    assert source.closed
    assert source.made <= 2
    assert not readers()


def test_nothing_starts_before_the_first_item_is_requested(readers: Callable[[], list[str]]) -> None:
    source = _Counted(3)
    reader = read_ahead(source())
    assert not readers()
    assert source.made == 0
    reader.close()


def test_every_step_gets_its_item():
    ahead = ReadAhead(lambda step: step * step, 3)
    assert [ahead.take(step) for step in (0, 1, 2, 7, 8, 3)] == [0, 1, 4, 49, 64, 9]


def test_later_steps_are_made_in_other_threads():
    made = []
    third = threading.Event()

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 2:
            third.set()
        return step

    assert ReadAhead(make, 2).take(0) == 0
    assert third.wait(60)
    assert sorted(made) == [(0, False), (1, False), (2, False)]


def test_an_error_is_raised_at_its_own_step():
    def make(step):
        if step == 1:
            raise ValueError("step 1 cannot be made")
        return step

    ahead = ReadAhead(make, 2)
    assert ahead.take(0) == 0
    with pytest.raises(ValueError, match="step 1"):
        ahead.take(1)
    assert ahead.take(2) == 2
