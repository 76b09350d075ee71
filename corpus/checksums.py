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
    """What a shard is: its size, the SHA-256 of its bytes, how many files it holds, and the hash of their keys.

    inputs: the hash of the lines of the manifest that it was made of; None in records of earlier versions.
    """

    bytes: int
    sha256: str
    files: int
    keys: str
    inputs: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def hash_keys(keys: Sequence[str]) -> str:
    """Return the hash of keys in their order."""
    return hash_json(list(keys))


def measure_shard(path: Path, keys: Sequence[str], inputs: str | None = None) -> ShardRecord:
    """Read the bytes of a shard that holds `keys` and return its record."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardRecord(file.tell(), digest, len(keys), hash_keys(keys), inputs)


def write_record(record: Path, shard: Path, keys: Sequence[str], inputs: str) -> None:
    """Write the record of the file `shard`, which holds `keys` and was made of `inputs`, to `record`, atomically."""
    write_json(record, measure_shard(shard, keys, inputs).to_json())


def read_record(path: Path) -> ShardRecord:
    """Read a record. Raises FormatError if it is none."""
    found: Any = read_json(path)
    kinds = {"bytes": int, "sha256": str, "files": int, "keys": str, "inputs": str}
    kinds = kinds if isinstance(found, dict) and "inputs" in found else dict(list(kinds.items())[:-1])
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise damaged(path, "it is no record of a shard")
    return ShardRecord(**found)
