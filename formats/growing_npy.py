"""A `.npy` file that grows row by row, for arrays whose length is known at the end alone."""

from typing import BinaryIO

import numpy as np
import numpy.typing as npt


class GrowingNpy:
    """Appends rows to an array in an open, seekable file. The header is right after `finish`, and not before."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.generic], row_shape: tuple[int, ...] = ()) -> None:
        self._file = file
        self._dtype = dtype.newbyteorder("<")
        self._row_shape = row_shape
        self.rows = 0
        self._write_header()
        self._header_bytes = file.tell()

    def append(self, rows: npt.NDArray[np.int64]) -> None:
        """Append rows (n, *row_shape) whose values the type holds."""
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
