"""Moving batches of windows to the encoder: on a GPU, one batch is copied while another one is encoded."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from .windows import WINDOW_SPAN, windows_at_once

# Windows float32 (w, 164,080), or (w, 2560·c + 240) without padding, and flags bool (w,) for the last window of a file:
# arrays on a CPU, tensors on a GPU.
Waves = npt.NDArray[np.float32] | torch.Tensor
Ends = npt.NDArray[np.bool_] | torch.Tensor
Encode = Callable[[Waves, Ends], Iterable[Any]]  # one result per window, in host memory
Batch = Sequence[tuple[npt.NDArray[np.float32], bool]]  # windows of equal length; whether each ends its file

_LANES = 2


def to_array(values: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[Any]:
    """Return an array, or a tensor on any device, as an array."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def lanes_for(encode: Encode, size: int, device: torch.device) -> "DirectLanes | DeviceLanes":
    """Return the lanes of a device for batches of `size` whole windows; a context manager."""
    return DeviceLanes(encode, size, device) if device.type == "cuda" else DirectLanes(encode, size)


class Lanes(Protocol):
    """Memory for batches, and the encoder that reads it.

    size: whole windows in a batch. ahead: batches that may be begun before the results of the first are taken.
    """

    size: int
    ahead: int

    def begin(self, batch: Batch) -> Callable[[], Iterable[Any]]:
        """Begin to encode at most `size` · windows_at_once(c) windows of c columns; return a function that waits."""
        ...


class _Memory:
    """Memory for a batch of windows of any length."""

    def __init__(self, size: int, *, pinned: bool = False) -> None:
        self.waves = torch.zeros(size * WINDOW_SPAN, pin_memory=pinned)
        self.last = torch.zeros(size * windows_at_once(1), dtype=torch.bool, pin_memory=pinned)

    def views(self, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the memory of `count` windows of `length` samples, (count, length), and of their flags (count,)."""
        return self.waves[: count * length].view(count, length), self.last[:count]

    def fill(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy windows into the memory and return their views."""
        waves, last = self.views(len(batch), len(batch[0][0]))
        rows, flags = waves.numpy(), last.numpy()
        for index, (wave, ends_file) in enumerate(batch):
            rows[index], flags[index] = wave, ends_file
        return waves, last


class DirectLanes:
    """Encode each batch at once, in the caller's thread."""

    ahead = 0

    def __init__(self, encode: Encode, size: int) -> None:
        self.size = size
        self._encode = encode
        self._memory = _Memory(size)

    def begin(self, batch: Batch) -> Callable[[], Iterable[Any]]:
        """Encode the batch and return a function that returns its results."""
        waves, last = self._memory.fill(batch)
        results = self._encode(waves.numpy(), last.numpy())
        return lambda: results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Lane:
    """Memory for a batch on the host, pinned if the device is a GPU, and on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.on_host = _Memory(size, pinned=pinned)
        with device:
            self.on_device = _Memory(size)
        self.copied = torch.cuda.Event() if pinned else None


class DeviceLanes:
    """Fill one batch and copy it to the device while a thread encodes another one. A context manager.

    On a GPU, copies run in a separate stream from pinned memory, in parallel with the encoder.
    """

    ahead = _LANES - 1

    def __init__(self, encode: Encode, size: int, device: torch.device) -> None:
        self.size = size
        self._encode, self._device = encode, device
        self._lanes = [_Lane(size, device) for _ in range(_LANES)]
        self._next = 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "sctok-encoder")

    def begin(self, batch: Batch) -> Callable[[], Iterable[Any]]:
        """Copy a batch to the next lane, whose results were taken, and encode it after the earlier batches."""
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % _LANES
        host = lane.on_host.fill(batch)
        copy = lane.on_device.views(*host[0].shape)
        with torch.cuda.stream(self._copies):
            for target, source in zip(copy, host, strict=True):
                target.copy_(source, non_blocking=True)
            if lane.copied is not None:
                lane.copied.record()
        begun: Future[Iterable[Any]] = self._thread.submit(self._run, lane, *copy)
        return begun.result

    def _run(self, lane: _Lane, waves: torch.Tensor, last: torch.Tensor) -> Iterable[Any]:
        with torch.cuda.device(self._device) if lane.copied is not None else nullcontext():
            if lane.copied is not None:
                lane.copied.wait()
            return self._encode(waves, last)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)
