"""How a step changes the weights: learning rate, mixed precision, averaged and clipped gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sctok.runtime.devices import DTYPES, Use, require_precision
from sctok.runtime.distributed import ALONE, Group, average_gradients

from .loop import TrainingTask


def warm_up_and_decay(step: int, steps: int, warm_up: int, decay_share: float) -> float:
    """Return the factor of a step's learning rate: linear warm-up, constant, linear decay over the last share."""
    warm = min(1.0, (step + 1) / max(1, warm_up))
    return min(warm, (steps - step) / (decay_share * steps)) if decay_share else warm


def check_training(config: Any, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """Raise ValueError if a named number of a configuration, its `decay_share` or its `precision` is out of range."""
    for name in positive:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} {getattr(config, name)} is not positive")
    for name in not_negative:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} {getattr(config, name)} must not be negative")
    if not 0 <= config.decay_share <= 1:
        raise ValueError(f"decay_share {config.decay_share} must lie between 0 and 1")
    precision = getattr(config, "precision", "fp32")
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(DTYPES)}")


def descend(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], rate: float, clip: float, group: Group = ALONE
) -> None:
    """Take one step along the gradients of the optimizer's parameters that require one, averaged over the ranks.

    The gradients are clipped to the norm `clip`. If they are not finite, the step is skipped.
    """
    parameters = [p for options in optimizer.param_groups for p in options["params"] if p.requires_grad]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    average_gradients(parameters, group)
    _set_rate(optimizer, rate)
    if math.isfinite(float(nn.utils.clip_grad_norm_(parameters, clip))):
        optimizer.step()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for options in optimizer.param_groups:
        options["lr"] = rate


class MixedPrecisionTask(TrainingTask):
    """A task that computes in fp32, bf16 or fp16. In fp16 the loss is scaled; the scale belongs to the checkpoint."""

    def __init__(self, precision: str, device: torch.device, use: Use, group: Group) -> None:
        """Raise ValueError if the device cannot do `use` in this precision."""
        require_precision(precision, device, use)
        self.device, self.group = device, group
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._dtype = DTYPES[precision]

    def extra_state(self) -> dict[str, Any]:
        """See TrainingTask."""
        return {"scaler": self.scaler.state_dict()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See TrainingTask."""
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def autocast(self) -> torch.autocast:
        """Return the context in which the forward pass runs."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32)

    def descend_scaled(self, optimizer: torch.optim.Optimizer, model: nn.Module, rate: float, clip: float) -> None:
        """Take one step along the scaled gradients of `model`, averaged and clipped as in `descend`."""
        _set_rate(optimizer, rate)
        # Averaged before the check for overflow: if one rank's gradient overflows, all ranks skip the step.
        average_gradients(model.parameters(), self.group)
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        if self.scaler.is_enabled() or bool(torch.isfinite(norm)):
            self.scaler.step(optimizer)
        self.scaler.update()
