"""Work done ahead is what would have been done at its time."""

import threading

import pytest

from sctok.features.read_ahead import ReadAhead


def test_every_step_gets_its_own():
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


def test_an_error_reaches_the_step_that_it_belongs_to():
    def make(step):
        if step == 1:
            raise ValueError("step 1 cannot be made")
        return step

    ahead = ReadAhead(make, 2)
    assert ahead.take(0) == 0
    with pytest.raises(ValueError, match="step 1"):
        ahead.take(1)
    assert ahead.take(2) == 2
