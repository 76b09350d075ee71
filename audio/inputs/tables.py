"""Audio stored in the rows of Parquet files, as in the audio columns of Hugging Face `datasets`."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sctok.audio.errors import AudioError
from sctok.formats.untrusted.bounds import json_value, size_problem

from .parquet import iter_group, open_table

TABLE_SUFFIX = ".parquet"
_BYTES, _PATH = "bytes", "path"  # the fields of an audio column
_LISTED_ROWS, _READ_ROWS = 1024, 16
_CHANGED = "is missing: the file has changed since it was listed"


def audio_column(table: Path, path_column: str) -> str | None:
    """Return the audio column of a Parquet file; None for other files, and for tables with a column of paths.

    Raises AudioError if a `.parquet` file cannot be read.
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
    """Yield (row number from 0, file name of the audio or "", other columns) without reading the audio.

    If the other columns are too long, a str that says so takes their place. Raises AudioError if they could unpack to
    more than is allowed, or cannot be read.
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
    """Return the audio file in a row of a table; ascending rows are fast. Raises AudioError if it cannot be read."""
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
    """Read rows of a table in ascending order, a few of them at a time.

    problem: why the rows of the current row group cannot be read.
    """

    def __init__(self, table: str) -> None:
        self.table, self.stamp = table, _stamp(table)
        self.first = self._end = self._row = 0  # rows of the current batch, and the wanted row
        self.problem: str | None = None
        self._batch: Any = None
        self._batches = self._read_batches()

    def read(self, row: int) -> bytes:
        import pyarrow

        self._row = row
        try:
            while row >= self._end:
                self._batch, self.first, self._end = next(self._batches)
        except StopIteration:
            raise AudioError(f"{self.table}: row {row}", _CHANGED) from None
        except (OSError, pyarrow.ArrowException) as error:
            raise AudioError(f"{self.table}: row {row}", f"cannot be read: {error}") from error
        if self.problem is not None:
            raise AudioError(f"{self.table}: row {row}", self.problem)
        value = self._batch.column(0)[row - self.first].as_py()
        found = (value or {}).get(_BYTES)
        if not isinstance(found, bytes):
            raise AudioError(f"{self.table}: row {row}", "holds no audio; embed the files in the dataset")
        return found

    def _read_batches(self) -> Iterator[tuple[Any, int, int]]:
        """Yield (batch, its first row, the row after its last). Row groups before the wanted row are skipped."""
        table = Path(self.table)
        file, columns = open_table(table), [f"{audio_column(table, '') or ''}.{_BYTES}"]
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if self._row >= end:
                continue
            self.problem = None
            try:
                batches = iter_group(table, file, group, columns, _READ_ROWS)
            except AudioError as error:
                self.problem = error.args[1]
                yield None, start, end
                continue
            for batch in batches:
                yield batch, start, start + batch.num_rows
                start += batch.num_rows
            if self._row < end:
                return


def _stamp(table: str) -> tuple[int, int, int] | None:
    """Return values that change if a file is replaced; None if it is missing."""
    try:
        status = os.stat(table)  # noqa: PTH116
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


_last = threading.local()  # the last reader of each thread
