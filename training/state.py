"""The state of a training as named arrays: modules, optimisers, and what does not fit when it is read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctok.formats.files import json_text
from sctok.formats.tensors import mismatches

_OPTIMIZER = "optimizer:"


def state_tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, NDArray[Any]]:
    """Return `module/name` and `optimizer:name/index/field` arrays of all state, without copies on a CPU."""
    tensors = {f"{name}/{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{name}/{index}/{key}": torch.as_tensor(v) for key, v in values.items()}
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def load_state(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    count: int | None = None,
) -> None:
    """Put the arrays that `state_tensors` returned back where they came from.

    count: how many there were. Raises ValueError naming `path` and every array that is missing, unknown or misshapen;
    nothing has been changed then.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, module in modules.items():
        expected |= {f"{name}/{key}": tuple(value.shape) for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        expected |= _optimizer_shapes(f"{_OPTIMIZER}{name}/", optimizer, arrays)
    # Single values are stored with one dimension.
    arrays = {key: a.reshape(()) if expected.get(key) == () and a.size == 1 else a for key, a in arrays.items()}
    problems = mismatches(expected, {name: array.shape for name, array in arrays.items()})
    if not problems and count not in (None, len(arrays)):
        problems = [f"{count} tensors were saved, {len(arrays)} are there"]
    if problems:
        raise ValueError(f"{path} does not fit this training: {'; '.join(problems)}")
    for name, module in modules.items():
        module.load_state_dict({key: torch.as_tensor(value) for key, value in _below(arrays, f"{name}/").items()})
    for name, optimizer in optimizers.items():
        _load_optimizer(optimizer, _below(arrays, f"{_OPTIMIZER}{name}/"))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_shapes(
    prefix: str, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of AdamW's state for the parameters that have any: those that had a gradient."""
    seen = {name.removeprefix(prefix).split("/")[0] for name in arrays if name.startswith(prefix)}
    shapes: dict[str, tuple[int, ...]] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        if str(index) in seen:
            shape = tuple(parameter.shape)
            shapes |= {f"{prefix}{index}/{field}": shape for field in ("exp_avg", "exp_avg_sq")}
            shapes[f"{prefix}{index}/step"] = ()
    return shapes


def _load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]) -> None:
    parameters, stored = _parameters(optimizer), dict[int, dict[str, Tensor]]()
    for name, array in arrays.items():
        index, field = name.split("/")
        value, parameter = torch.as_tensor(np.array(array)), parameters[int(index)]
        if field != "step":
            # In the memory format of the parameter, lest sums be rounded otherwise than without the interruption.
            value = torch.empty_like(parameter).copy_(value)
        stored.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored})


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def plain_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are read back from a file: tuples are lists. Raises FormatError for other types."""
    plain: dict[str, Any] = json.loads(json_text(settings))
    return plain


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat_settings(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): each for key, each in inner.items()}
    return flat
