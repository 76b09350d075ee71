"""Checksum records of finished shards: they verify copies, and let a plan be checked without reading shards."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sctok.formats.files import damaged, hash_json, read_json, write_json

RECORD_SUFFIX = ".sha256.json"
_ORIGIN = {"inputs": str, "contents": dict}  # absent in records of earlier versions


@dataclass(frozen=True)
class ShardRecord:
    """The size of a shard in bytes, their SHA-256, the number of files in it, and the hash of their keys.

    inputs: hash of the manifest lines that the shard was made from. contents: hashes of the audio files that it was
    made from, by key, if they are known. Both are None in records of earlier versions.
    """

    bytes: int
    sha256: str
    files: int
    keys: str
    inputs: str | None = None
    contents: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def hash_keys(keys: Sequence[str]) -> str:
    """Return the hash of a sequence of keys."""
    return hash_json(list(keys))


def measure_shard(path: Path, keys: Sequence[str]) -> ShardRecord:
    """Read the bytes of a shard that holds `keys` and return its record, without inputs and contents."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardRecord(file.tell(), digest, len(keys), hash_keys(keys))


def write_record(
    record: Path, shard: Path, keys: Sequence[str], inputs: str, contents: Mapping[str, str | None]
) -> None:
    """Write the record of the file `shard`, which holds `keys`, to the path `record` atomically."""
    known = {key: value for key in keys if (value := contents.get(key)) is not None}
    write_json(record, replace(measure_shard(shard, keys), inputs=inputs, contents=known).to_json())


def read_record(path: Path) -> ShardRecord:
    """Read a record. Raises FormatError if it is invalid."""
    found: Any = read_json(path)
    kinds = {"bytes": int, "sha256": str, "files": int, "keys": str}
    if isinstance(found, dict) and found.keys() & _ORIGIN.keys():
        kinds |= _ORIGIN
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != kinds:
        raise damaged(path, "it is not a record of a shard")
    return ShardRecord(**found)
