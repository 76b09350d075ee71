"""Where the time of a run goes, stage by stage."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

Stage = Callable[[str], AbstractContextManager[Any]]  # times what is done inside it

DECODE, FILTERBANK, ENCODER, NEAREST, ACOUSTIC, WRITING, WRITER_WAIT = (
    "waiting for decoded audio",
    "filterbank",
    "encoder",
    "nearest centroid",
    "acoustic encoder",
    "writing (in its own thread)",
    "waiting for the writer",
)
_REMEDIES = {
    DECODE: "more --workers, faster storage, or fewer channels and lower sample rates in the source",
    FILTERBANK: "a GPU, or fewer decoding --workers beside it on a CPU",
    ENCODER: "more devices, --precision bf16 on a GPU, or a smaller encoder: this is what the device is for",
    NEAREST: "a smaller codebook, or a GPU",
    ACOUSTIC: "a GPU",
    WRITER_WAIT: "a faster disk, or more --files-per-shard",
}
_Item = TypeVar("_Item")


class StageTimes:
    """Seconds by stage. Calling it with a name gives a context that is timed; on a GPU it waits for what was begun."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._on_gpu = device.startswith("cuda")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._on_gpu:
                import torch

                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start

    def each(self, name: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items, timing how long each takes to come."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self.seconds[name] += time.perf_counter() - start
            if item is None:
                return
            yield item


def find_bottleneck(seconds: dict[str, float]) -> tuple[str, str]:
    """Return the stage that the device's process spent most time in, and what would speed it up."""
    counted = {name: value for name, value in seconds.items() if name in _REMEDIES}
    slowest = max(counted, key=lambda name: counted[name], default=ENCODER)
    return slowest, _REMEDIES[slowest]
