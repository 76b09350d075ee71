"""The protection of a feature shard: a hash of its rows and clip table, and checksums of the bytes of its file."""

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from .files import HASH_CHARACTERS, json_text

_MARK = b"sctokcrc"
_FOOTER = struct.Struct("<8sQQ")  # the mark, the number of chunks, the bytes of each
_CHECKSUM = struct.Struct("<I")
_SUPERBLOCK = struct.Struct("<8xB19xQ")  # of HDF5: its version and, from _VERSION on, the bytes of the HDF5 data
_VERSION = 2
_ENTRY_BYTES = 12  # offset and checksum of a chunk
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ClipRows:
    """One clip of a shard, with rows first_row … first_row + rows - 1; `samples` is its length at 16 kHz."""

    key: str
    first_row: int
    rows: int
    samples: int
    metadata: dict[str, Any] = field(default_factory=dict)


class ContentHash:
    """The running SHA-256 of the float16 rows of a shard in order, followed by its clip table."""

    def __init__(self) -> None:
        self._kept = hashlib.sha256()
        self._rows = self._kept.copy()

    def add(self, rows: npt.NDArray[np.float16]) -> None:
        """Add rows (n, width), little-endian float16."""
        self._rows.update(np.ascontiguousarray(rows).data)

    def keep(self) -> None:
        """Make the rows added so far a permanent part of the hash."""
        self._kept = self._rows.copy()

    def drop(self) -> None:
        """Forget the rows added since the last `keep`."""
        self._rows = self._kept.copy()

    def value(self, width: int, clips: Sequence[ClipRows]) -> str:
        """Return 16 hexadecimal characters for the rows, each of `width` values, and the clip table."""
        whole = self._rows.copy()
        table = [[clip.key, clip.first_row, clip.rows, clip.samples, clip.metadata] for clip in clips]
        whole.update(json_text([width, table]).encode("ascii"))
        return whole.hexdigest()[:HASH_CHARACTERS]


class ReadWrite(Protocol):
    """A seekable file that can be read and written."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class Seal:
    """The checksums of a shard: the offset of each chunk of rows in the file, and the CRC-32 of its bytes.

    The seal follows the HDF5 data, where HDF5 does not read: the offsets, the checksums, a mark, the number of chunks,
    the bytes of one chunk, and the CRC-32 of the whole file except the chunks and itself. So a checksum covers each
    byte of the file.
    """

    chunk_bytes: int
    offsets: npt.NDArray[np.uint64]
    checksums: npt.NDArray[np.uint32]

    def write(self, file: ReadWrite) -> None:
        """Append the seal to a complete file, which must be readable, too."""
        end = file.seek(0, os.SEEK_END)
        text = self.offsets.astype("<u8").tobytes() + self.checksums.astype("<u4").tobytes()
        text += _FOOTER.pack(_MARK, len(self.offsets), self.chunk_bytes)
        checksum = zlib.crc32(text, self._checksum_of_rest(file, end))
        file.seek(end)
        file.write(text + _CHECKSUM.pack(checksum))

    @classmethod
    def read(cls, path: Path) -> "Seal | None":
        """Return the seal of a shard; None if nothing follows the HDF5 data, as in shards of earlier versions.

        Raises ValueError if the file is truncated, or changed anywhere except in its rows.
        """
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _FOOTER.size - _CHECKSUM.size
            file.seek(0)
            version, hdf5_bytes = _SUPERBLOCK.unpack(file.read(_SUPERBLOCK.size))
            if end < 0 or version < _VERSION or hdf5_bytes == end + _FOOTER.size + _CHECKSUM.size:
                return None
            file.seek(end)
            footer, checksum = file.read(_FOOTER.size), file.read()
            mark, chunks, chunk_bytes = _FOOTER.unpack(footer)
            if mark != _MARK:
                raise ValueError("it is truncated, or its checksums are damaged")
            start = end - chunks * _ENTRY_BYTES
            if start < 0 or chunks * chunk_bytes > end:
                raise ValueError("its checksums do not match its size")
            file.seek(start)
            text = file.read(end - start)
            offsets = np.frombuffer(text, "<u8", chunks)
            seal = cls(chunk_bytes, offsets, np.frombuffer(text, "<u4", chunks, offsets.nbytes))
            if zlib.crc32(text + footer, seal._checksum_of_rest(file, start)) != _CHECKSUM.unpack(checksum)[0]:
                raise ValueError("its tables do not match their checksum")
        return seal

    def _checksum_of_rest(self, file: "BinaryIO | ReadWrite", end: int) -> int:
        """Return the CRC-32 of the bytes of a file before `end`, without the chunks."""
        checksum = place = 0
        for start in [*np.sort(self.offsets).tolist(), end]:
            file.seek(place)
            while place < start:
                part = file.read(min(start - place, _READ_BYTES))
                if not part:
                    return checksum
                checksum, place = zlib.crc32(part, checksum), place + len(part)
            place = start + self.chunk_bytes
        return checksum
