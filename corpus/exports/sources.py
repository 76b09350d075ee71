"""The input of an export: token shards of a run folder, or single shards, all of the same origin."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sctok.corpus.runs.checksums import RECORD_SUFFIX, read_record
from sctok.corpus.runs.run_folder import CONFIG, FORMAT, FORMAT_VERSION, RunError, RunFolder, shard_names
from sctok.formats.files import FormatError, check_format, hash_json, read_json
from sctok.formats.token_shards import read_token_shard

SUFFIX = ".tar"
ORIGIN = ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash", "sample_rate")


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one audio file: its key, tokens (n, streams), and its info from the shard."""

    key: str
    tokens: npt.NDArray[Any]
    info: dict[str, Any]


@dataclass(frozen=True)
class TokenSource:
    """Token shards in order.

    streams, sizes: name and codebook size of each stream. origin: the fields `ORIGIN`, equal for all files. run: the
    configuration of the run, if all shards belong to one known run.
    """

    shards: tuple[Path, ...]
    streams: tuple[str, ...]
    sizes: tuple[int, ...]
    origin: dict[str, Any]
    run: dict[str, Any] | None

    def identity(self) -> dict[str, Any]:
        """Return JSON values that identify these inputs, independent of their location.

        contents_hash: hash of the recorded checksums of the shards; None if a shard has no record.
        """
        listed = [[path.name, path.stat().st_size] for path in self.shards]
        records = [path.with_suffix(RECORD_SUFFIX) for path in self.shards]
        known = all(record.exists() for record in records)
        contents = hash_json([read_record(record).sha256 for record in records]) if known else None
        return {"shards": len(listed), "names_and_sizes_hash": hash_json(listed), "contents_hash": contents}

    def read_shard(self, shard: int) -> Iterator[TokenFile]:
        """Yield the files of a shard. Raises FormatError if it is damaged or has files of another origin."""
        path = self.shards[shard]
        for key, tokens, info in read_token_shard(path):
            _check_origin(path, key, info, self.origin)
            yield TokenFile(key, tokens, info)


def open_tokens(paths: Sequence[Path], sizes: Sequence[int] | None = None) -> TokenSource:
    """Open the tokens of one run folder, or of single shards in the given order.

    sizes: codebook size of each stream, needed if there is no configuration of a run in the folder or next to the
    shards.

    Raises:
        RunError: the folder is not a tokenization run; shards are missing, empty or given twice; or the sizes are not
            known or differ from the run.
        FormatError: a shard is damaged, or its first file has another configuration than the run.
        FileNotFoundError: a path does not exist.
    """
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise RunError(
            f"{folders[0]} is a folder, given with other inputs; export one run at a time, or give only shards"
        )
    run = _open_run(folders[0] if folders else paths[0].parent, required=bool(folders))
    shards = _planned_shards(run) if folders and run else _distinct(paths)
    first = _first_file(shards)
    origin = {name: first.info.get(name) for name in ORIGIN}
    if run and first.info.get("config_hash") != run.config_hash:
        if folders:
            raise RunError(f"{run.path}: {shards[0].name} was not made with its {CONFIG}; run sctok verify for details")
        run = None  # the shard was copied next to another run
    streams = tuple(origin["streams"] or (f"stream{index}" for index in range(first.tokens.shape[1])))
    found = _known_sizes(run.config if run else {}, streams)
    given = tuple(sizes) if sizes else found
    if given is None:
        raise RunError(
            f"the codebook sizes of {shards[0]} are not known; give the size of each stream with --codebook-sizes"
        )
    if len(given) != len(streams) or found not in (None, given):
        raise RunError(
            f"codebook sizes {given} do not fit the streams {', '.join(streams)} (sizes {found or 'not known'})"
        )
    several = len({path.parent for path in shards}) > 1
    return TokenSource(tuple(shards), streams, given, origin, dict(run.config) if run and not several else None)


def _open_run(folder: Path, required: bool) -> RunFolder | None:
    path = folder / CONFIG
    if not path.exists():
        if required:
            raise RunError(
                f"{folder} is not the folder of a run: it has no {CONFIG}; give a folder that sctok tokenize wrote"
            )
        return None
    config = read_json(path)
    check_format(path, config if isinstance(config, dict) else {}, FORMAT, FORMAT_VERSION)
    if config.get("kind") != "tokens":
        raise RunError(f"{folder} has {config.get('kind')}, not tokens; give a folder that sctok tokenize wrote")
    return RunFolder(folder, config, SUFFIX)


def _planned_shards(run: RunFolder) -> list[Path]:
    planned = run.planned()
    if unfinished := [index for index in planned if not run.finished(index)]:
        raise RunError(
            f"{run.path} is not finished: {shard_names(unfinished)} of {len(planned)} shards are missing; run its "
            "tokenize command again, or give the shards to export"
        )
    return [run.shard_path(index) for index in planned]


def _distinct(paths: Sequence[Path]) -> list[Path]:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise RunError(f"{path} is given twice; its files would be exported twice")
        seen.add(path.resolve())
    return list(paths)


def _first_file(shards: Sequence[Path]) -> TokenFile:
    """Return the first file of all shards; a shard is empty if none of its files could be read."""
    for path in shards:
        for key, tokens, info in read_token_shard(path):
            return TokenFile(key, tokens, info)
    raise RunError(f"nothing to export: there are no tokens in {', '.join(map(str, shards[:3])) or 'the run'}")


def _known_sizes(config: dict[str, Any] | Any, streams: Sequence[str]) -> tuple[int, ...] | None:
    if "codebook_sizes" in config:
        return tuple(config["codebook_sizes"])
    return (config["codebook_size"],) if "codebook_size" in config and len(streams) == 1 else None


def _check_origin(path: Path, key: str, info: dict[str, Any], origin: dict[str, Any]) -> None:
    for name, expected in origin.items():
        if info.get(name) != expected:
            raise FormatError(
                f"{path}: {key!r} has {name.replace('_', ' ')} {info.get(name)}, but the files before it have "
                f"{expected}; export tokens of different origin separately"
            )
