"""The shards of a run done by actors of Ray, one per device, on one machine or many that share the folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sctok.audio.packing import ClipT
from sctok.corpus.runs.run_folder import Progress, RunError, RunFolder
from sctok.corpus.runs.sharding import LOCAL, Execution, Job, process_shards

_INSTALL = "the Ray engine needs Ray; to install it, run: pip install 'sctok[ray]'"
_POLL_SECONDS = 0.5
_STORE_BYTES = 80 << 20  # the least that Ray takes; nothing large goes through it
_LOSSES = 3  # of workers in a row without a finished shard between them, before a run gives up


def share_by_ray(
    runs: Sequence[RunFolder],
    make_job: Callable[[str], Job[ClipT]],
    execution: Execution,
    progress: Progress,
) -> None:
    """Work on the shards of runs with workers of Ray, one per device, until none is left that nobody works on.

    Every worker does what a process does that is started by hand on the same folder: it claims shards, and what it
    leaves unfinished when it dies is claimed by another. A lost worker is replaced. All machines have to see the run
    folder and the audio under the same paths, on a file system with locks. Where Ray is started for the run, there is
    a worker for each device of the execution; on a running cluster one for each of its GPUs, or its CPUs.

    Args:
        runs: planned, with equal manifests.
        make_job: makes the job on a device; picklable.
        execution: with the address of Ray; its decoding processes are those of all workers together.
        progress: gets the events of `process_shards` of all workers, and `{"event": "lost", "device", "reason"}`.

    Raises:
        RunError: Ray is not installed, or workers are lost again and again.
        what `process_shards` raises in a worker.
    """
    try:
        import ray
        from ray.util.queue import Empty, Queue
    except ImportError:
        raise RunError(_INSTALL) from None
    on_gpu = execution.devices[0].startswith("cuda")
    count = len(execution.devices)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    if execution.ray_address == LOCAL:
        local = {"num_cpus": count, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    else:
        ray.init(address=execution.ray_address, log_to_driver=False, ignore_reinit_error=True)
        count = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0)))
    try:
        device = "cuda:0" if on_gpu else execution.devices[0]  # Ray shows each worker its own GPU alone
        alone = replace(execution, devices=(device,), workers=-(-execution.workers // count), ray_address=None)
        events = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(num_gpus=int(on_gpu), num_cpus=1, max_retries=0)(_work)
        start = partial(task.remote, runs, make_job, alone, events)
        _watch(ray, Empty, events, [start() for _ in range(count)], start, progress)
    finally:
        ray.shutdown()


def _watch(ray: Any, empty: type[Exception], events: Any, tasks: list[Any], start: Any, progress: Progress) -> None:
    """Pass on events until all tasks are done, starting another for each that is lost."""
    losses = 0
    known = ray.exceptions
    while tasks:
        done, tasks = ray.wait(tasks, num_returns=1, timeout=_POLL_SECONDS)
        while True:
            try:
                event = events.get_nowait()
            except empty:
                break
            losses = 0 if event["event"] == "shard" else losses
            progress(event)
        for task in done:
            try:
                ray.get(task)
            except (known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError) as error:
                losses += 1
                if losses > _LOSSES:
                    raise RunError(f"workers of Ray are lost again and again: {_one_line(error)}") from error
                progress({"event": "lost", "device": "a worker of Ray", "reason": _one_line(error)})
                tasks.append(start())
            except known.RayTaskError as error:
                if isinstance(error.cause, known.RayError):
                    raise RunError(f"a worker of Ray failed: {_one_line(error.cause)}") from error
                raise error.cause from None
            except known.RayError as error:
                raise RunError(f"Ray failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _work(runs: Sequence[RunFolder], make_job: Callable[[str], Job[ClipT]], execution: Execution, events: Any) -> None:
    """Do shards in a process of Ray's until none is left."""
    process_shards(runs, make_job(execution.devices[0]), execution, events.put)
