"""Process groups: run in several processes and combine their sums, values and gradients."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Time limit for the slowest rank. A rank that has died is noticed immediately.
TIMEOUT_SECONDS = 1800.0

BUCKET_BYTES = 25 << 20  # gradients summed in one call

Value = TypeVar("Value")


@dataclass(frozen=True)
class Group:
    """The processes (ranks) of a run. With a single process (world 1), every method returns its argument.

    All ranks must call the same methods in the same order. Every method raises ConnectionError if another rank has died
    or does not make the same call within the time limit of `join_group`.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor with its sum over the ranks. Shapes and dtypes must be the same on all ranks."""
        if self.world > 1:
            for tensor in tensors:
                _guarded(partial(dist.all_reduce, tensor))

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks in the order of the ranks. Any value that can be pickled works."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        _guarded(lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value: Value) -> Value:
        """Return the value of rank 0."""
        if self.world == 1:
            return value
        found = [value]
        _guarded(lambda: dist.broadcast_object_list(found, src=0))
        return found[0]

    def span(self, rows: int) -> tuple[int, int]:
        """Return the range (start, stop) of the rows that this rank reads."""
        return rows * self.rank // self.world, rows * (self.rank + 1) // self.world

    def local_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: on CUDA without an index, the GPU of its local rank."""
        if self.world == 1 or device.type != "cuda" or device.index is not None:
            return device
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
        torch.cuda.set_device(local)
        return local


ALONE = Group()


@contextmanager
def join_group(timeout: float = TIMEOUT_SECONDS, init_method: str | None = None) -> Iterator[Group]:
    """Join the processes that `torchrun` started. Yield `ALONE` unless RANK, WORLD_SIZE and MASTER_ADDR are set.

    NCCL combines tensors on CUDA devices, Gloo those on CPUs.

    Args:
        timeout: Seconds to wait for the other ranks in every step.
        init_method: Rendezvous as in `torch.distributed.init_process_group`, instead of MASTER_ADDR.

    Raises:
        ConnectionError: The other ranks cannot be reached.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world < 2 or not (init_method or "MASTER_ADDR" in os.environ):
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    _guarded(
        lambda: dist.init_process_group(
            backend, init_method=init_method, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
    )
    try:
        yield Group(rank, world)
    finally:
        dist.destroy_process_group()


def _guarded(step: Callable[[], Any]) -> None:
    try:
        step()
    except RuntimeError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConnectionError(
            f"another rank of this run stopped or did not answer in time ({reason[0]}). Read the message of that rank, "
            "then run the same command again: it resumes from the last checkpoint"
        ) from error


def average_gradients(parameters: Iterable[nn.Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each gradient with its mean over the ranks, summed in flat buckets of about `bucket_bytes`.

    A parameter must have a gradient on all ranks or on none.
    """
    if group.world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        group.sum_(flat)
        flat /= group.world
        for gradient, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(gradients: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
