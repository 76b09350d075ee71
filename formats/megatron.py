"""Writing Megatron-LM's indexed dataset: token ids (`.bin`) and an index of the documents (`.idx`).

The index, little-endian: the magic `MMIDIDX` and two zero bytes; version 1 (uint64); the code of the type of the ids
(uint8); the number of sequences n (uint64); the number of document boundaries (uint64); n lengths in ids (int32); n
offsets in bytes (int64); the boundaries (int64): the first sequence of each document, and n. Here every document is one
sequence.
"""

import struct
from array import array
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}

_CHUNK = 1 << 16  # entries of the index written at once


def megatron_dtype(vocabulary_size: int) -> np.dtype[np.generic]:
    """Return the smallest type of token ids in Megatron-LM that holds all ids below `vocabulary_size`."""
    name = "uint16" if vocabulary_size <= 1 << 16 else "int32" if vocabulary_size <= 1 << 31 else "int64"
    return np.dtype(name).newbyteorder("<")


class MegatronWriter:
    """Write documents to the open file `data` (`.bin`) and, at the end, the `index` (`.idx`).

    Memory: 4 bytes per document.
    """

    def __init__(self, data: BinaryIO, index: BinaryIO, dtype: np.dtype[np.generic]) -> None:
        self._data, self._index = data, index
        self._dtype = dtype
        self._sizes = array("i")

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Add a document: ids (n,) in the range of the type; n may be 0. Raises ValueError for 2**31 or more ids."""
        if len(ids) >= 1 << 31:
            raise ValueError(f"a document of {len(ids)} ids is too long for Megatron's index, which counts to 2**31")
        self._data.write(ids.astype(self._dtype).tobytes())
        self._sizes.append(len(ids))

    def finish(self) -> None:
        """Write the index."""
        sizes = np.array(self._sizes, np.int32)
        code = TYPE_CODES[self._dtype.name]
        self._index.write(MAGIC + struct.pack("<QBQQ", VERSION, code, len(sizes), len(sizes) + 1))
        starts = range(0, len(sizes), _CHUNK)
        for start in starts:
            self._index.write(sizes[start : start + _CHUNK].astype("<i4").tobytes())
        place = 0
        for start in starts:
            ends = place + np.cumsum(sizes[start : start + _CHUNK], dtype=np.int64) * self._dtype.itemsize
            self._index.write(np.concatenate([[place], ends[:-1]]).astype("<i8").tobytes())
            place = int(ends[-1])
        for start in range(0, len(sizes) + 1, _CHUNK):
            self._index.write(np.arange(start, min(start + _CHUNK, len(sizes) + 1), dtype="<i8").tobytes())
