"""Inputs that changed or vanished after a run read them: they are named, or their shards are brought up to date.

A refresh writes the new manifest under a hidden name, marks the shards that it changes, as `--retry-failed` marks
those with failures, and gives the manifest its name. Until then the hidden file tells the next command to finish this.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache

from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.formats.files import atomic_path, sync_folder

from .checksums import read_record
from .locks import try_lock
from .manifest import Failure, Planned, hash_content, json_line, read_manifest, stamp_file
from .run_folder import CLAIMS, MANIFEST, STAGED_MANIFEST, RunError, RunFolder, Shard, group_shards, shard_names

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
    """Compare the inputs of runs with the files as they are.

    A file of the same size and modification time is the same. Of any other, the bytes decide, against their hash in
    the record of the shard; in an archive, those of the input, at the same place. Inputs that are to be read anyway are
    taken as they are now. Inputs that failed are left to `--retry-failed`, or to a refresh.

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
        f"{runs[0].path}: of its inputs, {' and '.join(counts)} since they were read; the first is {found.first}; add "
        f"--refresh to do their shards again ({shard_names(found.stale)}), or restore the files"
    )


def _compare(run: RunFolder, refresh: bool, found: _Findings) -> None:
    relisted = lru_cache(maxsize=4)(_list_archive)
    for shard in run.shards():
        changed = [row for row in shard.planned if row.changed]
        if changed:
            state = _ShardState(run, shard)
            for row in changed:
                _judge(row, _find_now(row.item, relisted), state, refresh, found)


class _ShardState:
    """What became of the inputs of a shard so far."""

    def __init__(self, run: RunFolder, shard: Shard) -> None:
        finished, record = run.finished(shard.index), run.record_path(shard.index)
        self.again = frozenset[str]() if finished else run.retry_keys(shard)  # keys to be read again, None for all
        self.failed = {failure.key for failure in run.shard_failures(shard.index)} if finished else frozenset[str]()
        self.contents = (read_record(record).contents if record.exists() else None) or {}


def _judge(row: Planned, now: AudioItem | None, state: _ShardState, refresh: bool, found: _Findings) -> None:
    """Decide about an input whose file has another stamp; `now` is where it is, None if it is gone."""
    item = row.item
    if refresh or now not in (item, None):
        found.add(row, gone=now is None)
    elif state.again is None or item.key in state.again:
        # A file of the same size is taken for one that was copied or touched, whose line stays as it is.
        resized = row.stamp is not None and (stamp := stamp_file(item.path)) and stamp.bytes != row.stamp.bytes
        if now is not None and item.offset is None and (resized or state.again is not None):
            found.open.add(row.shard)
    elif item.key not in state.failed and (now is None or hash_content(item) != state.contents.get(item.key)):
        found.add(row, gone=now is None)


def _find_now(item: AudioItem, relisted: Callable[[str], dict[str, AudioItem]]) -> AudioItem | None:
    """Return an input as it would be listed now, None if it is gone."""
    if stamp_file(item.path) is None:
        return None
    return item if item.offset is None else relisted(item.path).get(item.key)


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
    item = _find_now(row.item, relisted)
    if item is None or not (refresh or item == row.item):
        return None if refresh else row
    seconds = None if row.seconds is None else round(measure(item), 6)
    return replace(row, item=item, seconds=seconds, stamp=stamp_file(item.path))


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
