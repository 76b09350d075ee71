"""The encoder as a single launch on GPUs, which otherwise wait for the launches of its small kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

WAYS = ("eager", "graph", "compile")
_WARM_UP = 3  # calls before a capture, in which libraries choose their kernels and take their workspace

Forward = Callable[[Tensor], Tensor]


def accelerate(forward: Forward, example: Tensor, way: str) -> Forward:
    """Return a function that does what `forward` does for inputs of one shape.

    Args:
        forward: maps a tensor to a tensor, without randomness and without looking at values.
        example: an input of the shape, dtype and device of all that will come.
        way: eager returns `forward` itself. graph captures its kernels on a CUDA device, which gives the same bits;
            what it returns is overwritten by the next call. compile has torch.compile write kernels, which round
            otherwise, and captures those on a CUDA device.

    Raises:
        ValueError: an unknown way, or a graph of a device that has none.
    """
    if way not in WAYS:
        raise ValueError(f"{way!r} is none of {', '.join(WAYS)}")
    if way == "eager":
        return forward
    if way == "graph" and example.device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, not {example.device}")
    wanted: Forward = torch.compile(forward, dynamic=False) if way == "compile" else forward
    return _captured(wanted, example) if example.device.type == "cuda" else wanted


def _captured(forward: Forward, example: Tensor) -> Forward:
    given = example.clone()
    with torch.cuda.device(example.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                forward(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy and allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            made = forward(given)

    def replay(values: Tensor) -> Tensor:
        given.copy_(values)
        graph.replay()
        return made

    return replay
