"""Audio whose bytes lie in the rows of Parquet files, as Hugging Face `datasets` stores its audio column."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AudioError, os_reason
from .manifests import plain

TABLE_SUFFIX = ".parquet"
_BYTES, _PATH = "bytes", "path"  # the fields of such a column
_LISTED_ROWS, _READ_ROWS = 1024, 16
_CHANGED = "is not there: the file has changed since it was listed"


def audio_column(table: Path, path_column: str) -> str | None:
    """Return the column of a Parquet file that holds audio, None for a file that is no such table or has paths.

    Raises AudioError if it is not a readable Parquet file.
    """
    import pyarrow.types

    if table.suffix.lower() != TABLE_SUFFIX:
        return None
    schema = _open_table(table).schema_arrow
    for field in schema if path_column not in schema.names else ():
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index(_BYTES) >= 0:
            return str(field.name)
    return None


def list_rows(table: Path, column: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield (row number from 0, file name that the row gives its audio or "", other columns) without reading audio."""
    file = _open_table(table)
    others = [name for name in file.schema_arrow.names if name != column]
    named = file.schema_arrow.field(column).type.get_field_index(_PATH) >= 0
    row = 0
    for batch in file.iter_batches(_LISTED_ROWS, columns=[*others, *([f"{column}.{_PATH}"] if named else [])]):
        for values in batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows:
            inside = (values.pop(column, None) or {}).get(_PATH)
            yield row, inside if isinstance(inside, str) else "", plain(values)
            row += 1


def read_row(table: str, row: int) -> bytes:
    """Return the audio file in a row of a table; quick in the order of rows. Raises AudioError naming table and row."""
    reader: _RowReader | None = getattr(_last, "reader", None)
    if reader is None or reader.table != table or row < reader.first or reader.stamp != _stamp(table):
        reader = _last.reader = _RowReader(table)
    try:
        return reader.read(row)
    except AudioError:
        _last.reader = None
        raise


class _RowReader:
    """Reads rows of a table in ascending order; holds a few of them at a time."""

    def __init__(self, table: str) -> None:
        self.table, self.stamp = table, _stamp(table)
        self.first = self._end = 0  # rows of the batch in hand
        self._file = _open_table(Path(table))
        self._column = audio_column(Path(table), "") or ""
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._group = self._group_end = 0  # the next row group, and where it begins

    def read(self, row: int) -> bytes:
        import pyarrow

        try:
            while row >= self._end:
                self._advance(row)
        except (OSError, pyarrow.ArrowException) as error:
            raise AudioError(f"{self.table}: row {row}", f"cannot be read: {' '.join(str(error).split())}") from error
        value = self._batch.column(0)[row - self.first].as_py()
        found = (value or {}).get(_BYTES)
        if not isinstance(found, bytes):
            raise AudioError(f"{self.table}: row {row}", "holds no bytes of audio; embed the files in the dataset")
        return found

    def _advance(self, row: int) -> None:
        if row >= self._group_end:
            self._open_group(row)
        self._batch = next(self._batches, None)
        if self._batch is None:
            raise AudioError(f"{self.table}: row {row}", _CHANGED)
        self.first, self._end = self._end, self._end + self._batch.num_rows

    def _open_group(self, row: int) -> None:
        """Begin to read the row group that holds a row."""
        while self._group < self._file.num_row_groups:
            self._end, group = self._group_end, self._group
            self._group_end += self._file.metadata.row_group(group).num_rows
            self._group += 1
            if row < self._group_end:
                columns = [f"{self._column}.{_BYTES}"]
                self._batches = self._file.iter_batches(_READ_ROWS, row_groups=[group], columns=columns)
                return
        raise AudioError(f"{self.table}: row {row}", _CHANGED)


def _stamp(table: str) -> tuple[int, int, int] | None:
    """Return what tells a file from one that took its place; None if there is none."""
    try:
        status = os.stat(table)  # noqa: PTH116
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


_last = threading.local()  # the reader that each thread has used last


def _open_table(table: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(table)
    except pyarrow.ArrowInvalid as error:
        raise AudioError(table, f"is not a readable Parquet file ({error})") from error
    except OSError as error:
        raise AudioError(table, os_reason(error)) from error
