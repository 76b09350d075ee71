"""Planning a run: its configuration, its manifest, and whether what lies in the folder fits them."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.formats.files import atomic_path, json_text, read_json, write_json

from .checksums import hash_keys, read_record, write_record
from .manifest import KnownInputs, Planned, failure_of, hash_content, json_line, stamp_file
from .refresh import Measure, update_inputs
from .run_folder import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    NAME_OF_ENCODER,
    ReadShard,
    RunError,
    RunFolder,
    Shard,
    shard_names,
)

# Reduces the inputs that a run does not know yet, given the seconds that it holds: (input, seconds) or (problem, None).
Choice = Callable[[Iterable[AudioItem | BadItem], float], Iterable[tuple[AudioItem | BadItem, float | None]]]

_SPOOL_BYTES = 1 << 24  # new manifest lines kept in memory before they go to an unnamed file
_COPY_BYTES = 1 << 20
_SHOWN = 3  # differences in one message
_MISSING = object()


@dataclass(frozen=True)
class Renewal:
    """Which known inputs of a run are read again.

    refresh: those that changed; those that vanished leave the run. retry_failed: those that failed, in the shards for
    whose number `mine` returns True. measure: returns the duration of an input in seconds, for runs that keep it.
    """

    refresh: bool = False
    retry_failed: bool = False
    mine: Callable[[int], bool] = lambda index: True
    measure: Measure = lambda item: 0.0


def plan_run(
    path: Path,
    config: Mapping[str, Any],
    suffix: str,
    listed: Iterable[AudioItem | BadItem],
    *,
    files_per_shard: int,
    read_shard: ReadShard,
    choose: Choice | None = None,
    model: RunFolder | None = None,
    renewal: Renewal | None = None,
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
        model: a planned run; its manifest is taken over, and `listed` ignored.
        renewal: which of the known inputs to read again; None for those that changed before they were read.

    Raises:
        RunError: nothing was listed, the folder belongs to another configuration, is not a run folder, or has
            finished shards with other inputs than planned, or another plan than its model; or inputs changed or
            vanished after they were read.
        FormatError: a file of the run is damaged.
    """
    if files_per_shard < 1:
        raise RunError(f"files per shard must be at least 1, not {files_per_shard}")
    wanted = _wanted(path, config, suffix, files_per_shard)
    _renew([wanted] if model is None else [], renewal)
    _find_run(wanted)
    inputs = iter(listed)
    first = next(inputs, None)
    if first is None and model is None and not (path / CONFIG).exists():
        raise RunError(
            f"no audio was found for {path}; name files, folders, manifests or tar shards that hold some, and patterns "
            "that fit some of it"
        )
    with wanted.locked():
        found = _find_run(wanted)
        if found is None and not _holds_own_shards(wanted, read_shard):
            (path / MANIFEST).unlink(missing_ok=True)  # of a plan that died before it was complete
        run = found or wanted
        if model is not None:
            _take_over(run, model)
        else:
            _append(run, itertools.chain([] if first is None else [first], inputs), files_per_shard, choose)
        if found is None:
            write_json(path / CONFIG, dict(wanted.config))
        # Under the lock: nobody marks shards for another try meanwhile.
        _check_shards(run, read_shard)
    return run


def plan_runs(
    configs: Mapping[Path, Mapping[str, Any]],
    suffix: str,
    list_inputs: Callable[[], Iterable[AudioItem | BadItem]],
    *,
    files_per_shard: int,
    read_shard: ReadShard,
    choose: Choice | None = None,
    renewal: Renewal | None = None,
) -> list[RunFolder]:
    """Plan one or several runs over the same inputs, such that all have the same manifest.

    One that is there already decides about the order of its inputs; the new ones take over its manifest, and those
    whose manifest is the beginning of its one, what they lack.

    Args:
        configs: the run folders and what decides about their bytes.
        suffix, files_per_shard, read_shard, choose, renewal: as `plan_run` takes them.
        list_inputs: lists the inputs and problems.

    Raises:
        RunError: as `plan_run`, and where the manifests differ.
    """
    _renew([_wanted(path, config, suffix, files_per_shard) for path, config in configs.items()], renewal)
    known = {path: (path / MANIFEST).stat().st_size for path in configs if (path / MANIFEST).exists()}
    model = max(known, key=lambda path: known[path]) if known else next(iter(configs))
    settings: Any = {"files_per_shard": files_per_shard, "read_shard": read_shard}
    runs = {model: plan_run(model, configs[model], suffix, list_inputs(), choose=choose, **settings)}
    for path, config in configs.items():
        if path != model:
            runs[path] = plan_run(path, config, suffix, (), model=runs[model], **settings)
    return [runs[path] for path in configs]


def _wanted(path: Path, config: Mapping[str, Any], suffix: str, files_per_shard: int) -> RunFolder:
    fixed = {"format": FORMAT, "format_version": FORMAT_VERSION, "files_per_shard": files_per_shard}
    return RunFolder(path, {**fixed, **config}, suffix)


def _renew(wanted: Iterable[RunFolder], renewal: Renewal | None) -> None:
    """Mark what is to be read again in the runs that exist, and take inputs as they are now. Raises RunError."""
    found = [run for run in map(_find_run, wanted) if run is not None and (run.path / MANIFEST).exists()]
    renewal = renewal or Renewal()
    for run in found if renewal.retry_failed else ():
        run.mark_retries(renewal.mine)
    if found:
        update_inputs(found, refresh=renewal.refresh, measure=renewal.measure)


def _take_over(run: RunFolder, model: RunFolder) -> None:
    """Replace the manifest of a run by that of another, of which it is the beginning."""
    own, other = run.path / MANIFEST, model.path / MANIFEST
    if own.exists():
        with own.open("rb") as there, other.open("rb") as wanted:
            while part := there.read(_COPY_BYTES):
                if wanted.read(len(part)) != part:
                    raise RunError(
                        f"{own} lists other inputs, or in another order, than {other}, because inputs were added at "
                        "other times: tokenize with their codebooks one after the other, or into new folders"
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
        for name in sorted((found.keys() | asked.keys()) - {NAME_OF_ENCODER})
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
    finished = [run.shard_path(index) for index in run.existing_shards()]
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
    """Raise RunError unless each finished shard holds what the manifest plans for it: it may have lost lines.

    A shard without a record of its own is read, and gets one.
    """
    wrong = set(run.existing_shards())
    for shard in run.shards() if wrong else ():
        if shard.index in wrong and (not run.finished(shard.index) or _fits(run, shard, read_shard)):
            wrong.remove(shard.index)
    if wrong:
        raise RunError(
            f"{run.path / MANIFEST} plans other inputs than these finished shards hold: delete {shard_names(wrong)} "
            "there and run the same command again"
        )


def _fits(run: RunFolder, shard: Shard, read_shard: ReadShard) -> bool:
    failed = {failure.key for failure in run.shard_failures(shard.index)}
    keys = [item.key for item in shard.items if item.key not in failed]
    path, record = run.shard_path(shard.index), run.record_path(shard.index)
    if not record.exists():
        if list(read_shard(path).keys) != keys:
            return False
        same = [row.item for row in shard.planned if row.stamp is not None and not row.changed]
        contents = {item.key: hash_content(item) for item in same if item.key not in failed}
        write_record(record, path, keys, shard.inputs_hash, contents)
    found = read_record(record)
    if found.inputs not in (None, shard.inputs_hash):
        return False
    return (found.bytes, found.keys) == (path.stat().st_size, hash_keys(keys))
