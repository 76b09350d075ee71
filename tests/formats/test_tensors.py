"""Our writer of safetensors files compared with that of the library."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sctok.formats.files import FormatError, json_text
from sctok.formats.tensors import read_tensors, save_tensors

TYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "float16",
    "int32",
    "uint32",
    "float32",
    "float64",
    "int64",
    "uint64",
)


def arrays() -> dict[str, Any]:
    made: dict[str, Any] = {f'é"{name}': np.arange(6).reshape(2, 3).astype(name) for name in TYPES}
    return made | {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(True), "turned": np.eye(3, 2).T}


def test_bytes_equal_those_of_the_library(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", arrays(), format_name="f", version=1, metadata={"key": 'ü"'})
    text = json_text({"key": 'ü"', "format": "f", "format_version": 1})
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays().items()}
    assert (tmp_path / "x").read_bytes() == safetensors.numpy.save(contiguous, {"sctok": text})


def test_arrays_may_be_made_on_access(tmp_path: Path) -> None:
    class Made(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return np.full(3, int(name))

        def __iter__(self) -> Iterator[str]:
            return iter("012")

        def __len__(self) -> int:
            return 3

    save_tensors(tmp_path / "x", Made(), format_name="f", version=1, metadata={})
    found, _ = read_tensors(tmp_path / "x", format_name="f", version=1)
    assert {name: array.tolist() for name, array in found.items()} == {"0": [0] * 3, "1": [1] * 3, "2": [2] * 3}


def test_types_without_a_name_in_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x: w is complex64"):
        save_tensors(tmp_path / "x", {"w": np.zeros(2, np.complex64)}, format_name="f", version=1, metadata={})
    assert not list(tmp_path.iterdir())
