"""Run folders: one configuration, an append-only plan of shards, and claims that let processes share the shards.

A run folder holds `run.json` (what decides about the bytes), `manifest.jsonl` (one line per input that was listed),
one file per finished shard with, beside it, its checksum and a list of the inputs that failed in it, and at the end
`failed.jsonl` and `summary.json`. A shard is finished when its file exists and no `.retry.jsonl` beside it names inputs
to try again. Everything follows from the configuration and from the inputs in the order in which they were listed, so
that any sequence of kills and reruns ends in the same bytes. Shards know their inputs and the hash of their
configuration, so that a lost or damaged plan is noticed and can be made again. No clock is ever asked.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sctok.audio.inputs.sources import AudioItem
from sctok.formats.files import hash_json, sync_folder, write_json

from .checksums import RECORD_SUFFIX, read_record, write_record
from .complaints import Complaints
from .locks import Claim, take_lock, try_lock
from .manifest import (
    Failure,
    Planned,
    Stamp,
    hash_content,
    hash_planned,
    read_failures,
    read_manifest,
    stamp_file,
    write_failures,
)

CONFIG = "run.json"
MANIFEST = "manifest.jsonl"
STAGED_MANIFEST = ".manifest.jsonl"  # of a refresh that is under way
FAILED = "failed.jsonl"
SUMMARY = "summary.json"
SHA256 = "sha256"  # in the summary: of the other files of the run
CLAIMS = ".claims"
FORMAT = "sctok-run"
FORMAT_VERSION = 1

Progress = Callable[[dict[str, Any]], None]
_TEMPORARY = re.compile(r".*\bshard-(\d+)\..+\.tmp-\d+")
NAME_OF_ENCODER = "encoder"  # in a configuration; its hash says which one it is, whatever its file is called
_SHOWN = 3  # stretches of shards in one message


class RunError(ValueError):
    """A run folder cannot be used as asked; the message is one line that names it and says what to do."""


@dataclass(frozen=True)
class Shard:
    """One unit of work: the inputs whose results go into one file, in their order there."""

    index: int
    planned: tuple[Planned, ...]

    @property
    def items(self) -> tuple[AudioItem, ...]:
        """The inputs alone."""
        return tuple(row.item for row in self.planned)

    @property
    def inputs_hash(self) -> str:
        """Hash of the lines of the manifest."""
        return hash_planned(self.planned)


@dataclass(frozen=True)
class ShardContents:
    """What a finished shard says of itself: the hash of its configuration, None if it holds no file, and its keys."""

    config_hash: str | None
    keys: tuple[str, ...]


ReadShard = Callable[[Path], ShardContents]


@dataclass(frozen=True)
class RunFolder:
    """A planned run: where it lies, what decides about its bytes, and how its shard files end (`.h5` or `.tar`)."""

    path: Path
    config: Mapping[str, Any]
    suffix: str
    config_hash: str = field(init=False)

    def __post_init__(self) -> None:
        deciding = {name: value for name, value in self.config.items() if name != NAME_OF_ENCODER}
        object.__setattr__(self, "config_hash", hash_json(deciding))

    def shard_path(self, index: int) -> Path:
        """Return where the file of a finished shard lies."""
        return self.path / f"shard-{index:05d}{self.suffix}"

    def staged_path(self, index: int) -> Path:
        """Return where the whole file of a shard lies before it takes the place of `shard_path`."""
        return self.path / f".shard-{index:05d}{self.suffix}"

    def failures_path(self, index: int) -> Path:
        """Return where the failures of a shard are recorded; absent if it has none."""
        return self.path / f"shard-{index:05d}.failed.jsonl"

    def record_path(self, index: int) -> Path:
        """Return where the checksum of a shard is recorded."""
        return self.path / f"shard-{index:05d}{RECORD_SUFFIX}"

    def retry_path(self, index: int) -> Path:
        """Return where the failures are kept that a shard is to try again; it is not finished as long as it exists."""
        return self.path / f"shard-{index:05d}.retry.jsonl"

    def finished(self, index: int) -> bool:
        """Return whether a shard exists and has nothing to try again."""
        return self.shard_path(index).exists() and not self.retry_path(index).exists()

    def existing_shards(self) -> list[int]:
        """Return the numbers of the shards whose files lie in the folder now, planned or not, in order."""
        names = (re.fullmatch(r"shard-(\d{5,})", path.stem) for path in self.path.glob(f"shard-*{self.suffix}"))
        return sorted(int(name[1]) for name in names if name)

    def manifest(self) -> Iterator[Planned | Failure]:
        """Yield the rows of the manifest: inputs, and what could not be listed. Raises FormatError."""
        return read_manifest(self.path / MANIFEST)

    def shards(self) -> Iterator[Shard]:
        """Yield the planned shards in order, reading the manifest as it goes."""
        return group_shards(self.manifest())

    def planned(self) -> dict[int, int]:
        """Return the number of inputs of each planned shard."""
        return dict(Counter(row.shard for row in self.manifest() if isinstance(row, Planned)))

    def retry_keys(self, shard: Shard) -> frozenset[str] | None:
        """Return which inputs of an unfinished shard are to be tried; None for all, where it has no file so far."""
        if not self.shard_path(shard.index).exists() or not self.retry_path(shard.index).exists():
            return None
        failed = {failure.key for failure in read_failures(self.retry_path(shard.index))}
        return frozenset(failed & {item.key for item in shard.items}) or None

    def mark_retries(self, mine: Callable[[int], bool] = lambda index: True) -> int:
        """Have all that failed in finished shards of the right numbers tried again; return how many inputs that are.

        The other files of those shards stay as they are until a shard is written anew, with what they hold copied.
        """
        marked = 0
        with self.locked():
            for index in filter(mine, self.existing_shards()):
                if self.failures_path(index).exists() and self.finished(index):
                    marked += sum(1 for _ in self.shard_failures(index))
                    self.failures_path(index).rename(self.retry_path(index))
            sync_folder(self.path)
        return marked

    def mark_changed(self, shard: Shard, keys: Iterable[str]) -> None:
        """Have some inputs of a claimed shard read again, and all that failed in it."""
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
        """Claim a shard and remove what a dead process left of it; return None if another process holds it."""
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
        """Give the staged file of a claimed shard its name, after the records of what it holds and what failed.

        contents: the hashes of the audio files that were read now; None for one whose hash is not known.
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
        """Yield everything that failed: first what could not be listed, then shard by shard."""
        listed = Complaints()
        shards: dict[int, None] = {}
        for row in self.manifest():
            if isinstance(row, Failure):
                listed.add(row)
            else:
                # The same input listed later without trouble takes its complaint back, and a tar that gives more than
                # before, its own.
                listed.take_back(row.item.key, row.item.path)
                shards[row.shard] = None
        yield from listed
        for index in shards:
            if self.finished(index):
                yield from self.shard_failures(index)

    def write_failures(self) -> int:
        """Rewrite `failed.jsonl` from what is known by now; return the number of failures."""
        with self.locked():
            for index, paths in self.temporaries().items():
                for path in paths if self.finished(index) else ():
                    path.unlink(missing_ok=True)
            return write_failures(self.path / FAILED, self.failures())

    def write_summary(self, summary: Mapping[str, Any], shards: Iterable[int]) -> None:
        """Rewrite `summary.json` from what the planned shards hold."""
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
        """Take the lock under which everything but shards is written; waits for other processes."""
        (self.path / CLAIMS).mkdir(parents=True, exist_ok=True)
        claim = take_lock(self.path / CLAIMS / "plan.lock")
        for name in (CONFIG, MANIFEST, STAGED_MANIFEST, FAILED, SUMMARY):
            for path in self.path.glob(f"{name}.tmp-*"):
                path.unlink(missing_ok=True)
        return claim

    def temporaries(self) -> dict[int, list[Path]]:
        """Return the temporary files of shards that lie in the folder now, by shard."""
        found: dict[int, list[Path]] = {}
        for path in self.path.glob("*shard-*.tmp-*"):
            name = _TEMPORARY.fullmatch(path.name)
            if name:
                found.setdefault(int(name[1]), []).append(path)
        return found


@dataclass(frozen=True)
class Work:
    """A claimed shard of one or several runs over the same plan.

    wanted: for each run, by its place, that lacks the shard: the keys to try there, None for all. stamps: of the
    files, before anything is read.
    """

    shard: Shard
    wanted: Mapping[int, frozenset[str] | None]
    claims: tuple[Claim, ...]
    stamps: Mapping[str, Stamp | None] = field(default_factory=dict)

    @cached_property
    def contents(self) -> dict[str, str | None]:
        """The hashes of the inputs, now that they were read; None for one that changed meanwhile, except by growing."""
        # After reading: the system has the bytes in memory still, and hashing lets other threads work.
        return {item.key: _hash_as_read(item, self.stamps.get(item.key)) for item in self.items}

    @property
    def items(self) -> tuple[AudioItem, ...]:
        """The inputs to read, in the order of the shard."""
        if any(keys is None for keys in self.wanted.values()):
            return self.shard.items
        keys = frozenset[str]().union(*(keys or () for keys in self.wanted.values()))
        return tuple(item for item in self.shard.items if item.key in keys)

    def release(self) -> None:
        """Give the claims back."""
        for claim in self.claims:
            claim.release()


def _hash_as_read(item: AudioItem, before: Stamp | None) -> str | None:
    """Return the hash of the bytes that an input had when its file had the stamp `before`, None if they are gone."""
    if before is None:
        return None
    found, after = hash_content(item, None if item.offset is not None else before.bytes), stamp_file(item.path)
    grown = after is not None and item.offset is None and after.bytes > before.bytes
    return found if after == before or grown else None


def claim_work(runs: Sequence[RunFolder], mine: Callable[[int], bool] = lambda index: True) -> Iterator[Work]:
    """Claim one shard after the other that a run lacks; those that other processes work on are passed over.

    Args:
        runs: with equal manifests.
        mine: which shards, by number, to work on at all.

    Yields:
        shards in order; the caller releases them.
    """
    leftovers = [run.temporaries() for run in runs]
    last: int | None = -1
    while last is not None:
        last = yield from _claim_from(runs, mine, leftovers, last)


def _claim_from(
    runs: Sequence[RunFolder], mine: Callable[[int], bool], leftovers: Sequence[dict[int, list[Path]]], last: int
) -> Generator[Work, None, int | None]:
    """Claim the shards after `last`; return None at the end, or the last one where another process changed the plan."""
    plan = _identify_plan(runs)
    for shard in runs[0].shards():
        if shard.index <= last or not mine(shard.index) or all(run.finished(shard.index) for run in runs):
            continue
        claims: list[Claim] = []
        for run, left in zip(runs, leftovers, strict=True):
            claim = run.claim(shard.index, left.get(shard.index, ()))
            if claim is None:
                break
            claims.append(claim)
        wanted = {place: run.retry_keys(shard) for place, run in enumerate(runs) if not run.finished(shard.index)}
        work = Work(shard, wanted, tuple(claims), {item.key: stamp_file(item.path) for item in shard.items})
        if _identify_plan(runs) != plan:
            work.release()
            return last
        last = shard.index
        if len(claims) == len(runs) and wanted:
            yield work
        else:
            work.release()
    return None


def _identify_plan(runs: Sequence[RunFolder]) -> tuple[int, int]:
    """Return what tells the manifest of runs from one that replaced it."""
    status = (runs[0].path / MANIFEST).stat()
    return status.st_ino, status.st_mtime_ns


def group_shards(rows: Iterable[Planned | Failure]) -> Iterator[Shard]:
    """Yield the shards that the rows of a manifest plan."""
    planned = (row for row in rows if isinstance(row, Planned))
    for index, group in itertools.groupby(planned, key=lambda row: row.shard):
        yield Shard(index, tuple(group))


def shard_names(indices: Iterable[int]) -> str:
    """Return how messages name all files of some shards: `shard-00002.* to shard-00004.*, shard-00007.*, …`."""
    stretches: list[tuple[int, int]] = []
    for index in sorted(indices):
        first = stretches.pop()[0] if stretches and stretches[-1][1] == index - 1 else index
        stretches.append((first, index))
    names = [f"shard-{a:05d}.*" + (f" to shard-{b:05d}.*" if a < b else "") for a, b in stretches]
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
