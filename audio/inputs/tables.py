"""Audio whose bytes lie in the rows of Parquet files, as Hugging Face `datasets` stores its audio column."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sctok.audio.errors import AudioError
from sctok.formats.untrusted.bounds import json_value, size_problem

from .parquet import iter_group, open_table

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
    schema = open_table(table).schema_arrow
    for field in schema if path_column not in schema.names else ():
        if pyarrow.types.is_struct(field.type) and field.type.get_field_index(_BYTES) >= 0:
            return str(field.name)
    return None


def list_rows(table: Path, column: str) -> Iterator[tuple[int, str, dict[str, Any] | str]]:
    """Yield (row number from 0, file name that the row gives its audio or "", other columns) without reading audio.

    A row whose other columns are too long comes with its fault, a str, in their place. Raises AudioError if other
    columns may unpack to more than is allowed, or cannot be read.
    """
    import pyarrow

    file = open_table(table)
    others = [name for name in file.schema_arrow.names if name != column]
    named = file.schema_arrow.field(column).type.get_field_index(_PATH) >= 0
    columns = [*others, *([f"{column}.{_PATH}"] if named else [])]
    row = 0
    try:
        for group in range(file.num_row_groups):
            for batch in iter_group(table, file, group, columns, _LISTED_ROWS):
                for values in batch.to_pylist() if batch.num_columns else ({} for _ in range(batch.num_rows)):
                    inside = (values.pop(column, None) or {}).get(_PATH)
                    yield row, inside if isinstance(inside, str) else "", size_problem(values) or json_value(values)
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise AudioError(table, f"cannot be read from row {row} on: {error}") from error


def read_row(table: str, row: int) -> bytes:
    """Return the audio file in a row of a table; quick in the order of rows. Raises AudioError naming table and row."""
    reader: _RowReader | None = getattr(_last, "reader", None)
    if reader is None or reader.table != table or row < reader.first or reader.stamp != _stamp(table):
        reader = _last.reader = _RowReader(table)
    try:
        return reader.read(row)
    except AudioError:
        if reader.problem is None:
            _last.reader = None
        raise


class _RowReader:
    """Reads rows of a table in ascending order; holds a few of them at a time.

    problem: why the rows of the row group in hand are not read.
    """

    def __init__(self, table: str) -> None:
        self.table, self.stamp = table, _stamp(table)
        self.first = self._end = 0  # rows of the batch in hand
        self.problem: str | None = None
        self._file = open_table(Path(table))
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
            raise AudioError(f"{self.table}: row {row}", f"cannot be read: {error}") from error
        if self.problem is not None:
            raise AudioError(f"{self.table}: row {row}", self.problem)
        value = self._batch.column(0)[row - self.first].as_py()
        found = (value or {}).get(_BYTES)
        if not isinstance(found, bytes):
            raise AudioError(f"{self.table}: row {row}", "holds no bytes of audio; embed the files in the dataset")
        return found

    def _advance(self, row: int) -> None:
        if row >= self._group_end:
            self._open_group(row)
        if self.problem is not None:
            self.first, self._end = self._end, self._group_end
            return
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
                self.problem = None
                self._batch = None
                try:
                    columns = [f"{self._column}.{_BYTES}"]
                    self._batches = iter_group(Path(self.table), self._file, group, columns, _READ_ROWS)
                except AudioError as error:
                    self.problem = error.args[1]
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
