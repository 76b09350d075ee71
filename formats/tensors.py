"""safetensors files with a JSON header of sctok; the same content gives the same bytes."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from sctok.formats.untrusted.bounds import max_json_bytes, parse_json

from .files import FormatError, atomic_path, check_format, damaged, foreign, hash_arrays, json_text

# safetensors writes metadata entries in random order, so sctok uses a single entry, a JSON object.
_METADATA_KEY = "sctok"
_HEADER_LIMIT = 100_000_000  # bytes, in the safetensors library; the limit of `check_header` is lower
# Names of types in NumPy and in safetensors, in the reverse of the order in which its library writes them.
_TYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    format_name: str,
    version: int,
    metadata: Mapping[str, Any],
) -> None:
    """Write arrays and JSON metadata to a safetensors file, atomically; equal content gives equal bytes.

    `format` and `format_version` are added to the metadata. Each array is looked up twice and written before the next,
    so that a mapping that makes its arrays on access needs memory for only one of them.
    Raises FormatError for metadata that is not JSON and types that safetensors does not have; DiskFullError.
    """
    try:
        text = json_text({**metadata, "format": format_name, "format_version": version})
        layout = _layout(tensors)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    header = json.dumps({"__metadata__": {_METADATA_KEY: text}, **layout}, separators=(",", ":"), ensure_ascii=False)
    head = header.encode()
    head += b" " * (-len(head) % 8)
    # Not the library's save_file, whose temporary file only this user may read.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in layout:
            array = np.ascontiguousarray(tensors[name])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def _layout(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """Return the header entries of arrays in the order of the safetensors library, which aligns all arrays."""
    found = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    for name, (dtype, _) in found.items():
        if dtype.name not in _TYPES:
            raise FormatError(f"{name} is {dtype}, which safetensors files cannot hold")
    order = list(_TYPES)
    layout: dict[str, dict[str, Any]] = {}
    start = 0
    for name, (dtype, shape) in sorted(found.items(), key=lambda each: (-order.index(each[1][0].name), each[0])):
        stop = start + dtype.itemsize * math.prod(shape)
        layout[name] = {"dtype": _TYPES[dtype.name], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    return layout


def read_tensors(
    path: str | os.PathLike[str], *, format_name: str, version: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the metadata (without format and version) that `save_tensors` wrote.

    Raises FileNotFoundError; FormatError for another format or version, or a damaged file.
    """
    metadata, _ = _read_our_header(path, format_name, version)
    return read_arrays(path), metadata


def map_tensors(
    path: str | os.PathLike[str], *, format_name: str, version: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return what `read_tensors` returns, with arrays that are read from the file when they are used.

    Writing to the arrays does not change the file. Raises as `read_tensors`.
    """
    metadata, shapes = _read_our_header(path, format_name, version)
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    content = np.memmap(path, np.uint8, "c") if any(map(math.prod, shapes.values())) else np.empty(0, np.uint8)
    kinds = {short: np.dtype(name).newbyteorder("<") for name, short in _TYPES.items()}
    arrays = {}
    for name, shape in shapes.items():
        start, stop = (8 + size + offset for offset in header[name]["data_offsets"])
        if header[name]["dtype"] not in kinds:
            raise damaged(path, f"{name} has the type {header[name]['dtype']}, which sctok does not write")
        arrays[name] = content[start:stop].view(kinds[header[name]["dtype"]]).reshape(shape)
    return arrays, metadata


def _read_our_header(
    path: str | os.PathLike[str], format_name: str, version: int
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    metadata, shapes = read_header(path)
    check_format(path, metadata, format_name, version)
    return {name: value for name, value in metadata.items() if name not in ("format", "format_version")}, shapes


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of any safetensors file. Raises FormatError if it is damaged."""
    try:
        check_header(path)
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, error) from None


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the metadata of any safetensors file, with sctok's unpacked, and the shape of each tensor.

    No tensor is read. Raises FileNotFoundError; FormatError if the file is damaged or has another format.
    """
    with Path(path).open("rb") as file:  # raises the error of the system for a missing or forbidden file
        if not begins_as_safetensors(file.read(16)):
            raise foreign(path)
    check_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            plain = dict(file.metadata() or {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        metadata = parse_json(plain.pop(_METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise damaged(path, f"not a whole safetensors file: {error}") from None
    if not isinstance(metadata, dict):
        raise damaged(path, "its metadata is not a JSON object")
    return {**plain, **metadata}, shapes


def check_header(path: str | os.PathLike[str]) -> None:
    """Raise FormatError if the header of a safetensors file is longer than the limit for JSON."""
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > max_json_bytes():
        raise damaged(path, f"its header promises {size:,} bytes, more than the limit of {max_json_bytes():,}")


def begins_as_safetensors(head: bytes) -> bool:
    """Return whether the first bytes of a file, 9 or more, begin a safetensors file, complete or not."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _HEADER_LIMIT


def encoder_hash(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the hash of an encoder that features and codebooks store: of its named tensors as float32."""
    return hash_arrays({name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return one phrase for each name that is missing, unknown, or has another shape than expected."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    both = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    return problems + [f"{name} has shape {tuple(found[name])} instead of {tuple(expected[name])}" for name in both]
