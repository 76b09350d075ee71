"""Run folders: one configuration, an append-only plan of shards, and locks that let processes share the shards.

A run folder holds `run.json` (everything that determines the bytes), `manifest.jsonl` (one line per listed input), one
file per finished shard with its checksum and a list of its failed inputs, and at the end `failed.jsonl` and
`summary.json`. Everything follows from the configuration and from the inputs in the order of listing, so that any
sequence of kills and reruns ends in the same bytes. Shards record their inputs and the hash of their configuration, so
that a lost or damaged plan is noticed and can be made again. Nothing depends on a clock.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sctok.audio.inputs.sources import AudioItem
from sctok.formats.files import hash_json, sync_folder, write_json

from .checksums import RECORD_SUFFIX, read_record, write_record
from .locks import Claim, take_lock, try_lock
from .manifest import Failure, ListingProblems, Planned, hash_planned, read_failures, read_manifest, write_failures

CONFIG = "run.json"
MANIFEST = "manifest.jsonl"
STAGED_MANIFEST = ".manifest.jsonl"  # the manifest of a refresh that is not complete
FAILED = "failed.jsonl"
SUMMARY = "summary.json"
SHA256 = "sha256"  # in the summary: hashes of the other files of the run
CLAIMS = ".claims"
FORMAT = "sctok-run"
FORMAT_VERSION = 1

_TEMPORARY = re.compile(r".*\bshard-(\d+)\..+\.tmp-\d+")
NAME_OF_ENCODER = "encoder"  # in a configuration; the hash identifies the encoder, its name may differ
_SHOWN = 3  # ranges of shards in one message


class RunError(ValueError):
    """A run folder cannot be used as asked; the message is one line that names it and says what to do."""


@dataclass(frozen=True)
class Shard:
    """One unit of work: the inputs whose results go into one file, in the order of that file."""

    index: int
    planned: tuple[Planned, ...]

    @property
    def items(self) -> tuple[AudioItem, ...]:
        """The inputs."""
        return tuple(row.item for row in self.planned)

    @property
    def inputs_hash(self) -> str:
        """Hash of the lines of the manifest."""
        return hash_planned(self.planned)


@dataclass(frozen=True)
class RunFolder:
    """A planned run: its folder, the configuration that fixes its bytes, and the suffix of its shards (.h5, .tar)."""

    path: Path
    config: Mapping[str, Any]
    suffix: str
    config_hash: str = field(init=False)

    def __post_init__(self) -> None:
        deciding = {name: value for name, value in self.config.items() if name != NAME_OF_ENCODER}
        object.__setattr__(self, "config_hash", hash_json(deciding))

    def shard_path(self, index: int) -> Path:
        """Return the path of a finished shard."""
        return self.path / f"shard-{index:05d}{self.suffix}"

    def staged_path(self, index: int) -> Path:
        """Return the path of a complete shard before it is renamed to `shard_path`."""
        return self.path / f".shard-{index:05d}{self.suffix}"

    def failures_path(self, index: int) -> Path:
        """Return the path of the recorded failures of a shard; absent if it has none."""
        return self.path / f"shard-{index:05d}.failed.jsonl"

    def record_path(self, index: int) -> Path:
        """Return the path of the checksum record of a shard."""
        return self.path / f"shard-{index:05d}{RECORD_SUFFIX}"

    def retry_path(self, index: int) -> Path:
        """Return the path of the inputs to try again; the shard is not finished as long as this file exists."""
        return self.path / f"shard-{index:05d}.retry.jsonl"

    def finished(self, index: int) -> bool:
        """Return whether a shard exists and has nothing to try again."""
        return self.shard_path(index).exists() and not self.retry_path(index).exists()

    def existing_shards(self) -> list[int]:
        """Return the sorted numbers of the shard files in the folder, planned or not."""
        names = (re.fullmatch(r"shard-(\d{5,})", path.stem) for path in self.path.glob(f"shard-*{self.suffix}"))
        return sorted(int(name[1]) for name in names if name)

    def manifest(self) -> Iterator[Planned | Failure]:
        """Yield the rows of the manifest: inputs, and problems of listing. Raises FormatError."""
        return read_manifest(self.path / MANIFEST)

    def shards(self) -> Iterator[Shard]:
        """Yield the planned shards in order; the manifest is read as they are taken."""
        return group_shards(self.manifest())

    def planned(self) -> dict[int, int]:
        """Return the number of inputs of each planned shard."""
        return dict(Counter(row.shard for row in self.manifest() if isinstance(row, Planned)))

    def retry_keys(self, shard: Shard) -> frozenset[str] | None:
        """Return the keys to try again in an unfinished shard; None, for all, if it has no file."""
        if not self.shard_path(shard.index).exists() or not self.retry_path(shard.index).exists():
            return None
        failed = {failure.key for failure in read_failures(self.retry_path(shard.index))}
        return frozenset(failed & {item.key for item in shard.items}) or None

    def mark_changed(self, shard: Shard, keys: Iterable[str]) -> None:
        """Mark some inputs of a claimed shard, and all its failed ones, to be read again."""
        paths = (self.retry_path(shard.index), self.failures_path(shard.index))
        failed = {failure.key for path in paths if path.exists() for failure in read_failures(path)}
        again = failed | set(keys)
        rows = [Failure(item.key, item.path, "is read again") for item in shard.items if item.key in again]
        write_failures(self.retry_path(shard.index), rows)

    def remove_shard(self, index: int) -> None:
        """Remove all files of a claimed shard."""
        for path in (self.retry_path, self.failures_path, self.record_path, self.shard_path):
            path(index).unlink(missing_ok=True)

    def claim(self, index: int, leftovers: Iterable[Path]) -> Claim | None:
        """Claim a shard and remove files that a dead process left; return None if another process holds the shard."""
        claim = try_lock(self.path / CLAIMS / f"shard-{index:05d}.lock")
        if claim is not None and not self.finished(index):
            # Only the holder of the claim writes these names, whatever machine it runs on.
            for path in (*leftovers, self.staged_path(index), self.failures_path(index)):
                path.unlink(missing_ok=True)
        return claim

    def finish_shard(
        self,
        shard: Shard,
        keys: Sequence[str],
        failures: Sequence[Failure],
        contents: Mapping[str, str | None] | None = None,
    ) -> None:
        """Write the record and the failures of a claimed shard, and rename its staged file.

        contents: the hash of each audio file that was read now, or None if it is not known.
        """
        index, record = shard.index, self.record_path(shard.index)
        earlier = read_record(record).contents if record.exists() else None
        contents = {**(earlier or {}), **(contents or {})}
        if failures:
            write_failures(self.failures_path(index), failures)
        write_record(record, self.staged_path(index), keys, shard.inputs_hash, contents)
        self.staged_path(index).replace(self.shard_path(index))
        self.retry_path(index).unlink(missing_ok=True)
        sync_folder(self.path)

    def shard_failures(self, index: int) -> Iterator[Failure]:
        """Yield the recorded failures of a shard."""
        path = self.failures_path(index)
        return read_failures(path) if path.exists() else iter(())

    def failures(self) -> Iterator[Failure]:
        """Yield all failures: first the problems of listing, then the failures of each shard."""
        listed = ListingProblems()
        shards: dict[int, None] = {}
        for row in self.manifest():
            if isinstance(row, Failure):
                listed.add(row)
            else:
                # An input that was listed later resolves its own problem, and those of the tar that it is in.
                listed.resolve(row.item.key, row.item.path)
                shards[row.shard] = None
        yield from listed
        for index in shards:
            if self.finished(index):
                yield from self.shard_failures(index)

    def write_failures(self) -> int:
        """Rewrite `failed.jsonl` with all failures known now; return their number."""
        with self.locked():
            for index, paths in self.temporaries().items():
                for path in paths if self.finished(index) else ():
                    path.unlink(missing_ok=True)
            return write_failures(self.path / FAILED, self.failures())

    def write_summary(self, summary: Mapping[str, Any], shards: Iterable[int]) -> None:
        """Rewrite `summary.json` with a summary of the planned shards and the hashes of the plan."""
        with self.locked():
            write_json(self.path / SUMMARY, {**summary, SHA256: self.hash_plan(shards)})

    def hash_plan(self, shards: Iterable[int]) -> dict[str, str]:
        """Return the SHA-256 of the configuration, of the manifest, and of the records of all planned shards."""
        found = {}
        for name in (CONFIG, MANIFEST):
            with (self.path / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        records = hashlib.sha256()
        for index in shards:
            records.update(self.record_path(index).read_bytes())
        return {**found, f"*{RECORD_SUFFIX}": records.hexdigest()}

    def locked(self) -> Claim:
        """Wait for the lock that everything except shards is written under, and return it."""
        (self.path / CLAIMS).mkdir(parents=True, exist_ok=True)
        claim = take_lock(self.path / CLAIMS / "plan.lock")
        for name in (CONFIG, MANIFEST, STAGED_MANIFEST, FAILED, SUMMARY):
            for path in self.path.glob(f"{name}.tmp-*"):
                path.unlink(missing_ok=True)
        return claim

    def temporaries(self) -> dict[int, list[Path]]:
        """Return the temporary files in the folder by the number of their shard."""
        found: dict[int, list[Path]] = {}
        for path in self.path.glob("*shard-*.tmp-*"):
            name = _TEMPORARY.fullmatch(path.name)
            if name:
                found.setdefault(int(name[1]), []).append(path)
        return found


def group_shards(rows: Iterable[Planned | Failure]) -> Iterator[Shard]:
    """Yield the shards that the rows of a manifest plan."""
    planned = (row for row in rows if isinstance(row, Planned))
    for index, group in itertools.groupby(planned, key=lambda row: row.shard):
        yield Shard(index, tuple(group))


def shard_names(indices: Iterable[int]) -> str:
    """Return the files of shards as messages name them: `shard-00002.* to shard-00004.*, shard-00007.*, …`."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indices):
        first = ranges.pop()[0] if ranges and ranges[-1][1] == index - 1 else index
        ranges.append((first, index))
    names = [f"shard-{a:05d}.*" + (f" to shard-{b:05d}.*" if a < b else "") for a, b in ranges]
    return ", ".join(names[:_SHOWN] + ["…"] * (len(names) > _SHOWN))


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a folder name on any machine.

    Raises:
        RunError: it has characters other than letters, digits, `.`, `_` and `-`, or does not begin with a letter,
            digit or underscore.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(f"{what} {name!r} cannot be a folder name; use letters, digits, '.', '_' and '-', no '.' first")
    return name


def safe_name(text: str) -> str:
    """Return `text` with everything that `check_name` refuses replaced by underscores."""
    return re.sub(r"^[.-]|[^\w.-]", "_", text) or "_"
