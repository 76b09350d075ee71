"""Verify a folder: reread every byte of all runs and codebooks in it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from sctok.audio.windows import PATCH_ROWS, SAMPLE_RATE, audio_columns, token_count
from sctok.corpus.runs.checksums import RECORD_SUFFIX, measure_shard, read_record
from sctok.corpus.runs.manifest import Failure, json_line
from sctok.corpus.runs.run_folder import (
    CONFIG,
    FAILED,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SHA256,
    STAGED_MANIFEST,
    SUMMARY,
    RunError,
    RunFolder,
    Shard,
)
from sctok.corpus.runs.sharding import describe_source
from sctok.formats.codebooks import find_codebooks, load_named_codebook
from sctok.formats.feature_shards import FEATURES_VERSION, FeatureShard
from sctok.formats.files import FormatError, json_text, read_json
from sctok.formats.stacking import stack_factor
from sctok.formats.token_shards import TOKENS_VERSION, read_token_shard

from . import extraction, tokenization

_KINDS = {
    "features": (extraction.SUFFIX, "features_version", FEATURES_VERSION, extraction.summarise),
    "tokens": (tokenization.SUFFIX, "tokens_version", TOKENS_VERSION, tokenization.summarise),
}
Report = Callable[[str], None]


@dataclass
class Verification:
    """Counts of what was read, faults (one line each, naming the file), and notes on what could not be checked."""

    runs: int = 0
    codebooks: int = 0
    shards: int = 0
    files: int = 0
    failed: int = 0
    bytes: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_folder(folder: Path, progress: Report = lambda name: None) -> Verification:
    """Read all runs and codebooks in a folder and its subfolders, and check that they are complete and unchanged.

    For a run, check the configuration, the manifest and the lists of failures. Check that each planned shard exists,
    has the bytes of its checksum, and holds exactly the planned inputs that did not fail. Check that their tokens lie
    inside the codebook, or that their rows are as written, that their number fits the samples, and that sources match
    the manifest. Check that the summary agrees, including the checksums of the manifest, the configuration and the
    records. Runs of versions without those checksums are noted. Nothing is written: the folder may be read-only.

    Args:
        folder: a run, a folder of codebooks, or a folder that contains them.
        progress: receives the path of each file before it is read.

    Raises:
        RunError: there is nothing to verify.
    """
    result = Verification()
    for place, _, names in os.walk(folder):
        path = Path(place)
        if CONFIG in names:
            result.runs += 1
            result.faults += _faults(_Checker(path, result, progress).check)
        else:
            for book in find_codebooks(path):
                progress(str(book.path))
                result.codebooks += 1
                result.bytes += book.path.stat().st_size
                result.faults += _faults(partial(load_named_codebook, book.path))
            if any(name.endswith(RECORD_SUFFIX) for name in names):
                result.faults.append(f"{path}: has shards but no {CONFIG}; run the same command again")
    if not result.runs and not result.codebooks and not result.faults:
        raise RunError(f"{folder} has neither a run nor codebooks; give a folder of features, tokens or codebooks")
    return result


def _faults(action: Callable[[], Any]) -> list[str]:
    """Return the fault that an action raises, if any."""
    try:
        action()
    except (FormatError, RunError) as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    return []


class _Checker:
    """Verifies one run folder."""

    def __init__(self, path: Path, result: Verification, progress: Report) -> None:
        self._path = path
        self._result = result
        self._progress = progress

    def _try(self, action: Callable[[], Any]) -> bool:
        found = _faults(action)
        self._result.faults += found
        return not found

    def _fault(self, path: Path, text: str) -> None:
        self._result.faults.append(f"{path}: {text}")

    def check(self) -> None:
        """Add the contents and the faults of the folder to the result. Raises FormatError for a fault that ends it."""
        config = read_json(self._path / CONFIG)
        kind = config.get("kind") if isinstance(config, dict) and config.get("format") == FORMAT else None
        if kind not in _KINDS or config.get("format_version") != FORMAT_VERSION:
            raise FormatError(f"{self._path / CONFIG}: is not a configuration that this version of sctok knows")
        suffix, name, version, summarise = _KINDS[kind]
        if config.get(name) != version:
            raise FormatError(f"{self._path / CONFIG}: has version {config.get(name)} of {kind}, not {version}")
        run = RunFolder(self._path, config, suffix)
        _check_config(run)
        if (run.path / STAGED_MANIFEST).exists():
            self._fault(run.path, "a refresh of its inputs was interrupted; run the same command again")
        planned: dict[int, None] = {}
        complete = True
        for shard in run.shards():
            if planned and shard.index <= next(reversed(planned)):
                self._fault(run.path / MANIFEST, f"plans shard {shard.index} in two places, or out of order")
            planned[shard.index] = None
            complete &= self._check_shard(run, shard)
        for index in run.existing_shards():
            if index not in planned:
                complete = False
                self._fault(run.shard_path(index), "is not in the manifest")
        count = sum(1 for _ in run.failures())
        self._result.failed += count
        if complete:
            self._check_failures(run.path / FAILED, run.failures())
            self._check_summary(run, list(planned), summarise(run, list(planned), count).to_json())

    def _check_failures(self, path: Path, failures: Iterable[Failure]) -> None:
        wanted = (json_line(failure.to_json()) for failure in failures)
        with path.open("rb") if path.exists() else nullcontext(()) as lines:
            if not path.exists() or any(line != other for line, other in zip_longest(lines, wanted)):
                self._fault(path, "does not list the failed inputs; run the same command again")

    def _check_summary(self, run: RunFolder, shards: list[int], summary: dict[str, Any]) -> None:
        path = run.path / SUMMARY
        found = read_json(path) if path.exists() else None
        if not isinstance(found, dict) or found.keys() - {SHA256} != summary.keys():
            self._fault(path, "does not agree with the shards; run the same command again")
            return
        if SHA256 in found or any(read_record(run.record_path(index)).inputs for index in shards):
            actual, recorded = run.hash_plan(shards), found.get(SHA256)
            for name, value in actual.items():
                if not isinstance(recorded, dict) or recorded.get(name) != value:
                    self._fault(
                        run.path / name,
                        f"was changed after the run ended: SHA-256 {value[:16]}… differs from {SUMMARY}; restore it",
                    )
            summary = {**summary, SHA256: actual}
        else:
            self._result.notes.append(
                f"{path}: was written by a version without checksums of manifest and configuration"
            )
        if path.read_text(encoding="utf-8", errors="replace") != json_text(summary, indent=2) + "\n":
            self._fault(path, "does not agree with the shards; run the same command again")

    def _check_shard(self, run: RunFolder, shard: Shard) -> bool:
        path = run.shard_path(shard.index)
        if not run.finished(shard.index):
            again = ", some to be tried again" if path.exists() else ""
            self._fault(path, f"is not finished: {len(shard.items)} files are planned{again}; run the command again")
            return False
        self._progress(str(path))
        self._result.shards += 1
        failed: set[str] = set()
        keys: list[str] = []

        def read() -> None:
            failures = list(run.shard_failures(shard.index))
            failed.update(failure.key for failure in failures)
            if failures:
                self._check_failures(run.failures_path(shard.index), failures)
            sources = {item.key: describe_source(item) for item in shard.items}
            for key, source in (_read_features if run.suffix == extraction.SUFFIX else _read_tokens)(run, path):
                if sources.get(key, source) != source:
                    raise FormatError(f"{run.path / MANIFEST}: names another source of {key!r} than {path}")
                keys.append(key)
            wanted = [item.key for item in shard.items if item.key not in failed]
            if keys != wanted:
                raise FormatError(f"{path}: {_difference(keys, wanted)}; delete {path.stem}.* and run again")

        complete = self._try(read)
        complete &= self._try(lambda: self._check_record(run, shard, path, keys))
        self._result.files += len(keys)
        return complete

    def _check_record(self, run: RunFolder, shard: Shard, path: Path, keys: list[str]) -> None:
        found = measure_shard(path, keys)
        self._result.bytes += found.bytes
        record = run.record_path(shard.index)
        recorded = read_record(record)
        if (found.bytes, found.sha256) != (recorded.bytes, recorded.sha256):
            raise FormatError(
                f"{path}: its bytes were changed: SHA-256 {found.sha256[:16]}… of {found.bytes} bytes, not "
                f"{recorded.sha256[:16]}… of {recorded.bytes} bytes; delete {path.stem}.* and run again"
            )
        if recorded.inputs not in (None, shard.inputs_hash):
            raise FormatError(
                f"{run.path / MANIFEST}: plans other inputs for {path.name} than it was made from; restore it"
            )
        if (
            record.read_text(encoding="ascii")
            != json_text(replace(found, inputs=recorded.inputs, contents=recorded.contents).to_json(), indent=2) + "\n"
        ):
            raise FormatError(f"{record}: does not agree with {path.name}; delete it and run again")


def _check_config(run: RunFolder) -> None:
    """Raise FormatError unless a configuration has everything that shards are compared with."""
    path, config = run.path / CONFIG, run.config
    features = run.suffix == extraction.SUFFIX
    names = (*extraction.PROVENANCE, "width", "tokens_per_clip") if features else (*tokenization.INFO, "token_rate")
    if missing := [name for name in names if name not in config]:
        raise FormatError(f"{path}: lacks {', '.join(missing)}; restore it")
    try:
        if not features:
            stack_factor(config["token_rate"])
            np.array(tokenization.stream_sizes(run), np.int64)
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{path}: is not a configuration of tokens ({error}); restore it") from None


def _difference(found: list[str], wanted: list[str]) -> str:
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    if missing:
        return f"lacks {len(missing)} of the planned files, such as {min(missing)!r}"
    if extra:
        return f"holds {len(extra)} files that are not planned, such as {min(extra)!r}"
    return "holds its files in another order, or one file twice"


def _expect(path: Path, key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise FormatError(f"{path}: {key}: {name} is {found.get(name)!r}, not {value!r}")


def _read_tokens(run: RunFolder, path: Path) -> Iterator[tuple[str, Any]]:
    """Check the tokens of each file in a token shard, and yield its key and source."""
    config = run.config
    stack = stack_factor(config["token_rate"])
    wanted = {name: config[name] for name in tokenization.INFO}
    wanted |= {"sample_rate": SAMPLE_RATE, "config_hash": run.config_hash}
    sizes = np.array(tokenization.stream_sizes(run), np.int64)
    for key, tokens, info in read_token_shard(path):
        _expect(path, key, info, wanted)
        samples = info.get("samples")
        if not isinstance(samples, int) or tokens.shape != (token_count(samples, stack), len(sizes)):
            raise FormatError(f"{path}: {key}: its tokens {tokens.shape} do not fit its {samples} samples")
        if (tokens.astype(np.int64) >= sizes).any():
            raise FormatError(f"{path}: {key}: a token lies outside its codebook of {sizes.tolist()}")
        yield key, info.get("source")


def _read_features(run: RunFolder, path: Path) -> Iterator[tuple[str, Any]]:
    """Check the rows of a feature shard, and yield the key and source of each file."""
    config = run.config
    with FeatureShard(path) as shard:
        wanted = {name: config[name] for name in extraction.PROVENANCE} | {"config_hash": run.config_hash}
        _expect(path, "its attributes", shard.provenance, wanted)
        if shard.width != config["width"]:
            raise FormatError(f"{path}: its rows have {shard.width} values, not {config['width']}")
        shard.verify()
        for clip in shard.clips:
            rows = audio_columns(clip.samples) * PATCH_ROWS
            if clip.rows > rows or (config["tokens_per_clip"] is None and clip.rows != rows):
                raise FormatError(f"{path}: {clip.key}: its {clip.rows} rows do not fit its {clip.samples} samples")
            yield clip.key, clip.metadata
