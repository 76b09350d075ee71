"""Process groups: one run in several processes, whose sums, values and gradients are combined."""

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

# A rank waits this long for the slowest one; one that has died is noticed at once.
TIMEOUT_SECONDS = 1800.0

BUCKET_BYTES = 25 << 20  # of gradients summed in one call

Value = TypeVar("Value")


@dataclass(frozen=True)
class Group:
    """The processes of a run. Alone (world 1) every method gives back what it was given.

    All ranks call the same methods in the same order. Every method raises ConnectionError where another rank has
    died, or has not come to the same call within the time limit of `join_group`.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints: rank 0."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor, of one shape and dtype on all ranks, by its sum over the ranks."""
        if self.world > 1:
            for tensor in tensors:
                _guarded(partial(dist.all_reduce, tensor))

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks in the order of the ranks: arrays of any size, numbers, strings, lists …"""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        _guarded(lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value: Value) -> Value:
        """Return the value that rank 0 has."""
        if self.world == 1:
            return value
        found = [value]
        _guarded(lambda: dist.broadcast_object_list(found, src=0))
        return found[0]

    def span(self, rows: int) -> tuple[int, int]:
        """Return the (start, stop) of the rows that this rank reads in order."""
        return rows * self.rank // self.world, rows * (self.rank + 1) // self.world

    def local_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: of the GPUs of its machine the one of its local rank, unless named."""
        if self.world == 1 or device.type != "cuda" or device.index is not None:
            return device
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
        torch.cuda.set_device(local)
        return local


ALONE = Group()


@contextmanager
def join_group(timeout: float = TIMEOUT_SECONDS, init_method: str | None = None) -> Iterator[Group]:
    """Join the other processes that `torchrun` has started (RANK, WORLD_SIZE and MASTER_ADDR are set), or be alone.

    timeout: seconds to wait for the other ranks, in every step. init_method: where to meet, as for
    `torch.distributed.init_process_group`, instead of MASTER_ADDR. NCCL combines tensors on CUDA, Gloo those on CPUs.

    Raises:
        ConnectionError: the other ranks cannot be reached.
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
            f"another rank of this run stopped, or did not answer in time ({reason[0]}); its own message says why, "
            "and the same command goes on from the last checkpoint"
        ) from error


def average_gradients(parameters: Iterable[nn.Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each gradient by its mean over the ranks, summed in flat pieces of about `bucket_bytes`.

    A parameter has a gradient on all ranks or on none.
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
