"""Batches of windows on their way to the encoder: on a GPU, one is copied there while another is encoded."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.windows import WINDOW_SPAN

# Windows (w, 164,080) float32 and which of them end a file (w,) bool: arrays on a CPU, tensors on a GPU.
Waves = npt.NDArray[np.float32] | torch.Tensor
Ends = npt.NDArray[np.bool_] | torch.Tensor
Encode = Callable[[Waves, Ends], Iterable[Any]]  # one result per window, in memory of this machine

_LANES = 2


def to_array(values: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[Any]:
    """Return an array or a tensor on any device as an array."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def lanes_for(encode: Encode, size: int, device: torch.device) -> "DirectLanes | DeviceLanes":
    """Return the lanes that suit a device, for batches of `size` windows; a context manager."""
    return DeviceLanes(encode, size, device) if device.type == "cuda" else DirectLanes(encode, size)


class Lanes(Protocol):
    """Buffers for batches, and the encoder behind them.

    ahead: how many batches may be begun before the results of the first are asked for.
    """

    ahead: int

    def buffers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return where to put the next batch: windows (size, 164,080), and which end a file (size,)."""
        ...

    def begin(self, filled: int) -> Callable[[], Iterable[Any]]:
        """Begin to encode the first `filled` windows of those buffers; return what waits for the results."""
        ...


class DirectLanes:
    """Encodes each batch when it is full, in the caller's thread."""

    ahead = 0

    def __init__(self, encode: Encode, size: int) -> None:
        self._encode = encode
        self._waves, self._last = np.zeros((size, WINDOW_SPAN), np.float32), np.zeros(size, bool)

    def buffers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the only buffers."""
        return self._waves, self._last

    def begin(self, filled: int) -> Callable[[], Iterable[Any]]:
        """Encode now."""
        results = self._encode(self._waves[:filled], self._last[:filled])
        return lambda: results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _Lane:
    """Memory for a batch here, pinned where the device is a GPU, and there."""

    def __init__(self, size: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.here = [torch.zeros(size, WINDOW_SPAN, pin_memory=pinned)]
        self.here += [torch.zeros(size, dtype=torch.bool, pin_memory=pinned)]
        self.there = [torch.empty_like(each, device=device) for each in self.here]
        self.copied = torch.cuda.Event() if pinned else None


class DeviceLanes:
    """Two batches under way: one is filled and copied to the device while a thread encodes the other.

    A context manager. On a GPU the copies run beside the encoder, in a stream of their own, out of pinned memory.
    """

    ahead = _LANES - 1

    def __init__(self, encode: Encode, size: int, device: torch.device) -> None:
        self._encode, self._device = encode, device
        self._lanes = [_Lane(size, device) for _ in range(_LANES)]
        self._next = 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "sctok-encoder")

    def buffers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the buffers of the lane whose results were taken already."""
        waves, last = (each.numpy() for each in self._lanes[self._next].here)
        return waves, last

    def begin(self, filled: int) -> Callable[[], Iterable[Any]]:
        """Begin to copy a batch, and encode it in the thread after those before it."""
        lane = self._lanes[self._next]
        self._next = (self._next + 1) % _LANES
        with torch.cuda.stream(self._copies):
            for there, here in zip(lane.there, lane.here, strict=True):
                there[:filled].copy_(here[:filled], non_blocking=True)
            if lane.copied is not None:
                lane.copied.record()
        begun: Future[Iterable[Any]] = self._thread.submit(self._run, lane, filled)
        return begun.result

    def _run(self, lane: _Lane, filled: int) -> Iterable[Any]:
        with torch.cuda.device(self._device) if lane.copied is not None else nullcontext():
            if lane.copied is not None:
                lane.copied.wait()
            return self._encode(*(each[:filled] for each in lane.there))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
