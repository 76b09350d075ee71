"""Rows of work are distributed evenly over threads."""

import os
from collections.abc import Iterator

import pytest
import torch

from sctok.runtime.threads import in_parallel, on_every_thread, run_tasks


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "multiple"), [(0, 1), (1, 6), (15, 6), (5000, 1), (5000, 6)])
def test_every_row_is_worked_on_once(threads: int, rows: int, multiple: int) -> None:
    ranges: list[tuple[int, int]] = []
    in_parallel(rows, lambda start, stop: ranges.append((start, stop)), multiple)
    assert sorted(row for start, stop in ranges for row in range(start, stop)) == list(range(rows))
    assert all(start % multiple == 0 for start, _ in ranges)


def test_all_threads_have_the_same_number_of_tasks(threads: int) -> None:
    sizes: list[int] = []
    in_parallel(5_461, lambda start, stop: sizes.append(stop - start), 6)
    assert len(sizes) % threads == 0
    assert max(sizes) - min(sizes) <= 6 * len(sizes)


def test_results_come_in_order_and_errors_are_raised(threads: int) -> None:
    assert run_tasks([lambda number=number: number for number in range(20)]) == list(range(20))  # type: ignore[misc]
    seen: list[tuple[int, int]] = []
    on_every_thread(lambda thread, count: seen.append((thread, count)))
    assert sorted(seen) == [(thread, threads) for thread in range(threads)]
    with pytest.raises(ZeroDivisionError):
        run_tasks([lambda: 1 // 0, lambda: 1])


def test_a_forked_child_has_its_own_threads(threads: int) -> None:
    run_tasks([lambda: None] * 8)
    child = os.fork()
    if not child:
        os._exit(0 if run_tasks([lambda: 7] * 8) == [7] * 8 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
