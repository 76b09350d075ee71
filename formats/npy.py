"""`.npy` arrays: reading those of untrusted files, and writing those whose length is known only at the end."""

import math
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(file: BinaryIO, size: int) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file of `size` bytes, open at its beginning, without running code from it.

    Raises ValueError for another format or version, for Python objects, and for a header that promises more values
    than the file can hold.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of .npy is unknown")
    shape, by_columns, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("its values are Python objects")
    count, left = math.prod(shape), size - file.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize > left:
        raise ValueError(f"its header promises {dtype} {shape}, but {left:,} bytes follow")
    data = bytearray(file.read(count * dtype.itemsize))
    if len(data) < count * dtype.itemsize:
        raise EOFError("it ends early")
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if by_columns else "C")


class GrowingNpy:
    """Append rows to an array in an open, seekable file. The header is valid only after `finish`."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.generic], row_shape: tuple[int, ...] = ()) -> None:
        self._file = file
        self._dtype = dtype.newbyteorder("<")
        self._row_shape = row_shape
        self.rows = 0
        self._write_header()
        self._header_bytes = file.tell()

    def append(self, rows: npt.NDArray[np.int64]) -> None:
        """Append rows (n, *row_shape), whose values must fit the type."""
        assert rows.shape[1:] == self._row_shape
        self._file.write(rows.astype(self._dtype).tobytes())
        self.rows += len(rows)

    def finish(self) -> None:
        """Write the header."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._header_bytes  # NumPy leaves room for any length
        self._file.seek(end)

    def _write_header(self) -> None:
        shape = (self.rows, *self._row_shape)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
