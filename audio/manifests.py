"""Reading the rows of a manifest (CSV, TSV, JSONL or Parquet) one by one."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AudioError, os_reason

MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))

_BATCH_ROWS = 1024
_MAX_NESTING = 100  # far below the depth at which copying or writing a value would fail


def read_rows(path: Path, path_column: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (row number from 1, row) of a manifest; a row that cannot be understood comes as its fault, a str.

    Values are what JSON holds: others become text, and floats that are not finite None. Raises AudioError if the
    manifest cannot be read or has no column `path_column`.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows = _parquet_rows(path, path_column)
        elif suffix in (".csv", ".tsv"):
            rows = _csv_rows(path, path_column, "\t" if suffix == ".tsv" else ",")
        else:
            rows = _json_rows(path, path_column)
        yield from enumerate(rows, start=1)
    except UnicodeDecodeError as error:
        raise AudioError(path, f"is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise AudioError(path, f"is not readable as CSV ({error})") from error
    except OSError as error:
        raise AudioError(path, os_reason(error)) from error


def _check_columns(path: Path, columns: list[str], path_column: str) -> None:
    if path_column not in columns:
        raise AudioError(path, f"has no column '{path_column}'; its columns are {', '.join(columns) or 'none'}")


def _csv_rows(path: Path, path_column: str, delimiter: str) -> Iterator[dict[str, Any] | str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        columns = list(reader.fieldnames or [])
        _check_columns(path, columns, path_column)
        for row in reader:
            yield f"has more values than the {len(columns)} columns of the header" if None in row else row


def _json_rows(path: Path, path_column: str) -> Iterator[dict[str, Any] | str]:
    checked = False
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = plain(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"is not JSON that can be read ({error})"
                continue
            if not isinstance(row, dict):
                yield "is not a JSON object"
                continue
            if not checked:
                _check_columns(path, list(row), path_column)
                checked = True
            yield row


def _parquet_rows(path: Path, path_column: str) -> Iterator[dict[str, Any] | str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_columns(path, table.schema_arrow.names, path_column)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield plain(row)
    except pyarrow.ArrowInvalid as error:
        raise AudioError(path, f"is not a readable Parquet file ({error})") from error


def plain(value: Any, nesting: int = _MAX_NESTING) -> Any:
    """Return `value` as JSON can hold it; raise ValueError if it is nested more than `nesting` levels deep."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if nesting == 0:
        raise ValueError(f"nested more than {_MAX_NESTING} levels deep")
    if isinstance(value, dict):
        return {str(key): plain(part, nesting - 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, nesting - 1) for part in value]
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
