"""Trainings with replayed steps: a CPU imitates what a CUDA graph does to tensors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .trainings import make_task, state_of, write_audio


def captured(function: Callable[..., Any], examples: Sequence[Tensor]) -> Callable[..., Any]:
    """Return a function that works on its own copies of tensors, and overwrites its result in the next call."""
    inputs = [example.clone() for example in examples]
    for _ in range(3):
        made = function(*inputs)

    def replay(*tensors: Tensor) -> Any:
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        for mine, given in zip(tree_leaves(made), tree_leaves(function(*inputs)), strict=True):
            mine.copy_(given)
        return made

    return replay


@pytest.mark.parametrize("kind", ["codec", "grid", "vocoder"])
def test_replayed_steps_equal_ordinary_steps(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_audio(tmp_path)
    plain, replaying = (make_task(kind, inputs, tmp_path / name) for name in "ab")
    expected = [plain.train_step(step) for step in range(4)]
    for module in ("codec", "vocoder"):
        monkeypatch.setattr(f"sctok.training.{module}.captured_on_gpus", captured)
    assert [replaying.train_step(step) for step in range(4)] == expected
    found = state_of(replaying)
    for name, value in state_of(plain).items():
        assert torch.equal(found[name], value), name
