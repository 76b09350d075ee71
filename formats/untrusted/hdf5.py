"""Reading datasets of untrusted HDF5 files: their claims are compared with the stored data.

HDF5 can refer to data in other files, promise values that were never written, compress data, and share one text between
many rows. A feature shard does none of that, so it is refused.
"""

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .bounds import LIMIT_VARIABLE, max_input_bytes, max_metadata_bytes

_ROWS_AT_ONCE = 1024
_FILTERS = {h5py.h5z.FILTER_FLETCHER32}  # only checksums: other filters expand data


def open_dataset(file: h5py.File, name: str, dimensions: int) -> h5py.Dataset:
    """Return a dataset that is complete, uncompressed and in the file itself, without reading it.

    Raises ValueError if it is anything else; KeyError if it is missing.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(name)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name!r} is a link to another object")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.shape is None or len(data.shape) != dimensions:
        raise ValueError(f"{name!r} is not a dataset of {dimensions} dimensions")
    plan = data.id.get_create_plist()
    filters = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL or filters - _FILTERS:
        raise ValueError(f"{name!r} is stored in other files, or compressed")
    size = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
    if size > data.id.get_storage_size():
        raise ValueError(f"{name!r} promises {size:,} bytes, but {data.id.get_storage_size():,} are stored")
    if data.chunks is not None and int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize > max_input_bytes():
        raise ValueError(f"a chunk of {name!r} has more bytes than {LIMIT_VARIABLE} allows")
    return data


def read_attribute(file: h5py.File, name: str) -> Any:
    """Return an attribute that is one number or text; None if it is missing. Raises ValueError for other values."""
    if name not in file.attrs:
        return None
    if file.attrs.get_id(name).shape != ():
        raise ValueError(f"the attribute {name!r} is not one value")
    value = file.attrs[name]
    return value.item() if isinstance(value, np.generic) else value


def iter_rows(file: h5py.File, table: h5py.Dataset, texts: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a one-dimensional dataset with `texts` texts in each row, in bounded memory.

    Raises ValueError if a row has more text than `max_metadata_bytes` allows.
    """
    # No text is longer than the file without its datasets.
    stored = sum(data.id.get_storage_size() for data in file.values() if isinstance(data, h5py.Dataset))
    longest = texts * max(1, file.id.get_filesize() - stored)
    step = max(1, min(_ROWS_AT_ONCE, max_input_bytes() // longest))
    for start in range(0, len(table), step):
        rows: npt.NDArray[Any] = table[start : start + step]
        for row in rows.tolist():
            if sum(len(part) for part in row if isinstance(part, bytes)) > max_metadata_bytes():
                raise ValueError(f"a row of {table.name!r} has more text than {LIMIT_VARIABLE} allows")
            yield row
