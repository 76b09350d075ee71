"""Plan a run: write its configuration and manifest, and check that the folder contains nothing else."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.formats.files import atomic_path, json_text, read_json, write_json

from .manifest import KnownInputs, Planned, failure_of, json_line, stamp_file
from .refresh import update_inputs
from .resume import ReadShard, check_finished_shards, mark_retries
from .run_folder import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    NAME_OF_ENCODER,
    RunError,
    RunFolder,
)
from .sharding import Execution

# Takes the new inputs of a run and the seconds of audio it holds; returns those to add: (input, seconds) or
# (problem, None).
Choice = Callable[[Iterable[AudioItem | BadItem], float], Iterable[tuple[AudioItem | BadItem, float | None]]]

_SPOOL_BYTES = 1 << 24  # of new manifest lines in memory, before they go to an unnamed file
_COPY_BYTES = 1 << 20
_SHOWN = 3  # differences in one message
_MISSING = object()


def plan_runs(
    configs: Mapping[Path, Mapping[str, Any]],
    suffix: str,
    list_inputs: Callable[[], Iterable[AudioItem | BadItem]],
    *,
    files_per_shard: int,
    read_shard: ReadShard,
    choose: Choice | None = None,
    execution: Execution | None = None,
) -> list[RunFolder]:
    """Create run folders over the same inputs, or open existing ones and append new inputs.

    New inputs go to new shards: a planned shard never changes. All runs get the same manifest. If a run exists, it
    decides the order of the inputs: new runs copy its manifest, and runs whose manifest is a prefix of it get the
    missing lines. Several processes may plan one folder.

    Args:
        configs: everything that determines the bytes of the results, as JSON values, for each run folder; folders are
            created if absent.
        suffix: ending of shard files.
        list_inputs: lists inputs and problems in a deterministic order, as `list_audio` does.
        files_per_shard: inputs in one shard, at least 1.
        read_shard: returns what a finished shard says about itself; raises FormatError.
        choose: selects some of the new inputs, for instance by hours; None takes all of them.
        execution: whether to read failed and changed inputs again; by default, only inputs without results are
            updated.

    Raises:
        RunError: nothing was listed; a folder belongs to another configuration or is not a run folder; a finished
            shard holds other inputs than planned; the manifests differ; or inputs changed or vanished after they were
            read.
        FormatError: a file of a run is damaged.
    """
    if files_per_shard < 1:
        raise RunError(f"files per shard must be at least 1, not {files_per_shard}")
    fixed = {"format": FORMAT, "format_version": FORMAT_VERSION, "files_per_shard": files_per_shard}
    by_path = {path: RunFolder(path, {**fixed, **config}, suffix) for path, config in configs.items()}
    _renew(by_path.values(), execution or Execution())
    sizes = {path: (path / MANIFEST).stat().st_size for path in configs if (path / MANIFEST).exists()}
    model = max(sizes or configs, key=lambda path: sizes.get(path, 0))
    listed = iter(list_inputs())
    first = next(listed, None)
    if first is None and not (model / CONFIG).exists():
        raise RunError(
            f"no audio was found for {model}; give files, folders, manifests or tar shards with audio, and patterns "
            "that match some of it"
        )
    inputs = itertools.chain([] if first is None else [first], listed)
    planned = {model: _plan(by_path[model], read_shard, lambda run: _append(run, inputs, files_per_shard, choose))}
    for path, run in by_path.items():
        if path != model:
            planned[path] = _plan(run, read_shard, lambda run: _copy_manifest(run, model / MANIFEST))
    return [planned[path] for path in configs]


def _plan(wanted: RunFolder, read_shard: ReadShard, write_manifest: Callable[[RunFolder], None]) -> RunFolder:
    """Create or open a run folder and update its manifest."""
    with wanted.locked():
        found = _find_run(wanted)
        if found is None and not _holds_own_shards(wanted, read_shard):
            (wanted.path / MANIFEST).unlink(missing_ok=True)  # of a process that died while planning
        run = found or wanted
        write_manifest(run)
        if found is None:
            write_json(run.path / CONFIG, dict(run.config))
        # Under the lock, so that no other process marks shards to retry meanwhile.
        check_finished_shards(run, read_shard)
    return run


def _renew(wanted: Iterable[RunFolder], execution: Execution) -> None:
    """Mark the inputs to read again in existing runs, and update changed inputs. Raises RunError."""
    found = [run for run in map(_find_run, wanted) if run is not None and (run.path / MANIFEST).exists()]
    for run in found if execution.retry_failed else ():
        mark_retries(run, execution.mine)
    if found:
        update_inputs(found, refresh=execution.refresh)


def _copy_manifest(run: RunFolder, other: Path) -> None:
    """Replace the manifest of a run by another manifest; raise RunError unless the first is a prefix of the second."""
    own = run.path / MANIFEST
    if own.exists():
        with own.open("rb") as existing, other.open("rb") as wanted:
            while part := existing.read(_COPY_BYTES):
                if wanted.read(len(part)) != part:
                    raise RunError(
                        f"{own} lists other inputs than {other}, or in another order, because inputs were added at "
                        "different times; tokenize with one codebook after the other, or into new folders"
                    )
            if not wanted.read(1):
                return
    with atomic_path(own) as temporary:
        shutil.copyfile(other, temporary)


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
            shard = next_shard + added // files_per_shard
            yield json_line(Planned(shard, entry, seconds, stamp_file(entry.path)).to_json())
            added += 1


def _find_run(wanted: RunFolder) -> RunFolder | None:
    """Return the run in the folder, with the encoder name stored there; None if there is none.

    Raises RunError if it has another configuration.
    """
    path = wanted.path / CONFIG
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(
            f"{path} is not the configuration of an sctok run; use another folder, or delete the file if it is damaged"
        )
    asked = json.loads(json_text(dict(wanted.config)))
    differences = [
        f"{name} is {_shown(found, name)}, not {_shown(asked, name)}"
        for name in sorted((found.keys() | asked.keys()) - {NAME_OF_ENCODER})
        if found.get(name, _MISSING) != asked.get(name, _MISSING)
    ]
    if differences:
        more = len(differences) - _SHOWN
        shown = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise RunError(
            f"{wanted.path} was made with other settings ({shown}); use those settings, another name or an empty folder"
        )
    return RunFolder(wanted.path, {**asked, **found}, wanted.suffix)


def _shown(config: Mapping[str, Any], name: str) -> str:
    return json_text(config[name]) if name in config else "absent"


def _holds_own_shards(run: RunFolder, read_shard: ReadShard) -> bool:
    """Return whether a folder without a configuration holds shards. Raises RunError if they have another one."""
    finished = [run.shard_path(index) for index in run.existing_shards()]
    hashes = ((path, read_shard(path).config_hash) for path in finished)
    path, found = next((known for known in hashes if known[1] is not None), (None, None))
    if finished and found != run.config_hash:
        name = (path or finished[0]).name
        raise RunError(
            f"{run.path} holds {name} but no {CONFIG}, and {name} was made with other settings; use those settings, "
            "another folder, or empty this one"
        )
    return bool(finished)
