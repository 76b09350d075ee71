"""Run folders: one configuration, an append-only plan of shards, and claims that let processes share the shards.

A run folder holds `run.json` (what decides about the bytes), `manifest.jsonl` (one line per input that was listed),
one file per finished shard with, beside it, a record of the inputs that failed in it, and at the end `failed.jsonl`
and `summary.json`. A shard is finished when its file exists. Everything follows from the configuration and from the
inputs in the order in which they were listed, so that any sequence of kills and reruns ends in the same bytes. Shards
know their inputs and the hash of their configuration, so that a lost or damaged plan is noticed and can be made again.
"""

import itertools
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sctok.audio.sources import AudioItem, BadItem
from sctok.formats.files import atomic_path, hash_json, json_text, read_json, write_json

from .claims import Claim, take_lock, try_lock
from .manifest import Failure, KnownInputs, Planned, failure_of, json_line, read_failures, read_manifest, write_failures

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
_NAME_OF_ENCODER = "encoder"  # in a configuration; its hash says which one it is, whatever its file is called
_SHOWN = 3  # differences or stretches of shards in one message
_MISSING = object()


class RunError(ValueError):
    """A run folder cannot be used as asked; the message is one line that names it and says what to do."""


@dataclass(frozen=True)
class Shard:
    """One unit of work: the inputs whose results go into one file, in their order there."""

    index: int
    items: tuple[AudioItem, ...]


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
        deciding = {name: value for name, value in self.config.items() if name != _NAME_OF_ENCODER}
        object.__setattr__(self, "config_hash", hash_json(deciding))

    def shard_path(self, index: int) -> Path:
        """Return where the file of a finished shard lies."""
        return self.path / f"shard-{index:05d}{self.suffix}"

    def failures_path(self, index: int) -> Path:
        """Return where the failures of a shard are recorded; absent if it has none."""
        return self.path / f"shard-{index:05d}.failed.jsonl"

    def finished(self, index: int) -> bool:
        """Return whether the file of a shard exists."""
        return self.shard_path(index).exists()

    def finished_shards(self) -> list[int]:
        """Return the numbers of the shards whose files lie in the folder now, planned or not, in order."""
        names = (re.fullmatch(r"shard-(\d{5,})", path.stem) for path in self.path.glob(f"shard-*{self.suffix}"))
        return sorted(int(name[1]) for name in names if name)

    def manifest(self) -> Iterator[Planned | Failure]:
        """Yield the rows of the manifest: inputs, and what could not be listed. Raises FormatError."""
        return read_manifest(self.path / MANIFEST)

    def shards(self) -> Iterator[Shard]:
        """Yield the planned shards in order, reading the manifest as it goes."""
        rows = (row for row in self.manifest() if isinstance(row, Planned))
        for index, group in itertools.groupby(rows, key=lambda row: row.shard):
            yield Shard(index, tuple(row.item for row in group))

    def planned(self) -> dict[int, int]:
        """Return the number of inputs of each planned shard."""
        return dict(Counter(row.shard for row in self.manifest() if isinstance(row, Planned)))

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
        rows = list(failures)
        if rows:
            write_failures(self.failures_path(index), rows)

    def shard_failures(self, index: int) -> Iterator[Failure]:
        """Yield the recorded failures of a shard."""
        path = self.failures_path(index)
        return read_failures(path) if path.exists() else iter(())

    def failures(self) -> Iterator[Failure]:
        """Yield everything that failed: first what could not be listed, then shard by shard."""
        listed: dict[tuple[str, str], Failure] = {}
        shards: dict[int, None] = {}
        for row in self.manifest():
            if isinstance(row, Failure):
                listed[row.identity] = row
            else:
                # The same input listed later without trouble takes its complaint back.
                listed.pop((row.item.key, row.item.path), None)
                shards[row.shard] = None
        yield from listed.values()
        for index in shards:
            if self.finished(index):
                yield from self.shard_failures(index)

    def write_failures(self) -> int:
        """Rewrite `failed.jsonl` from what is known by now; return the number of failures."""
        with self.locked():
            for index, paths in self._temporaries().items():
                for path in paths if self.finished(index) else ():
                    path.unlink(missing_ok=True)
            failures = list(self.failures())
            write_failures(self.path / FAILED, failures)
        return len(failures)

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
    read_shard: ReadShard,
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
        read_shard: returns what a finished shard says of itself; raises FormatError.
        choose: takes some of the new inputs, for instance so many hours; all of them where None.

    Raises:
        RunError: nothing was listed, the folder belongs to another configuration, is not a run folder, or has
            finished shards with other inputs than planned.
        FormatError: a file of the run is damaged.
    """
    if files_per_shard < 1:
        raise RunError(f"files per shard must be at least 1, not {files_per_shard}")
    stored = {"format": FORMAT, "format_version": FORMAT_VERSION, "files_per_shard": files_per_shard, **config}
    wanted = RunFolder(path, stored, suffix)
    _find_run(wanted)
    inputs = iter(listed)
    first = next(inputs, None)
    if first is None and not (path / CONFIG).exists():
        raise RunError(f"no audio was found for {path}; name files, folders, manifests or tar shards that hold some")
    with wanted.locked():
        found = _find_run(wanted)
        if found is None and not _holds_own_shards(wanted, read_shard):
            (path / MANIFEST).unlink(missing_ok=True)  # of a plan that died before it was complete
        run = found or wanted
        _append(run, itertools.chain([] if first is None else [first], inputs), files_per_shard, choose)
        if found is None:
            write_json(path / CONFIG, stored)
    _check_shards(run, read_shard)
    return run


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


def _append(run: RunFolder, listed: Iterable[AudioItem | BadItem], files_per_shard: int, choose: Choice | None) -> None:
    manifest = run.path / MANIFEST
    known, next_shard, seconds = KnownInputs(), 0, 0.0
    for row in run.manifest() if manifest.exists() else ():
        known.remember(row)
        if isinstance(row, Planned):
            next_shard = row.shard + 1
            seconds += row.seconds or 0.0
    news = known.news(listed)
    chosen = choose(news, seconds) if choose else ((entry, None) for entry in news)
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES, dir=str(run.path)) as spool:
        spool.writelines(_lines(chosen, next_shard, files_per_shard))
        if spool.tell() == 0 and manifest.exists():
            return
        spool.seek(0)
        with atomic_path(manifest) as temporary, temporary.open("wb") as out:
            if manifest.exists():
                with manifest.open("rb") as old:
                    shutil.copyfileobj(old, out)
            shutil.copyfileobj(spool, out)


def _lines(
    chosen: Iterable[tuple[AudioItem | BadItem, float | None]], next_shard: int, files_per_shard: int
) -> Iterator[bytes]:
    added = 0
    for entry, seconds in chosen:
        if isinstance(entry, BadItem):
            yield json_line({"bad": failure_of(entry).to_json()})
        else:
            yield json_line(Planned(next_shard + added // files_per_shard, entry, seconds).to_json())
            added += 1


def _find_run(wanted: RunFolder) -> RunFolder | None:
    """Return the run that the folder holds, with the name that it has for the encoder; it is the one asked for."""
    path = wanted.path / CONFIG
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(
            f"{path} is not the configuration of a run of sctok; use another folder, or delete it if damaged"
        )
    asked = json.loads(json_text(dict(wanted.config)))
    differences = [
        f"{name} {_shown(found, name)} there, {_shown(asked, name)} here"
        for name in sorted((found.keys() | asked.keys()) - {_NAME_OF_ENCODER})
        if found.get(name, _MISSING) != asked.get(name, _MISSING)
    ]
    if differences:
        more = len(differences) - _SHOWN
        shown = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise RunError(
            f"{wanted.path} was made with other settings ({shown}); "
            "repeat those, or use another name or an empty folder"
        )
    return RunFolder(wanted.path, {**asked, **found}, wanted.suffix)


def _shown(config: Mapping[str, Any], name: str) -> str:
    return json_text(config[name]) if name in config else "absent"


def _holds_own_shards(run: RunFolder, read_shard: ReadShard) -> bool:
    """Return whether a folder without a configuration holds shards; they were made with the one asked for."""
    finished = [run.shard_path(index) for index in run.finished_shards()]
    hashes = ((path, read_shard(path).config_hash) for path in finished)
    path, found = next((known for known in hashes if known[1] is not None), (None, None))
    if finished and found != run.config_hash:
        name = (path or finished[0]).name
        raise RunError(
            f"{run.path} holds {name} but no {CONFIG}, and that was not made with these settings; repeat those it was "
            "made with, use another folder, or empty this one"
        )
    return bool(finished)


def _check_shards(run: RunFolder, read_shard: ReadShard) -> None:
    """Raise RunError unless each finished shard holds what the manifest plans for it: it may have lost lines."""
    # In this order, so that what other processes plan and finish meanwhile is no surprise.
    wrong = set(run.finished_shards())
    for shard in run.shards() if wrong else ():
        if shard.index in wrong:
            failed = (failure.key for failure in run.shard_failures(shard.index))
            keys = sorted([*read_shard(run.shard_path(shard.index)).keys, *failed])
            if keys == sorted(item.key for item in shard.items):
                wrong.remove(shard.index)
    if wrong:
        raise RunError(
            f"{run.path / MANIFEST} plans other inputs than these finished shards hold: delete {shard_names(wrong)} "
            "there and run the same command again"
        )
