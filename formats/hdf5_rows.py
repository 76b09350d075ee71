"""Writing the growing HDF5 dataset of patch embeddings in a feature shard."""

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
    """Return the rows of one HDF5 chunk: 8 times a power of two, at most 1 MiB of float16 if 8 rows fit."""
    rows = PATCHES_PER_COLUMN
    while 2 * rows * width * 2 <= _CHUNK_BYTES:
        rows *= 2
    return rows


class _ForgivingFile:
    """A file that stores the error of a failed write and hides it from HDF5, which would crash when it closes."""

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
        """Do nothing: the file is unbuffered."""

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise the error of the first failed write, if any."""
        if self.failure is not None:
            raise self.failure


class RowFile:
    """The growing `features` dataset of a shard, written to a file in whole chunks.

    Only whole chunks are passed to HDF5, so that the file does not depend on how the calls split the rows.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._chunk = np.zeros((chunk_rows(width), width), "<f2")
        self._checksums: list[int] = []  # of the written chunks
        self._filled = 0  # rows of `_chunk` in use
        self._chunks = 0  # written chunks before `_chunk`
        self._written = 0  # chunks in the file: more than `_chunks` after rows were discarded
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
        """Write the last chunk, trim the dataset to its rows, call write_tables(file), then seal and close the file."""
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
        # Discarded rows leave holes in the file; only a new copy has the bytes of a file that never had them.
        size = len(self._chunk)
        old_path = self._path.with_name(f"dropped-{self._path.name}")
        self.abandon()
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
        self._file.close()
        self._raw.close()
