"""Ray workers that process the shards of a run, one per device, on one machine or several that share the folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sctok.audio.packing import ClipT
from sctok.corpus.runs.events import RunListener, ShardFinished, WorkerLost
from sctok.corpus.runs.run_folder import RunError, RunFolder
from sctok.corpus.runs.sharding import LOCAL, Execution, Job, process_shards

_INSTALL = "the Ray engine needs Ray; to install it, run: pip install 'sctok[ray]'"
_POLL_SECONDS = 0.5
_STORE_BYTES = 80 << 20  # the minimum of Ray; no large objects pass through the store
_MAX_LOSSES = 3  # workers that may be lost in a row without a finished shard in between


def share_by_ray(
    runs: Sequence[RunFolder],
    make_job: Callable[[str], Job[ClipT]],
    execution: Execution,
    progress: RunListener,
) -> None:
    """Process the shards of runs with Ray workers, one per device, until none is left to claim.

    Each worker claims shards like a process started by hand on the same folder; if it dies, another worker claims its
    shard. A lost worker is replaced. All machines must see the run folder and the audio under the same paths, on a
    file system with locks. If Ray is started for this run, there is one worker per device of `execution`; on an
    existing cluster, one per GPU, or one per CPU if the device is a CPU.

    Args:
        runs: planned, with equal manifests.
        make_job: makes the job on a device; picklable.
        execution: includes the address of Ray; `workers` counts the decoding processes of all Ray workers together.
        progress: receives the events of `process_shards` of all workers, and WorkerLost.

    Raises:
        RunError: Ray is not installed, or several workers in a row are lost.
        the errors that `process_shards` raises in a worker.
    """
    try:
        import ray
        from ray.util.queue import Empty, Queue
    except ImportError:
        raise RunError(_INSTALL) from None
    on_gpu = execution.devices[0].startswith("cuda")
    count = len(execution.devices)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports over the network
    if execution.ray_address == LOCAL:
        local = {"num_cpus": count, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    else:
        ray.init(address=execution.ray_address, log_to_driver=False, ignore_reinit_error=True)
        count = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0)))
    try:
        device = "cuda:0" if on_gpu else execution.devices[0]  # Ray shows each worker only its own GPU
        per_worker = replace(execution, devices=(device,), workers=-(-execution.workers // count), ray_address=None)
        events = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(num_gpus=int(on_gpu), num_cpus=1, max_retries=0)(_work)
        start = partial(task.remote, runs, make_job, per_worker, events)
        _watch(ray, Empty, events, [start() for _ in range(count)], start, progress)
    finally:
        ray.shutdown()


def _watch(ray: Any, empty: type[Exception], events: Any, tasks: list[Any], start: Any, progress: RunListener) -> None:
    """Forward events until all tasks are done, and start a new task for each lost one."""
    losses = 0
    errors = ray.exceptions
    while tasks:
        done, tasks = ray.wait(tasks, num_returns=1, timeout=_POLL_SECONDS)
        while True:
            try:
                event = events.get_nowait()
            except empty:
                break
            losses = 0 if isinstance(event, ShardFinished) else losses
            progress(event)
        for task in done:
            try:
                ray.get(task)
            except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
                losses += 1
                if losses > _MAX_LOSSES:
                    raise RunError(
                        f"{losses} Ray workers in a row were lost; the last one: {_one_line(error)}"
                    ) from error
                progress(WorkerLost("a Ray worker", _one_line(error)))
                tasks.append(start())
            except errors.RayTaskError as error:
                if isinstance(error.cause, errors.RayError):
                    raise RunError(f"a Ray worker failed: {_one_line(error.cause)}") from error
                raise error.cause from None
            except errors.RayError as error:
                raise RunError(f"Ray failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _work(runs: Sequence[RunFolder], make_job: Callable[[str], Job[ClipT]], execution: Execution, events: Any) -> None:
    """Process shards in a Ray worker until none is left."""
    process_shards(runs, make_job(execution.devices[0]), execution, events.put)
