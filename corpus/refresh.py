"""Inputs that changed or vanished after a run read them: they are named, or their shards are brought up to date.

A refresh writes the new manifest under a hidden name, marks the shards that it changes, as `--retry-failed` marks
those with failures, and gives the manifest its name. Until then the hidden file tells the next command to finish this.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache

from sctok.audio.errors import AudioError
from sctok.audio.sources import AudioItem, list_audio
from sctok.formats.files import atomic_path, sync_folder

from .claims import try_lock
from .manifest import Failure, Planned, json_line, read_manifest, stamp_file
from .runs import CLAIMS, MANIFEST, STAGED_MANIFEST, RunError, RunFolder, Shard, group_shards, shard_names

Measure = Callable[[AudioItem], float]


class InputsChangedError(RunError):
    """Files whose results a run keeps have changed or vanished; a refresh is needed."""


@dataclass
class _Findings:
    """The inputs that differ from the manifests: those whose results are kept, and the shards to bring up to date."""

    changed: int = 0
    gone: int = 0
    first: str = ""
    stale: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)

    def add(self, row: Planned, gone: bool) -> None:
        self.first = self.first or f"{row.item.name} ({'is gone' if gone else 'changed'})"
        self.gone += gone
        self.changed += not gone
        self.stale.add(row.shard)


def update_inputs(runs: Sequence[RunFolder], *, refresh: bool, measure: Measure) -> None:
    """Compare the inputs of runs with the files as they are, by size and modification time.

    Inputs that are to be read anyway are taken as they are now, unless they lie in an archive. Inputs that failed are
    left to `--retry-failed`, or to a refresh. Those of an archive that was cut short are read again without being asked
    for, where it still holds them: it was fetched again.

    Args:
        runs: existing ones, over the same inputs.
        refresh: have the shards with inputs that changed or vanished done again: the former are read again, the latter
            leave the manifest.
        measure: returns the duration of an input in seconds, for runs that keep it.

    Raises:
        InputsChangedError: inputs whose results are kept changed or vanished, and `refresh` is False.
        RunError: no input is left, or another process works on a shard that must change.
    """
    with ExitStack() as locks:
        for run in sorted(runs, key=lambda run: run.path):
            locks.enter_context(run.locked())
        for run in runs:
            _finish_refresh(run)
        found = _Findings()
        for run in runs:
            _compare(run, refresh, found)
        if found.stale and not refresh:
            raise InputsChangedError(_describe(runs, found))
        for run in runs if found.stale or found.open else ():
            _stage(run, found.stale | found.open, refresh, measure)
        for run in runs:
            _finish_refresh(run)


def _describe(runs: Sequence[RunFolder], found: _Findings) -> str:
    counts = [f"{found.changed:,} changed"] * bool(found.changed) + [f"{found.gone:,} vanished"] * bool(found.gone)
    return (
        f"{runs[0].path}: of its inputs {' and '.join(counts)} since they were read, first {found.first}; add "
        f"--refresh to do their shards again ({shard_names(found.stale)}), or restore the files"
    )


def _compare(run: RunFolder, refresh: bool, found: _Findings) -> None:
    mended = _MendedArchives(run)
    for shard in run.shards():
        changed = [row for row in shard.planned if row.changed]
        if not changed:
            continue
        finished, again = run.finished(shard.index), run.retry_keys(shard)
        failed = {failure.key for failure in run.shard_failures(shard.index)} if finished else frozenset[str]()
        for row in changed:
            gone = stamp_file(row.item.path) is None
            to_read = not finished and (again is None or row.item.key in again)
            packed = row.item.offset is not None and not gone
            if packed and not refresh and mended.hold(row.item):
                found.open.add(shard.index)
            elif refresh or packed or not (to_read or row.item.key in failed):
                found.add(row, gone)
            elif to_read and not gone:
                found.open.add(shard.index)


class _MendedArchives:
    """The changed archives of a run that could not be listed to their ends."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._cut: set[str] | None = None
        self._relisted = lru_cache(maxsize=4)(_list_archive)

    def hold(self, item: AudioItem) -> bool:
        """Return whether the archive of an input is one of them, and still has the input."""
        if self._cut is None:
            self._cut = {row.path for row in self._run.manifest() if isinstance(row, Failure) and not row.key}
        return item.path in self._cut and item.key in self._relisted(item.path)


def _stage(run: RunFolder, shards: set[int], refresh: bool, measure: Measure) -> None:
    """Write the manifest with some shards as their files are now."""

    def lines() -> Iterator[bytes]:
        relisted = lru_cache(maxsize=4)(_list_archive)
        inputs = 0
        for row in run.manifest():
            if isinstance(row, Failure):
                yield json_line({"bad": row.to_json()})
                continue
            new = _renew(row, relisted, refresh, measure) if row.shard in shards and row.changed else row
            if new is not None:
                inputs += 1
                yield json_line(new.to_json())
        if not inputs:
            raise RunError(f"{run.path}: none of its inputs exists any more; restore them, or delete the folder")

    with atomic_path(run.path / STAGED_MANIFEST) as temporary, temporary.open("wb") as out:
        out.writelines(lines())


def _renew(
    row: Planned, relisted: Callable[[str], dict[str, AudioItem]], refresh: bool, measure: Measure
) -> Planned | None:
    """Return a row as its file is now, None if it is to leave the manifest."""
    stamp, item = stamp_file(row.item.path), row.item
    if stamp is not None and item.offset is not None:
        found = relisted(item.path).get(item.key)
        stamp, item = (None, item) if found is None else (stamp, found)
    if stamp is None:
        return None if refresh else row
    seconds = None if row.seconds is None else round(measure(item), 6)
    return replace(row, item=item, seconds=seconds, stamp=stamp)


def _list_archive(path: str) -> dict[str, AudioItem]:
    try:
        return {item.key: item for item in list_audio([path]) if isinstance(item, AudioItem)}
    except AudioError:
        return {}


def _finish_refresh(run: RunFolder) -> None:
    """Mark the shards that a staged manifest changes, and give it its name; do nothing if there is none."""
    staged = run.path / STAGED_MANIFEST
    if not staged.exists():
        return
    with ExitStack() as claims:
        for old, new in _changed_shards(run.shards(), group_shards(read_manifest(staged))):
            claim = try_lock(run.path / CLAIMS / f"shard-{old.index:05d}.lock")
            if claim is None:
                raise RunError(
                    f"{run.path}: the inputs of {shard_names([old.index])} changed while another process works on it; "
                    "run the same command again when that is done"
                )
            claims.enter_context(claim)
            if new is None:
                run.remove_shard(old.index)
            elif run.shard_path(old.index).exists():
                known = set(map(json_line, (row.to_json() for row in old.planned)))
                changed = [row.item.key for row in new.planned if json_line(row.to_json()) not in known]
                run.mark_changed(new, changed or [new.items[0].key])
        staged.replace(run.path / MANIFEST)
        sync_folder(run.path)


def _changed_shards(old: Iterable[Shard], new: Iterator[Shard]) -> Iterator[tuple[Shard, Shard | None]]:
    """Yield the shards that differ between two manifests, the second of which may lack rows of the first."""
    following = next(new, None)
    for shard in old:
        if following is None or following.index != shard.index:
            yield shard, None
            continue
        if following.planned != shard.planned:
            yield shard, following
        following = next(new, None)
