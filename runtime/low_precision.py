"""The child process that tries out low precision for `devices.low_precision_fault`."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

STARTED, FAILED, PASSED = "started", "failed", "passed"
LARGEST_ERROR = 0.1  # of a result in low precision, as a share of its norm; bfloat16 loses some 0.01
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Step:
    """One operator to try. `run` gets a precision (fp32, bf16, fp16) and returns what the operator computes in it."""

    operator: str
    run: Callable[[str], Tensor]


def forward_step(operator: str, module: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """Return the step that calls a module under autocast in inference."""

    def run(precision: str) -> Tensor:
        with torch.inference_mode(), _autocast(precision):
            return module(*inputs)

    return Step(f"{operator}, forward pass", run)


def training_steps(operator: str, module: nn.Module, call: Callable[[], Tensor]) -> list[Step]:
    """Return the steps that run a call of a module under autocast with gradients, and then its backward pass."""

    def forward(precision: str) -> Tensor:
        with _autocast(precision):
            return call()

    def backward(precision: str) -> Tensor:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(forward(precision).float().square().mean(), parameters)
        return torch.cat([gradient.float().flatten() for gradient in found])

    return [Step(f"{operator}, forward pass", forward), Step(f"{operator}, backward pass", backward)]


def filled(module: Module) -> Module:
    """Return a module whose parameters that begin as zero are drawn, so that its result depends on every operator."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return module


def main() -> None:
    """Try the uses of the command line, after the precision, each a `module:function` that returns steps."""
    precision, *uses = sys.argv[1:]
    for use in uses:
        module, function = use.split(":")
        torch.manual_seed(0)
        _try(use, getattr(import_module(module), function)(), precision)


def _try(use: str, steps: Iterable[Step], precision: str) -> None:
    for step in steps:
        _tell(STARTED, use, step.operator)
        try:
            expected, found = step.run("fp32").detach().float(), step.run(precision).detach().float()
        except RuntimeError as error:  # what PyTorch raises for an operator that it lacks
            return _tell(FAILED, use, str(error).partition(". ")[0])
        if not float((found - expected).norm()) <= LARGEST_ERROR * float(expected.norm()):
            return _tell(FAILED, use, "its results are wrong")
    return _tell(PASSED, use, "")


def _tell(event: str, use: str, text: str) -> None:
    print(event, use, " ".join(text.split()), sep="\t", flush=True)


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", _DTYPES[precision], enabled=precision != "fp32")
