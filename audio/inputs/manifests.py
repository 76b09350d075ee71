"""Reading the rows of a manifest (CSV, TSV, JSONL or Parquet) one by one, and the cuts of lhotse in them."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, TextIO

from sctok.audio.errors import AudioError, os_reason
from sctok.formats.untrusted.bounds import LIMIT_VARIABLE, json_value, max_metadata_bytes, read_lines, size_problem

from .parquet import iter_group, open_table

MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))

PATH_COLUMNS = ("file_name", "audio_filepath")  # of Hugging Face audio folders and of NeMo

_GZIPPED = (".jsonl.gz", ".ndjson.gz")  # as lhotse writes them
_BATCH_ROWS = 1024


def is_manifest(path: PurePath) -> bool:
    """Return whether a file is a manifest by its name."""
    name = path.name.lower()
    return path.suffix.lower() in MANIFEST_SUFFIXES or name.endswith(_GZIPPED)


def read_rows(path: Path, path_column: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (row number from 1, row) of a manifest; in place of an invalid row, a str that says what is wrong with it.

    Values are JSON values: others become text, and floats that are not finite become None. If `file_name` or
    `audio_filepath` holds the path, it is renamed to `path_column`. Raises AudioError if the manifest cannot be read,
    or has neither a column of paths nor lhotse cuts.
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
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise AudioError(path, f"is not readable as gzip ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise AudioError(path, f"is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise AudioError(path, f"is not readable as CSV ({error})") from error
    except OSError as error:
        raise AudioError(path, os_reason(error)) from error


def _find_column(path: Path, columns: list[str], path_column: str) -> str:
    """Return the name of the column that holds the paths."""
    for name in (path_column, *PATH_COLUMNS):
        if name in columns:
            return name
    raise AudioError(path, f"has no column '{path_column}'; its columns are {', '.join(columns) or 'none'}")


def _renamed(row: dict[str, Any], column: str, path_column: str) -> dict[str, Any]:
    return row if column == path_column else {path_column if name == column else name: row[name] for name in row}


def _csv_rows(path: Path, path_column: str, delimiter: str) -> Iterator[dict[str, Any] | str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_short_lines(file), delimiter=delimiter)
        columns = list(reader.fieldnames or [])
        column = _find_column(path, columns, path_column)
        for row in reader:
            if None in row:
                yield f"has more values than the {len(columns)} columns of the header"
            else:
                yield _renamed(row, column, path_column)


def _short_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a CSV file. Raises csv.Error at a line that is too long."""
    for line in read_lines(file, max_metadata_bytes()):
        if line is None:
            raise csv.Error(f"a line is longer than {max_metadata_bytes():,} characters")
        yield line


def _json_rows(path: Path, path_column: str) -> Iterator[dict[str, Any] | str]:
    column = None
    with _open_text(path) as file:
        for line in read_lines(file, max_metadata_bytes()):
            if line is None:
                yield f"is longer than {max_metadata_bytes():,} characters; raise {LIMIT_VARIABLE}"
                continue
            if not line.strip():
                continue
            try:
                row = json_value(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield f"is not valid JSON ({error})"
                continue
            if not isinstance(row, dict):
                yield "is not a JSON object"
                continue
            if column is None:
                column = path_column if is_cut(row) else _find_column(path, list(row), path_column)
            yield _renamed(row, column, path_column)


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parquet_rows(path: Path, path_column: str) -> Iterator[dict[str, Any] | str]:
    import pyarrow

    try:
        with open_table(path) as table:
            names = table.schema_arrow.names
            column = _find_column(path, names, path_column)
            for group in range(table.num_row_groups):
                for batch in iter_group(path, table, group, names, _BATCH_ROWS):
                    for row in batch.to_pylist():
                        yield size_problem(row) or _renamed(json_value(row), column, path_column)
    except pyarrow.ArrowException as error:
        raise AudioError(path, f"is not a readable Parquet file ({error})") from error


def is_cut(row: dict[str, Any]) -> bool:
    """Return whether a row of a JSONL manifest is a lhotse cut with its recording."""
    return isinstance(row.get("id"), str) and isinstance(row.get("recording"), dict) and "start" in row


def read_cut(row: dict[str, Any]) -> tuple[str, float | None, float | None, dict[str, Any]]:
    """Return (path of the recording, start, seconds, metadata) of a cut; None, None for a whole recording.

    The metadata holds the texts, speakers and languages of the supervisions, and the fields of `custom`.
    Raises ValueError for a cut that is not one stretch of one file.
    """
    recording = row["recording"]
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url"):
        raise ValueError("is a cut whose recording is not one file or URL; export it with lhotse first")
    channels = recording.get("channel_ids") or [0]
    if len(channels) > 1 and row.get("channel") != channels:
        raise ValueError("is a cut of one channel of several; list the recording instead, and use --channel")
    if recording.get("transforms"):
        raise ValueError("is a cut of a recording with transforms; export it with lhotse first")
    start, seconds = float(row["start"]), float(row["duration"])
    if not (start >= 0 and seconds > 0):
        raise ValueError(f"is a cut from {start} s that lasts {seconds} s")
    supervisions = row.get("supervisions") or []
    metadata = {
        name: " ".join(str(one[name]) for one in supervisions if one.get(name))
        for name in ("text", "speaker", "language")
    }
    kept = {name: value for name, value in metadata.items() if value} | dict(json_value(row.get("custom") or {}))
    if start == 0 and seconds == recording.get("duration"):
        return str(sources[0]["source"]), None, None, kept
    return str(sources[0]["source"]), start, seconds, kept
