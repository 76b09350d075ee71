"""The stages of a run, the time spent in each, and advice for the slowest."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

Stage = Callable[[str], AbstractContextManager[Any]]  # returns the context in which the stage of that name runs

DECODING, FILTERBANK, EMBEDDING, NEAREST, ACOUSTIC, WRITING, WRITER_WAIT = (
    "waiting for decoded audio",
    "filterbank",
    "encoder",
    "nearest centroid",
    "acoustic encoder",
    "writing (in its own thread)",
    "waiting for the writer",
)
_REMEDIES = {
    DECODING: "more --workers, faster storage, or sources with fewer channels and lower sample rates",
    FILTERBANK: "a GPU, or fewer decoding --workers if the device is a CPU",
    EMBEDDING: "more devices, --precision bf16 on a GPU, or a smaller encoder (this is the work the device is for)",
    NEAREST: "a smaller codebook, or a GPU",
    ACOUSTIC: "a GPU",
    WRITER_WAIT: "a faster disk, or more --files-per-shard",
}
_Item = TypeVar("_Item")


class StageTimer:
    """Add up the seconds of each stage. `timer(name)` is a context that times one; it waits for a GPU at its end.

    seconds: by the name of the stage.
    """

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
        """Yield items, and time how long the caller waits for each."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self.seconds[name] += time.perf_counter() - start
            if item is None:
                return
            yield item


def find_bottleneck(seconds: dict[str, float]) -> tuple[str, str]:
    """Return the stage that took the most time in the device's process, and what would speed it up."""
    counted = {name: value for name, value in seconds.items() if name in _REMEDIES}
    slowest = max(counted, key=lambda name: counted[name], default=EMBEDDING)
    return slowest, _REMEDIES[slowest]
