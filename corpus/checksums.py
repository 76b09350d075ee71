"""Beside each finished shard, a record of its bytes: by it a copy can be proved whole, and a plan checked unread."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sctok.formats.files import damaged, hash_json, read_json, write_json

RECORD_SUFFIX = ".sha256.json"


@dataclass(frozen=True)
class ShardRecord:
    """What a shard is: its size, the SHA-256 of its bytes, how many files it holds, and the hash of their keys."""

    bytes: int
    sha256: str
    files: int
    keys: str


def hash_keys(keys: Sequence[str]) -> str:
    """Return the hash of keys in their order."""
    return hash_json(list(keys))


def measure_shard(path: Path, keys: Sequence[str]) -> ShardRecord:
    """Read the bytes of a shard that holds `keys` and return its record."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardRecord(file.tell(), digest, len(keys), hash_keys(keys))


def write_record(record: Path, shard: Path, keys: Sequence[str]) -> None:
    """Write the record of the file `shard`, which holds `keys`, to `record`, atomically."""
    write_json(record, asdict(measure_shard(shard, keys)))


def read_record(path: Path) -> ShardRecord:
    """Read a record. Raises FormatError if it is none."""
    found: Any = read_json(path)
    kinds = {"bytes": int, "sha256": str, "files": int, "keys": str}
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise damaged(path, "it is no record of a shard")
    return ShardRecord(**found)
