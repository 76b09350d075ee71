"""The child process that tests low precision for `devices.low_precision_faults`."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

STARTED, FAILED, PASSED = "started", "failed", "passed"
LARGEST_ERROR = 0.1  # of a result in low precision, relative to its norm; bfloat16 loses about 0.01
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Step:
    """One operator to test. `run` takes a precision (fp32, bf16, fp16) and returns the result in that precision."""

    operator: str
    run: Callable[[str], Tensor]


def forward_step(operator: str, module: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """Return the step that calls a module for inference under autocast."""

    def run(precision: str) -> Tensor:
        with torch.inference_mode(), _autocast(precision):
            return module(*inputs)

    return Step(f"{operator}, forward pass", run)


def training_steps(operator: str, module: nn.Module, call: Callable[[], Tensor]) -> list[Step]:
    """Return the steps for the forward and the backward pass of a module under autocast."""

    def forward(precision: str) -> Tensor:
        with _autocast(precision):
            return call()

    def backward(precision: str) -> Tensor:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(forward(precision).float().square().mean(), parameters)
        return torch.cat([gradient.float().flatten() for gradient in found])

    return [Step(f"{operator}, forward pass", forward), Step(f"{operator}, backward pass", backward)]


def filled(module: Module) -> Module:
    """Fill the zero parameters of a module at random, so that its result depends on every operator; return it."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return module


def main() -> None:
    """Test uses in a precision. The command line gives the precision and the `module:function` of each use."""
    precision, *uses = sys.argv[1:]
    for use in uses:
        module, function = use.split(":")
        torch.manual_seed(0)
        _test(use, getattr(import_module(module), function)(), precision)


def _test(use: str, steps: Iterable[Step], precision: str) -> None:
    for step in steps:
        _report(STARTED, use, step.operator)
        try:
            expected, found = step.run("fp32").detach().float(), step.run(precision).detach().float()
        except RuntimeError as error:  # PyTorch raises it for a missing operator
            return _report(FAILED, use, str(error).partition(". ")[0])
        if not float((found - expected).norm()) <= LARGEST_ERROR * float(expected.norm()):
            return _report(FAILED, use, "its results are wrong")
    return _report(PASSED, use, "")


def _report(event: str, use: str, text: str) -> None:
    print(event, use, " ".join(text.split()), sep="\t", flush=True)


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")
