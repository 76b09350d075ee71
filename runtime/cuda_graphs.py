"""CUDA graphs: launch all kernels of a function with constant shapes at once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_WARM_UP = 3  # calls before a capture, in which libraries choose their kernels and allocate their workspace


def captured(function: Callable[..., Result], examples: Sequence[Tensor]) -> Callable[..., Result]:
    """Return a function that replays the kernels of `function` for CUDA tensors of given shapes and dtypes.

    The next replay overwrites the result of the previous one.

    Args:
        function: Takes the tensors and must not depend on their values on the CPU. It is called only here.
        examples: Tensors with the shapes, dtypes and device of all later calls.
    """
    inputs = [example.clone() for example in examples]
    with torch.cuda.device(examples[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may copy and allocate during the capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function(*inputs)

    def replay(*tensors: Tensor) -> Result:
        for target, tensor in zip(inputs, tensors, strict=True):
            target.copy_(tensor)
        graph.replay()
        return result

    return replay


def captured_on_gpus(function: Callable[..., Result], examples: Sequence[Tensor]) -> Callable[..., Result]:
    """Return `captured(function, examples)` on a CUDA device, and the function itself on any other."""
    return captured(function, examples) if examples[0].is_cuda else function
