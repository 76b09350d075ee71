"""The state of modules and optimizers as named arrays."""

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
    """Return the state as arrays `module/name` and `optimizer:name/index/field`, without copies on a CPU."""
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
    """Restore the arrays that `state_tensors` returned.

    count: number of arrays saved. Raises ValueError naming `path` and every array that is missing, unknown or of
    another shape, before anything is changed.
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
        problems = [f"{count} tensors were saved, but the file has {len(arrays)}"]
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
    """Return the names and shapes of AdamW's state for the parameters that `arrays` has state of."""
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
            # In the memory format of the parameter: in another one, sums would be rounded differently.
            value = torch.empty_like(parameter).copy_(value)
        stored.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored})


def _below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def plain_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON stores them: tuples become lists. Raises FormatError for types that JSON lacks."""
    plain: dict[str, Any] = json.loads(json_text(settings))
    return plain


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat_settings(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): each for key, each in inner.items()}
    return flat
