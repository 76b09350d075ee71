"""Run folders: one configuration, an append-only plan of shards, and claims that let processes share the shards.

A run folder holds `run.json` (what decides about the bytes), `manifest.jsonl` (one line per input that was listed),
one file per finished shard with, beside it, a record of the inputs that failed in it, and at the end `failed.jsonl`
and `summary.json`. A shard is finished when its file exists. Everything follows from the configuration and from the
inputs in the order in which they were listed, so that any sequence of kills and reruns ends in the same bytes.
"""

import itertools
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sctok.audio.sources import AudioItem, BadItem
from sctok.formats.files import atomic_path, damaged, hash_json, json_text, read_json, write_json

from .claims import Claim, take_lock, try_lock

CONFIG = "run.json"
MANIFEST = "manifest.jsonl"
FAILED = "failed.jsonl"
SUMMARY = "summary.json"
CLAIMS = ".claims"
FORMAT = "sctok-run"
FORMAT_VERSION = 1

Progress = Callable[[dict[str, Any]], None]
# Reduces the inputs that a run does not know yet, given the seconds that it holds: (input, seconds) or (problem, None).
Choice = Callable[[Iterable[AudioItem | BadItem], float], Iterable[tuple[AudioItem | BadItem, float | None]]]

_SPOOL_BYTES = 1 << 24  # new manifest lines kept in memory before they go to an unnamed file
_TEMPORARY = re.compile(r".*\bshard-(\d+)\..+\.tmp-\d+")
_SHOWN_DIFFERENCES = 3
_MISSING = object()


class RunError(ValueError):
    """A run folder cannot be used as asked; the message is one line that names it and says what to do."""


@dataclass(frozen=True)
class Shard:
    """One unit of work: the inputs whose results go into one file, in their order there."""

    index: int
    items: tuple[AudioItem, ...]


@dataclass(frozen=True)
class Failure:
    """An input without results, and why."""

    key: str
    path: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the failure as a line of `failed.jsonl`."""
        return {"key": self.key, "path": self.path, "reason": self.reason}


@dataclass(frozen=True)
class RunFolder:
    """A planned run: where it lies, what decides about its bytes, and how its shard files end (`.h5` or `.tar`)."""

    path: Path
    config: Mapping[str, Any]
    suffix: str
    config_hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config_hash", hash_json(dict(self.config)))

    def shard_path(self, index: int) -> Path:
        """Return where the file of a finished shard lies."""
        return self.path / f"shard-{index:05d}{self.suffix}"

    def failures_path(self, index: int) -> Path:
        """Return where the failures of a shard are recorded; absent if it has none."""
        return self.path / f"shard-{index:05d}.failed.jsonl"

    def finished(self, index: int) -> bool:
        """Return whether the file of a shard exists."""
        return self.shard_path(index).exists()

    def manifest(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the manifest: `{"shard", "item"}`, with `seconds` where they were asked for, or `{"bad"}`.

        Raises:
            FormatError: a line is not a JSON object.
        """
        return _read_lines(self.path / MANIFEST)

    def shards(self) -> Iterator[Shard]:
        """Yield the planned shards in order, reading the manifest as it goes."""
        rows = (row for row in self.manifest() if "item" in row)
        for index, group in itertools.groupby(rows, key=lambda row: int(row["shard"])):
            yield Shard(index, tuple(AudioItem.from_json(row["item"]) for row in group))

    def planned(self) -> dict[int, int]:
        """Return the number of inputs of each planned shard."""
        return dict(Counter(row["shard"] for row in self.manifest() if "item" in row))

    def claim_shards(self) -> Iterator[tuple[Shard, Claim]]:
        """Claim one unfinished shard after the other; those that other processes work on are passed over.

        What a dead process left of a shard is removed when the shard is claimed. The caller releases the claims.
        """
        leftovers = self._temporaries()
        for shard in self.shards():
            if self.finished(shard.index):
                continue
            claim = try_lock(self.path / CLAIMS / f"shard-{shard.index:05d}.lock")
            if claim is None:
                continue
            if self.finished(shard.index):
                claim.release()
                continue
            # Only the holder of the claim writes these names, whatever machine it runs on.
            for path in (*leftovers.get(shard.index, ()), self.failures_path(shard.index)):
                path.unlink(missing_ok=True)
            yield shard, claim

    def record_failures(self, index: int, failures: Iterable[Failure]) -> None:
        """Write the failures of a shard, if any; to be called before the shard itself is finished."""
        rows = [failure.to_json() for failure in failures]
        if rows:
            _write_lines(self.failures_path(index), rows)

    def failures(self) -> Iterator[Failure]:
        """Yield everything that failed: first what could not be listed, then shard by shard."""
        listed: dict[tuple[str, str], Failure] = {}
        shards: dict[int, None] = {}
        for row in self.manifest():
            if "bad" in row:
                failure = Failure(**row["bad"])
                listed[_identity(failure)] = failure
            else:
                # The same input listed later without trouble takes its complaint back.
                listed.pop((row["item"]["key"], row["item"]["path"]), None)
                shards[row["shard"]] = None
        yield from listed.values()
        for index in shards:
            if self.finished(index) and self.failures_path(index).exists():
                yield from (Failure(**row) for row in _read_lines(self.failures_path(index)))

    def write_failures(self) -> int:
        """Rewrite `failed.jsonl` from what is known by now; return the number of failures."""
        with self.locked():
            for index, paths in self._temporaries().items():
                for path in paths if self.finished(index) else ():
                    path.unlink(missing_ok=True)
            rows = [failure.to_json() for failure in self.failures()]
            _write_lines(self.path / FAILED, rows)
        return len(rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Rewrite `summary.json`."""
        with self.locked():
            write_json(self.path / SUMMARY, dict(summary))

    def locked(self) -> Claim:
        """Take the lock under which everything but shards is written; waits for other processes."""
        (self.path / CLAIMS).mkdir(parents=True, exist_ok=True)
        claim = take_lock(self.path / CLAIMS / "plan.lock")
        for name in (CONFIG, MANIFEST, FAILED, SUMMARY):
            for path in self.path.glob(f"{name}.tmp-*"):
                path.unlink(missing_ok=True)
        return claim

    def _temporaries(self) -> dict[int, list[Path]]:
        """Return the temporary files of shards that lie in the folder now, by shard."""
        found: dict[int, list[Path]] = {}
        for path in self.path.glob("*shard-*.tmp-*"):
            name = _TEMPORARY.fullmatch(path.name)
            if name:
                found.setdefault(int(name[1]), []).append(path)
        return found


def plan_run(
    path: Path,
    config: Mapping[str, Any],
    suffix: str,
    listed: Iterable[AudioItem | BadItem],
    *,
    files_per_shard: int,
    choose: Choice | None = None,
) -> RunFolder:
    """Create a run folder, or open one and append the inputs that it does not know yet.

    New inputs go to new shards: a shard never changes once it is planned. Several processes may plan one folder.

    Args:
        path: the run folder; made if absent.
        config: everything that decides about the bytes of the results, as JSON values.
        suffix: ending of shard files.
        listed: inputs and problems in a deterministic order, as `list_audio` gives them.
        files_per_shard: inputs in one shard, at least 1.
        choose: takes some of the new inputs, for instance so many hours; all of them where None.

    Raises:
        RunError: nothing was listed, the folder belongs to another configuration, or is not a run folder.
    """
    if files_per_shard < 1:
        raise RunError(f"files per shard must be at least 1, not {files_per_shard}")
    stored = {"format": FORMAT, "format_version": FORMAT_VERSION, "files_per_shard": files_per_shard, **config}
    run = RunFolder(path, stored, suffix)
    _check_config(run)
    inputs = iter(listed)
    first = next(inputs, None)
    if first is None and not (path / CONFIG).exists():
        raise RunError(f"no audio was found for {path}; name files, folders, manifests or tar shards that hold some")
    with run.locked():
        fresh = not _check_config(run)
        if fresh:
            _refuse_shards_without_config(run)
            (path / MANIFEST).unlink(missing_ok=True)  # of a plan that died before it was complete
        _append(run, itertools.chain([] if first is None else [first], inputs), files_per_shard, choose)
        if fresh:
            write_json(path / CONFIG, stored)
    return run


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


def _append(run: RunFolder, listed: Iterable[AudioItem | BadItem], files_per_shard: int, choose: Choice | None) -> None:
    manifest = run.path / MANIFEST
    known, next_shard, seconds = _Known(), 0, 0.0
    for row in run.manifest() if manifest.exists() else ():
        known.remember(row)
        if "item" in row:
            next_shard = row["shard"] + 1
            seconds += row.get("seconds", 0.0)
    news = known.news(listed)
    chosen = choose(news, seconds) if choose else ((entry, None) for entry in news)
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES, dir=str(run.path)) as spool:
        for row in _rows(chosen, next_shard, files_per_shard):
            spool.write(f"{json_text(row)}\n".encode("ascii"))
        if spool.tell() == 0 and manifest.exists():
            return
        spool.seek(0)
        with atomic_path(manifest) as temporary, temporary.open("wb") as out:
            if manifest.exists():
                with manifest.open("rb") as old:
                    shutil.copyfileobj(old, out)
            shutil.copyfileobj(spool, out)


def _rows(
    chosen: Iterable[tuple[AudioItem | BadItem, float | None]], next_shard: int, files_per_shard: int
) -> Iterator[dict[str, Any]]:
    added = 0
    for entry, seconds in chosen:
        if isinstance(entry, BadItem):
            yield {"bad": Failure(entry.key, entry.path, entry.reason).to_json()}
        else:
            length = {} if seconds is None else {"seconds": round(seconds, 6)}
            yield {"shard": next_shard + added // files_per_shard, "item": entry.to_json(), **length}
            added += 1


class _Known:
    """The inputs and problems that a manifest has already."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, int | None]] = {}
        self._bad: set[tuple[str, str]] = set()

    def remember(self, row: Mapping[str, Any]) -> None:
        if "bad" in row:
            self._bad.add(_identity(Failure(**row["bad"])))
        else:
            item = AudioItem.from_json(row["item"])
            self._places[item.key] = (item.path, item.offset)

    def news(self, listed: Iterable[AudioItem | BadItem]) -> Iterator[AudioItem | BadItem]:
        """Yield what is not known, with absolute paths: a run may be taken up again from another folder."""
        for listed_entry in listed:
            entry = replace(listed_entry, path=os.path.normpath(Path(listed_entry.path).absolute()))
            if isinstance(entry, AudioItem):
                if entry.key not in self._places:
                    self._places[entry.key] = (entry.path, entry.offset)
                    yield entry
                    continue
                path, offset = self._places[entry.key]
                if (path, offset) == (entry.path, entry.offset):
                    continue
                reason = f"its key {entry.key!r} stands for {path} in this run already; rename one, or use another run"
                entry = BadItem(entry.key, entry.path, reason)
            if _identity(entry) not in self._bad:
                self._bad.add(_identity(entry))
                yield entry


def _identity(problem: BadItem | Failure) -> tuple[str, str]:
    """Return what tells a listing problem from others; one without a key is told by its reason."""
    return (problem.key, problem.path) if problem.key else (problem.path, problem.reason)


def _check_config(run: RunFolder) -> bool:
    """Return whether the folder has a configuration; it is the one asked for."""
    path = run.path / CONFIG
    if not path.exists():
        return False
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(f"{path} is not the configuration of a run of sctok; use another folder")
    wanted = json.loads(json_text(dict(run.config)))
    differences = [
        f"{name} {_shown(found, name)} there, {_shown(wanted, name)} here"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name, _MISSING) != wanted.get(name, _MISSING)
    ]
    if differences:
        more = len(differences) - _SHOWN_DIFFERENCES
        shown = "; ".join(differences[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise RunError(
            f"{run.path} was made with other settings ({shown}); repeat those, or use another name or an empty folder"
        )
    return True


def _shown(config: Mapping[str, Any], name: str) -> str:
    return json_text(config[name]) if name in config else "absent"


def _refuse_shards_without_config(run: RunFolder) -> None:
    shard = next(run.path.glob(f"shard-*{run.suffix}"), None)
    if shard is not None:
        raise RunError(f"{run.path} holds {shard.name} but no {CONFIG}; use another folder, or empty this one")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise damaged(path, f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise damaged(path, f"line {number} is not an object")
            yield row


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as out:
        out.writelines(f"{json_text(dict(row))}\n" for row in rows)
