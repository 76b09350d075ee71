"""The lines of a run's manifest and of its lists of failures."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from sctok.audio.decoding.decode import open_regular
from sctok.audio.errors import AudioError
from sctok.audio.inputs.key_table import KeyTable, open_spill
from sctok.audio.inputs.remote import is_url
from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.formats.files import HASH_CHARACTERS, atomic_path, damaged, hash_bytes, json_text
from sctok.formats.untrusted.bounds import parse_json, read_lines

_READ_BYTES = 1 << 20
_FAILURE = {"key": str, "path": str, "reason": str}
_NUMBER = int | float | None
_ITEM = {
    "key": str,
    "path": str,
    "offset": int | None,
    "size": int | None,
    "suffix": str,
    "metadata": dict,
    "start": _NUMBER,
    "seconds": _NUMBER,
}
_PLANNED = {"shard": int, "item": dict, "seconds": int | float | None, "file": dict | None}
_STAMP = {"bytes": int, "modified_ns": int}

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Failure:
    """An input without results, and why."""

    key: str
    path: str
    reason: str

    @property
    def identity(self) -> tuple[str, str]:
        """What identifies a problem of listing; a problem without a key is identified by its reason."""
        return (self.key, self.path) if self.key else (self.path, self.reason)

    def to_json(self) -> dict[str, str]:
        """Return the failure as a line of `failed.jsonl`."""
        return asdict(self)


@dataclass(frozen=True)
class Stamp:
    """The size of a file in bytes and its modification time in nanoseconds since 1970; they show that it changed."""

    bytes: int
    modified_ns: int


def stamp_file(path: str) -> Stamp | None:
    """Return the stamp of a file; None if it is at a URL or does not exist any more."""
    if is_url(path):
        return None
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def hash_content(item: AudioItem, size: int | None = None) -> str | None:
    """Return the hash of the first `size` bytes of an input, or of all; None if it is at a URL or unreadable."""
    if is_url(item.path):
        return None
    try:
        source = item.open()
        with open_regular(source, item.name) if isinstance(source, str) else source as file:
            digest, left = hashlib.sha256(), math.inf if size is None else size
            while part := file.read(int(min(left, _READ_BYTES))):
                digest.update(part)
                left -= len(part)
            return digest.hexdigest()[:HASH_CHARACTERS]
    except (OSError, AudioError):
        return None


@dataclass(frozen=True)
class Planned:
    """An input and its shard. seconds: its duration, if the run needs it. stamp: of the file that holds it.

    The stamp is None for inputs at URLs, and in runs that were planned by versions without stamps.
    """

    shard: int
    item: AudioItem
    seconds: float | None = None
    stamp: Stamp | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the input as a line of the manifest."""
        length = {} if self.seconds is None else {"seconds": round(self.seconds, 6)}
        file = {} if self.stamp is None else {"file": asdict(self.stamp)}
        return {"shard": self.shard, "item": self.item.to_json(), **length, **file}

    @property
    def changed(self) -> bool:
        """Whether the file is missing or has changed its stamp since it was listed; False if it has no stamp."""
        return self.stamp is not None and stamp_file(self.item.path) != self.stamp


def hash_planned(rows: Iterable[Planned]) -> str:
    """Return the hash of lines of a manifest."""
    return hash_bytes(b"".join(json_line(row.to_json()) for row in rows))


def read_manifest(path: Path) -> Iterator[Planned | Failure]:
    """Yield the inputs of a manifest and the problems of listing. Raises FormatError naming an invalid line."""
    return _read_lines(path, _manifest_row)


def read_failures(path: Path) -> Iterator[Failure]:
    """Yield the failures recorded in a file. Raises FormatError naming an invalid line."""
    return _read_lines(path, _failure)


def write_failures(path: Path, failures: Iterable[Failure]) -> int:
    """Write failures to a file atomically and return their number."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        for failure in failures:
            out.write(json_line(failure.to_json()))
            count += 1
    return count


def json_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line of JSON."""
    return f"{json_text(dict(row))}\n".encode("ascii")


class KnownInputs:
    """The inputs and problems that a manifest holds already."""

    def __init__(self) -> None:
        self._places = KeyTable()
        self._bad = KeyTable()

    def remember(self, row: Planned | Failure) -> None:
        """Add a row of the manifest."""
        if isinstance(row, Failure):
            self._bad.add(_joined(row.identity), "")
        else:
            self._places.add(row.item.key, _place(row.item))

    def news(self, listed: Iterable[AudioItem | BadItem]) -> Iterator[AudioItem | BadItem]:
        """Yield the entries that are not known, with absolute paths: a run may be resumed from another folder."""
        for listed_entry in listed:
            entry = replace(listed_entry, path=_absolute(listed_entry.path))
            if isinstance(entry, AudioItem):
                place = self._places.add(entry.key, _place(entry))
                if place is None:
                    yield entry
                    continue
                if place == _place(entry):
                    continue
                path = place.partition("\0")[0]
                reason = f"its key {entry.key!r} is taken by {path} in this run; rename one, or use another run"
                entry = BadItem(entry.key, entry.path, reason)
            if self._bad.add(_joined(failure_of(entry).identity), "") is None:
                yield entry


class ListingProblems:
    """Problems of listing that are not resolved, in order. Uses 16 MiB of memory; more goes to disk, in TMPDIR."""

    def __init__(self) -> None:
        self._database = open_spill()
        self._database.execute(
            "CREATE TABLE listed (number INTEGER PRIMARY KEY, first BLOB, second BLOB, key BLOB, path BLOB, "
            "reason BLOB)"
        )
        self._database.execute("CREATE UNIQUE INDEX identities ON listed (first, second)")
        self._database.execute("CREATE INDEX whole ON listed (path) WHERE key = x''")
        self._empty = True

    def add(self, failure: Failure) -> None:
        """Add a problem; it replaces an earlier one with the same identity."""
        self._empty = False
        identity, row = map(_bytes, failure.identity), map(_bytes, (failure.key, failure.path, failure.reason))
        self._database.execute(
            "INSERT INTO listed (first, second, key, path, reason) VALUES (?, ?, ?, ?, ?) ON CONFLICT (first, second) "
            "DO UPDATE SET key = excluded.key, path = excluded.path, reason = excluded.reason",
            (*identity, *row),
        )

    def resolve(self, key: str, path: str) -> None:
        """Remove the problem of an input that was listed later, and those of the tar at `path`."""
        if not self._empty:
            self._database.execute("DELETE FROM listed WHERE first = ? AND second = ?", (_bytes(key), _bytes(path)))
            self._database.execute("DELETE FROM listed WHERE key = x'' AND path = ?", (_bytes(path),))

    def __iter__(self) -> Iterator[Failure]:
        for row in self._database.execute("SELECT key, path, reason FROM listed ORDER BY number"):
            yield Failure(*(part.decode("utf-8", "surrogatepass") for part in row))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _joined(identity: tuple[str, str]) -> str:
    return "\0".join(identity)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100


def _place(item: AudioItem) -> str:
    return f"{item.path}\0{item.offset}\0{item.start}"


def failure_of(problem: BadItem) -> Failure:
    """Return a problem of listing as a failure."""
    return Failure(problem.key, problem.path, problem.reason)


def _read_lines(path: Path, parse: Callable[[Any], RowT]) -> Iterator[RowT]:
    with path.open("rb") as lines:
        for number, line in enumerate(read_lines(lines), 1):
            try:
                if line is None:
                    raise ValueError("is longer than any line of a run")
                row = parse(parse_json(line))
            except ValueError as error:
                raise damaged(path, f"line {number}: {error}") from None
            yield row


def _manifest_row(row: Any) -> Planned | Failure:
    if isinstance(row, dict) and row.keys() == {"bad"}:
        return _failure(row["bad"])
    fields = _checked(row, _PLANNED)
    item = AudioItem.from_json(_checked(fields["item"], _ITEM))
    if (item.offset is None) != (item.size is None) or min(item.offset or 0, item.size or 0) < 0:
        raise ValueError("'offset' and 'size' do not give a part of a file")
    if (item.start is None) != (item.seconds is None) or min(item.start or 0, item.seconds or 0) < 0:
        raise ValueError("'start' and 'seconds' do not give a section of a file")
    if fields["shard"] < 0 or not 0 <= (fields.get("seconds") or 0) < math.inf:
        raise ValueError("'shard' or 'seconds' is out of range")
    stamp = fields.get("file")
    return Planned(fields["shard"], item, fields.get("seconds"), stamp and Stamp(**_checked(stamp, _STAMP)))


def _failure(row: Any) -> Failure:
    return Failure(**_checked(row, _FAILURE))


def _checked(value: Any, kinds: Mapping[str, type | UnionType]) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= kinds.keys():
        raise ValueError(f"not an object with {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(value.get(name), kind):
            raise ValueError(f"{name!r} is missing or of another type")
    return value
