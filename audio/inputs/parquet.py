"""Reading untrusted Parquet files: the size of every page is checked before it is unpacked.

A page is unpacked as a whole, and no value is longer than its page or the page of its dictionary. So the headers of the
pages bound the memory of a row, whatever the rest of the file claims.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sctok.audio.errors import AudioError, os_reason
from sctok.formats.untrusted.bounds import LIMIT_VARIABLE, max_input_bytes

_BUFFER_BYTES = 1 << 20  # read from a column at once; the default is the whole column
_HEADER_BYTES = (1 << 10, 1 << 16, 1 << 21)  # tried in this order
_BATCH_PARTS = 8  # a batch of several rows, which is copied several times, takes at most 1/8 of the limit
_LEVEL_BYTES = 16  # for each value in a list: its levels, its offset and its validity
_BYTE, _DOUBLE, _BINARY, _STRUCT = 3, 7, 8, 12  # types of fields; page headers contain no lists and maps
_DEEPEST_STRUCT = 8
_UNPACKED, _PACKED = 2, 3  # fields of a page header
_COUNTS = (5, 7, 8)  # structs of a page header whose first field is a number of values


def open_table(table: Path) -> Any:
    """Open a Parquet file for reading in bounded memory. Raises AudioError if it is not one."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(table, buffer_size=_BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise AudioError(table, f"is not a readable Parquet file ({error})") from error
    except OSError as error:
        raise AudioError(table, os_reason(error)) from error


def iter_group(table: Path, file: Any, group: int, columns: Sequence[str], most_rows: int) -> Iterator[Any]:
    """Return the batches of a row group: `most_rows` rows each, or fewer if these could exceed the memory limit.

    columns: dotted names. Raises AudioError, before anything is unpacked, if a single row could exceed it.
    """
    with table.open("rb") as raw:
        largest = sum(_largest_row(table, raw, file, group, column) for column in columns)
    rows = max(1, min(most_rows, max_input_bytes() // (_BATCH_PARTS * max(1, largest))))
    return file.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False)


def _largest_row(table: Path, raw: BinaryIO, file: Any, group: int, column: str) -> int:
    """Return the maximum bytes of one row of a column, summed over the leaves of the column."""
    metadata, schema = file.metadata.row_group(group), file.schema
    total = 0
    for index in range(metadata.num_columns):
        name = schema.column(index).path
        if name != column and not name.startswith(f"{column}."):
            continue
        largest = whole = 0
        try:
            for unpacked, values in _pages(raw, metadata.column(index)):
                largest = max(largest, unpacked)
                whole += unpacked + _LEVEL_BYTES * values
        except (ValueError, OverflowError) as error:
            raise AudioError(table, f"has damaged pages in its column {name!r} ({error})") from error
        # One row of lists may hold all values of the group.
        total += whole if schema.column(index).max_repetition_level else largest
    if total > max_input_bytes():
        raise AudioError(
            table,
            f"may unpack to {total:,} bytes in a row of row group {group}, column {column!r}, more than the "
            f"{max_input_bytes():,} that {LIMIT_VARIABLE} allows; raise it, or remove the column",
        )
    return total


def _pages(raw: BinaryIO, chunk: Any) -> Iterator[tuple[int, int]]:
    """Yield (unpacked bytes, values) of each page of a column chunk. Raises ValueError for damaged headers."""
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    while place < end:
        header, length = _page_header(raw, place)
        unpacked, packed = header.get(_UNPACKED), header.get(_PACKED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or min(unpacked, packed) < 0:
            raise ValueError(f"a page at byte {place} has no size")
        counts = [part.get(1, 0) for name in _COUNTS if isinstance(part := header.get(name), dict)]
        yield unpacked, max((count for count in counts if isinstance(count, int)), default=0)
        place += length + packed


def _page_header(raw: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    for size in _HEADER_BYTES:
        raw.seek(place)
        data = raw.read(size)
        try:
            return _Compact(data).read_struct()
        except IndexError:
            if len(data) < size:
                break
    raise ValueError(f"the header of a page at byte {place} does not end")


class _Compact:
    """A reader of Thrift's compact protocol that keeps numbers and structs and skips other values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def read_struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """Return the fields by number, and where the struct ends. Raises IndexError if the data ends first."""
        if depth > _DEEPEST_STRUCT:
            raise ValueError("a page header is nested too deep")
        fields: dict[int, Any] = {}
        name = 0
        while kind := self._byte():
            name = name + (kind >> 4) if kind >> 4 else self._number()
            fields[name] = self._value(kind & 15, depth)
        return fields, self._place

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._number()
        if kind == _STRUCT:
            return self.read_struct(depth + 1)[0]
        if kind not in (_BYTE, _DOUBLE, _BINARY):
            raise ValueError(f"a page header has a field of type {kind}")
        self._skip(self._varint() if kind == _BINARY else 1 if kind == _BYTE else 8)
        return None

    def _skip(self, count: int) -> None:
        self._place += count
        if self._place > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page header has a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
