"""Limits of the memory that one row of untrusted data may take, which readers check before they unpack it."""

import json
import math
import os
import re
from collections.abc import Iterator
from typing import IO, Any, AnyStr

LIMIT_VARIABLE = "SCTOK_MAX_INPUT_BYTES"
# The Hugging Face hub splits Parquet files at 500 MB by default, so that each of their rows fits.
DEFAULT_LIMIT = 1 << 29
MAX_NESTING = 100  # far below the depth at which Python fails to read, copy or write a value

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_ROWS_HELD = 512  # twice the files of a shard
_JSON_GROWTH = 32  # bytes of Python objects per byte of JSON, at most: the three bytes of `[],` become 64


def max_input_bytes() -> int:
    """Return the bytes that one input row may unpack to: SCTOK_MAX_INPUT_BYTES, such as 2000000 or 2G, or 512 MiB.

    Raises ValueError if the variable has another form.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    found = re.fullmatch(r"(\d{1,18})([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"{LIMIT_VARIABLE}={text!r:.50} is not a number of bytes such as 536870912 or 512M")
    return int(found[1]) * _UNITS[found[2].upper()]


def max_json_bytes() -> int:
    """Return the maximum bytes of JSON in one row: Python's objects take up to 32 times as many."""
    return max(1 << 12, max_input_bytes() // _JSON_GROWTH)


def max_metadata_bytes() -> int:
    """Return the maximum bytes of metadata in one input row: 1 MiB, or 1/512 of another limit.

    The metadata of a whole shard is in memory at once.
    """
    return max(1 << 12, max_input_bytes() // _ROWS_HELD)


def parse_json(text: str | bytes, limit: int | None = None) -> Any:
    """Return the value of JSON of at most `limit` bytes (default: `max_json_bytes`) and 100 levels of nesting.

    Raises ValueError for longer, deeper or invalid JSON.
    """
    limit = max_json_bytes() if limit is None else limit
    if len(text) > limit:
        raise ValueError(
            f"{len(text):,} bytes of JSON are more than the limit of {limit:,}; raise it with {LIMIT_VARIABLE}"
        )
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_NESTING} levels deep") from None
    opened = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
    if opened > MAX_NESTING:
        check_nesting(value)
    return value


def check_nesting(value: Any) -> None:
    """Raise ValueError if the dicts and lists of a value are nested more than 100 levels deep."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_NESTING} levels deep")


def _parts(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (part for part in inner if isinstance(part, dict | list))


def read_lines(file: IO[AnyStr], limit: int | None = None) -> Iterator[AnyStr | None]:
    """Yield the lines of an open file; None in place of a line longer than `limit` (default: `max_json_bytes`).

    Long lines are read piece by piece and dropped.
    """
    limit = max_json_bytes() if limit is None else limit
    end = 10 if isinstance(file.read(0), bytes) else "\n"
    while line := file.readline(limit + 1):
        if len(line) <= limit or line[-1] == end:
            yield line
            continue
        while line and line[-1] != end:
            line = file.readline(limit)
        yield None


def size_problem(row: Any) -> str | None:
    """Return what is wrong if the metadata of a row is too long, or None."""
    if (size := _text_bytes(row)) <= max_metadata_bytes():
        return None
    return f"has {size:,} bytes besides audio, more than {max_metadata_bytes():,}; raise {LIMIT_VARIABLE}"


def _text_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(name) + _text_bytes(part) for name, part in value.items())
    if isinstance(value, list | tuple):
        return 8 * len(value) + sum(map(_text_bytes, value))
    return len(value) if isinstance(value, str | bytes) else 8


def json_value(value: Any, nesting: int = MAX_NESTING) -> Any:
    """Return `value` as a JSON value. Raises ValueError if it is nested more than `nesting` levels deep."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if nesting == 0:
        raise ValueError(f"nested more than {MAX_NESTING} levels deep")
    if isinstance(value, dict):
        return {str(key): json_value(part, nesting - 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part, nesting - 1) for part in value]
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
