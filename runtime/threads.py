"""Distribute rows of work over threads. Numba functions release the global interpreter lock while they run."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_TASK_ROWS = 1536


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sctok-rows")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process does not have these threads


def in_parallel(rows: int, work: Callable[[int, int], Any], multiple: int = 1) -> None:
    """Call work(start, stop) for ranges of rows that start at multiples of `multiple`, on the threads of PyTorch.

    The ranges have about equal lengths, and every thread gets the same number of them.
    """
    threads = torch.get_num_threads()
    step = -(-rows // max(1, -(-rows // (_TASK_ROWS * threads)) * threads))
    step = max(1, -(-step // multiple) * multiple)
    ranges = [(start, min(rows, start + step)) for start in range(0, rows, step)]
    run_tasks([partial(work, *part) for part in ranges])


def on_every_thread(work: Callable[[int, int], Any]) -> None:
    """Call work(thread, threads) once on each thread; there are as many threads as PyTorch uses."""
    threads = torch.get_num_threads()
    run_tasks([partial(work, thread, threads) for thread in range(threads)])


def run_tasks(tasks: list[Callable[[], T]]) -> list[T]:
    """Call functions on as many threads as PyTorch uses and return their results in order."""
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    return [running.result() for running in [_pool(threads).submit(task) for task in tasks]]
