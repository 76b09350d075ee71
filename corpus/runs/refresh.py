"""Bringing a run up to date with inputs that changed or vanished after it read them.

A refresh writes the new manifest under a hidden name, marks the shards it changes like shards with failures to retry,
and then renames the manifest. As long as the hidden file exists, the next command first completes the refresh.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from sctok.formats.files import atomic_path, sync_folder

from .locks import try_lock
from .manifest import Failure, Planned, json_line, read_manifest, stamp_file
from .resume import Relist, Stale, archive_index, find_now, find_stale
from .run_folder import CLAIMS, MANIFEST, STAGED_MANIFEST, RunError, RunFolder, Shard, group_shards, shard_names
from .subsets import measure_seconds


class InputsChangedError(RunError):
    """Files whose results a run keeps have changed or vanished; a refresh is needed."""


def update_inputs(runs: Sequence[RunFolder], *, refresh: bool) -> None:
    """Compare the inputs of runs with their files now, and take unread inputs as they are now.

    Args:
        runs: existing runs over the same inputs.
        refresh: mark shards with changed or vanished inputs to be written again: changed inputs are read again,
        vanished
            ones leave the manifest.

    Raises:
        InputsChangedError: inputs with results changed or vanished, and `refresh` is False.
        RunError: no input is left, or another process works on a shard that must change.
    """
    with ExitStack() as locks:
        for run in sorted(runs, key=lambda run: run.path):
            locks.enter_context(run.locked())
        for run in runs:
            _finish_refresh(run)
        stale = find_stale(runs, refresh=refresh)
        if stale.shards and not refresh:
            raise InputsChangedError(_describe(runs, stale))
        for run in runs if stale.shards or stale.unread else ():
            _stage(run, stale.shards | stale.unread, refresh)
        for run in runs:
            _finish_refresh(run)


def _describe(runs: Sequence[RunFolder], stale: Stale) -> str:
    counts = [f"{stale.changed:,} changed"] * bool(stale.changed) + [f"{stale.gone:,} vanished"] * bool(stale.gone)
    return (
        f"inputs of {runs[0].path}: {' and '.join(counts)} since they were read, first {stale.first}; add "
        f"--refresh to rewrite their shards ({shard_names(stale.shards)}), or restore the files"
    )


def _stage(run: RunFolder, shards: set[int], refresh: bool) -> None:
    """Write a hidden manifest in which some shards list their files as they are now."""

    def lines() -> Iterator[bytes]:
        relist = archive_index()
        inputs = 0
        for row in run.manifest():
            if isinstance(row, Failure):
                yield json_line({"bad": row.to_json()})
                continue
            new = _renew(row, relist, refresh, run.config["channel"]) if row.shard in shards and row.changed else row
            if new is not None:
                inputs += 1
                yield json_line(new.to_json())
        if not inputs:
            raise RunError(f"{run.path}: none of its inputs exists any more; restore them, or delete the folder")

    with atomic_path(run.path / STAGED_MANIFEST) as temporary, temporary.open("wb") as out:
        out.writelines(lines())


def _renew(row: Planned, relist: Relist, refresh: bool, channel: int | None) -> Planned | None:
    """Return a row for the file as it is now; None if the row has to leave the manifest."""
    item = find_now(row.item, relist)
    if item is None or not (refresh or item == row.item):
        return None if refresh else row
    seconds = None if row.seconds is None else round(measure_seconds(item, channel=channel), 6)
    return replace(row, item=item, seconds=seconds, stamp=stamp_file(item.path))


def _finish_refresh(run: RunFolder) -> None:
    """Mark the shards that a staged manifest changes, and rename it; do nothing if there is none."""
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
    """Yield the shards that differ between two manifests; the second one may lack rows of the first."""
    following = next(new, None)
    for shard in old:
        if following is None or following.index != shard.index:
            yield shard, None
            continue
        if following.planned != shard.planned:
            yield shard, following
        following = next(new, None)
