"""Rows of work for several threads: Numba functions let go of the interpreter while they run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch

_TASK_ROWS = 1536


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sctok-rows")


def in_parallel(rows: int, work: Callable[[int, int], Any], multiple: int = 1) -> None:
    """Call work(start, stop) for ranges of rows that begin at multiples, on as many threads as PyTorch uses."""
    step = min(_TASK_ROWS, -(-rows // torch.get_num_threads()))
    step = max(1, -(-step // multiple) * multiple)
    ranges = [(start, min(rows, start + step)) for start in range(0, rows, step)]
    _run([partial(work, *part) for part in ranges])


def on_every_thread(work: Callable[[int, int], Any]) -> None:
    """Call work(thread, threads) once for each of the threads that PyTorch uses."""
    threads = torch.get_num_threads()
    _run([partial(work, thread, threads) for thread in range(threads)])


def _run(tasks: list[Callable[[], Any]]) -> None:
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) <= 1:
        for task in tasks:
            task()
        return
    for running in [_pool(threads).submit(task) for task in tasks]:
        running.result()
