"""Reading `.npy` arrays whose header may promise anything: what it promises is compared with what there is first."""

import math
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(file: BinaryIO, size: int) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file of `size` bytes, open at its beginning; no code in it is run.

    Raises ValueError for another format or version, Python objects, and values that would not fit into the file.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of .npy is not known")
    shape, by_columns, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("its values are Python objects")
    count, left = math.prod(shape), size - file.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize > left:
        raise ValueError(f"its header promises {dtype} {shape}, and {left:,} bytes follow")
    data = bytearray(file.read(count * dtype.itemsize))
    if len(data) < count * dtype.itemsize:
        raise EOFError("it ends early")
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if by_columns else "C")
