"""The growing dataset of patch embeddings inside a feature shard that is being written."""

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from .feature_hashes import Seal
from .stacking import PATCHES_PER_COLUMN

_CHUNK_BYTES = 1 << 20
_HDF5_VERSION = ("v110", "v110")  # fixed, so that the bytes do not depend on the library's default


def chunk_rows(width: int) -> int:
    """Return the rows of one HDF5 chunk: 8 times a power of two, at most 1 MiB of float16 where 8 rows fit in it."""
    rows = PATCHES_PER_COLUMN
    while 2 * rows * width * 2 <= _CHUNK_BYTES:
        rows *= 2
    return rows


class _ForgivingFile:
    """A file whose failed writes are remembered rather than told to HDF5, which crashes if it cannot close a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.failure: OSError | None = None
        self.seek, self.tell = self._file.seek, self._file.tell
        self.read, self.readinto = self._file.read, self._file.readinto

    def write(self, data: memoryview | bytes) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self.failure = error
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise what a write failed with, if any did."""
        if self.failure is not None:
            raise self.failure


class RowFile:
    """The growing `features` dataset of a shard in a file of its own, written chunk by whole chunk in order.

    Only whole chunks reach HDF5, and directly, so that its layout does not depend on how rows were split over calls.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._chunk = np.zeros((chunk_rows(width), width), "<f2")
        self._checksums: list[int] = []  # of the chunks before it
        self._filled = 0  # rows of `_chunk` in use
        self._chunks = 0  # chunks before it
        self._written = 0  # chunks that the file has room for: more than `_chunks` after rows were dropped
        self._open(path)

    def _open(self, path: Path) -> None:
        size, width = self._chunk.shape
        self._raw = _ForgivingFile(path)
        self._file = h5py.File(self._raw, "w", libver=_HDF5_VERSION)
        self._data = self._file.create_dataset(
            "features", (0, width), "<f2", maxshape=(None, width), chunks=(size, width), track_times=False
        )

    @property
    def rows(self) -> int:
        return self._chunks * len(self._chunk) + self._filled

    def append(self, rows: npt.NDArray[np.float16]) -> None:
        size = len(self._chunk)
        while len(rows):
            part = rows[: size - self._filled]
            self._chunk[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows = rows[len(part) :]
            if self._filled == size:
                self._flush()

    def truncate(self, rows: int) -> None:
        chunks, filled = divmod(rows, len(self._chunk))
        if chunks < self._chunks:
            self._chunk[:] = self._data[chunks * len(self._chunk) : (chunks + 1) * len(self._chunk)]
        self._chunks, self._filled = chunks, filled
        del self._checksums[chunks:]

    def _flush(self) -> None:
        self._chunk[self._filled :] = 0
        size, width = self._chunk.shape
        self._written = max(self._written, self._chunks + 1)
        self._data.resize((self._written * size, width))
        self._data.id.write_direct_chunk((self._chunks * size, 0), self._chunk)
        self._raw.check()
        self._checksums.append(zlib.crc32(self._chunk.data))
        self._chunks += 1
        self._filled = 0

    def close(self, write_tables: Callable[[h5py.File], None]) -> None:
        """Write the last chunk, cut the dataset to its rows, call write_tables(file), and seal and close the file."""
        rows = self.rows
        if self._filled:
            self._flush()
        if self._written > self._chunks:
            self._rewrite(self._chunks)
        self._data.resize((rows, self._chunk.shape[1]))
        write_tables(self._file)
        offsets = [self._data.id.get_chunk_info(index).byte_offset for index in range(self._chunks)]
        self._file.close()
        self._raw.check()
        checksums = np.array(self._checksums, np.uint32)
        Seal(self._chunk.nbytes, np.array(offsets, np.uint64), checksums).write(self._raw)
        self._raw.close()
        self._raw.check()

    def _rewrite(self, chunks: int) -> None:
        # Dropped rows at the end of the file leave holes; only a fresh copy has the bytes of a file without them.
        size = len(self._chunk)
        old_path = self._path.with_name(f"dropped-{self._path.name}")
        self._close()
        self._raw.check()
        self._path.replace(old_path)
        try:
            self._open(self._path)
            self._chunks = self._written = 0
            self._checksums = []
            with h5py.File(old_path, "r", locking=False) as old:
                for index in range(chunks):
                    self._chunk[:] = old["features"][index * size : (index + 1) * size]
                    self._filled = size
                    self._flush()
        finally:
            old_path.unlink()

    def abandon(self) -> None:
        """Close the file, finished or not."""
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._raw.close()
