"""The encoder as a single launch on GPUs, which otherwise wait for the launches of its small kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from sctok.runtime.cuda_graphs import captured

WAYS = ("eager", "graph", "compile")

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
    return captured(wanted, [example]) if example.device.type == "cuda" else wanted
