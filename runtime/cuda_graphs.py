"""CUDA graphs: the kernels of a function whose shapes never change, launched at once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_WARM_UP = 3  # calls before a capture, in which libraries choose their kernels and take their workspace


def captured(function: Callable[..., Result], examples: Sequence[Tensor]) -> Callable[..., Result]:
    """Return a function that replays the kernels that `function` launches for CUDA tensors of these shapes and dtypes.

    `function` takes the tensors and may not look at their values. It is called a few times here, then never again. What
    a replay returns is overwritten by the next.
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
        # Other threads may copy and allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            made = function(*inputs)

    def replay(*tensors: Tensor) -> Result:
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return made

    return replay


def captured_on_gpus(function: Callable[..., Result], examples: Sequence[Tensor]) -> Callable[..., Result]:
    """Return `captured`, or elsewhere than on a CUDA device the function itself."""
    return captured(function, examples) if examples[0].is_cuda else function
