"""Export tokens to training formats of language models, in parts, so that an interrupted export can resume.

An export is written to `<folder>.partial`: the files of finished parts, and a journal that lists them. At the end the
files move to `<folder>` in one step, so that a folder of that name is always a complete export.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import sctok
from sctok.corpus.runs.events import DocumentExported, ExportListener, ExportPlanned, ShardExported, ignore_events
from sctok.corpus.runs.locks import try_lock
from sctok.corpus.runs.run_folder import RunError
from sctok.formats.files import FormatError, hash_json, json_text, read_json, sync_folder, write_json
from sctok.formats.layouts import LAYOUTS, StreamLayout, deduplicate, make_layout
from sctok.formats.untrusted.bounds import max_input_bytes

from .formats import FORMATS, Document, PartSpec
from .sources import TokenFile, TokenSource

EXPORT = "export.json"
EXPORT_FORMAT = "sctok-export"
EXPORT_VERSION = 1
JOURNAL = "journal.json"
_CONTENTS = "contents_hash"  # of the inputs; absent in exports of earlier versions


@dataclass(frozen=True)
class ExportConfig:
    """The settings of an export.

    to: one of `FORMATS`. layout: one of `LAYOUTS`. streams: names of the streams to export, in this order; None exports
    all. offsets, pad, end: see `make_layout`. dedup: merge consecutive steps that are equal in all exported streams,
    and store their durations. part_bytes: bytes of ids after which a part ends with the current file; None takes the
    default of the format.

    Raises RunError for values out of range, and if the format cannot store the layout.
    """

    to: str
    layout: str = "flat"
    streams: tuple[str, ...] | None = None
    offsets: tuple[int, ...] | None = None
    pad: int | None = None
    end: int | bool = False
    dedup: bool = False
    part_bytes: int | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("format", self.to, FORMATS), ("layout", self.layout, LAYOUTS)):
            if value not in known:
                raise RunError(f"unknown {what} {value!r}; use one of {', '.join(known)}")
        if self.layout == "parallel" and not FORMATS[self.to].two_dimensional:
            others = ", ".join(name for name, form in FORMATS.items() if form.two_dimensional)
            raise RunError(
                f"{self.to} stores one sequence of ids per file, not parallel streams; use another layout, choose one "
                f"stream, or export to {others}"
            )
        if self.part_bytes is not None and self.part_bytes < 1:
            raise RunError(f"the size of a part must be at least 1 byte, not {self.part_bytes}")

    def place(self, source: TokenSource) -> "Placement":
        """Return the placement of the tokens. Raises RunError for streams, offsets or ids that do not fit."""
        names = self.streams or source.streams
        if not set(names) <= set(source.streams) or len(set(names)) < len(names):
            raise RunError(f"streams {', '.join(names)} are not all among {', '.join(source.streams)}")
        columns = tuple(map(source.streams.index, names))
        sizes = [source.sizes[column] for column in columns]
        flattened = self.layout == "delayed" and not FORMATS[self.to].two_dimensional
        try:
            layout = make_layout(
                self.layout, sizes, offsets=self.offsets, pad=self.pad, end=self.end, flattened=flattened
            )
        except ValueError as error:
            raise RunError(str(error)) from None
        return Placement(columns, layout, self.dedup)


@dataclass(frozen=True)
class Placement:
    """The columns of the tokens to export, their layout, and whether equal steps are merged first."""

    columns: tuple[int, ...]
    layout: StreamLayout
    dedup: bool

    def document(self, file: TokenFile) -> Document:
        """Return the exported form of a file. Raises ValueError if a token lies outside its codebook."""
        tokens, durations = file.tokens[:, self.columns], None
        if self.dedup:
            tokens, durations = deduplicate(tokens)
        info = file.info
        return Document(file.key, self.layout.apply(tokens), durations, info.get("samples", 0), info.get("source", {}))


@dataclass(frozen=True)
class ExportResult:
    """A complete export. existed: whether it existed before. ids: in all documents. steps: before merging."""

    folder: Path
    documents: int
    ids: int
    steps: int
    samples: int
    parts: int
    bytes: int
    vocabulary_size: int
    existed: bool


def export_tokens(
    source: TokenSource, folder: Path, config: ExportConfig, progress: ExportListener = ignore_events
) -> ExportResult:
    """Write tokens to `folder` in another format, resume that, or return an existing export.

    The bytes depend only on the tokens, `config`, and the versions of sctok and pyarrow.

    Args:
        source: the result of `open_tokens`.
        folder: of the export; it must be absent, empty, or have this export.
        progress: receives ExportPlanned, DocumentExported and ShardExported.

    Raises:
        RunError: the configuration does not fit the tokens, the folder has other contents, or another process is
            exporting to it.
        FormatError: a shard is damaged or of another origin; finished parts are kept.
        DiskFullError: finished parts are kept; the same call resumes.
    """
    placement = config.place(source)
    facts = _describe(source, config, placement)
    partial = folder.with_name(f"{folder.name}.partial")
    found = _find_export(folder, facts)
    if found is not None and not partial.exists():
        return _result(folder, found, existed=True)
    partial.mkdir(parents=True, exist_ok=True)
    claim = try_lock(partial / "lock")
    if claim is None:
        raise RunError(f"another process is exporting to {folder}; wait until it ends, or give another folder")
    with claim:
        found = _find_export(folder, facts)  # another process may have completed it before the lock was free
        if found is None:
            try:
                _Exporter(source, placement, config.to, partial, facts, progress).run()
            except BaseException:
                if not (partial / JOURNAL).exists():  # there is nothing to resume from
                    shutil.rmtree(partial)
                raise
            (partial / "data").replace(folder)
            sync_folder(folder.parent)
        shutil.rmtree(partial)
    return _result(folder, read_json(folder / EXPORT, max_input_bytes()), existed=found is not None)


def _describe(source: TokenSource, config: ExportConfig, placement: Placement) -> dict[str, Any]:
    """Return everything that determines the bytes of an export, as JSON values."""
    form, layout = FORMATS[config.to], placement.layout
    facts = {
        "format": EXPORT_FORMAT,
        "format_version": EXPORT_VERSION,
        "to": config.to,
        "streams": [source.streams[column] for column in placement.columns],
        "layout": layout.to_json(),
        "vocabulary_size": layout.vocabulary_size,
        "dtype": form.dtype(layout.vocabulary_size).name,
        "dedup": config.dedup,
        "part_bytes": config.part_bytes or form.part_bytes,
        "origin": source.origin,
        "run": source.run,
        "inputs": source.identity(),
    }
    return json.loads(json_text(facts))


def _find_export(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return `export.json` of the export in a folder; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    found = read_json(folder / EXPORT, max_input_bytes()) if (folder / EXPORT).is_file() else None
    if not isinstance(found, dict) or found.get("format") != EXPORT_FORMAT:
        raise RunError(f"{folder} is not empty and not an export of tokens; give another folder")
    if differing := [name.replace("_", " ") for name in facts if not _agree(found.get(name), facts[name])]:
        raise RunError(f"{folder} has an export with other {', '.join(differing)}; delete it, or give another folder")
    return found


def _agree(found: Any, asked: Any) -> bool:
    """Return whether two facts are equal; hashes of contents are compared only if both facts have one."""
    if isinstance(found, dict) and isinstance(asked, dict) and None in (found.get(_CONTENTS), asked.get(_CONTENTS)):
        return {**found, _CONTENTS: None} == {**asked, _CONTENTS: None}
    return bool(found == asked)


def _result(folder: Path, found: dict[str, Any], *, existed: bool) -> ExportResult:
    size = sum(file["bytes"] for file in found["files"].values())
    counts = {name: found[name] for name in ("documents", "ids", "steps", "samples", "parts", "vocabulary_size")}
    return ExportResult(folder=folder, bytes=size, existed=existed, **counts)


@dataclass
class _Part:
    """A part: its files with size and SHA-256, counts of its contents, and the next shard and file to export."""

    files: dict[str, dict[str, Any]]
    documents: int
    ids: int
    steps: int
    samples: int
    following: list[int]


class _Exporter:
    """Writes the parts that the journal does not list, and the files that complete the export."""

    def __init__(
        self,
        source: TokenSource,
        placement: Placement,
        to: str,
        partial: Path,
        facts: dict[str, Any],
        progress: ExportListener,
    ) -> None:
        layout = placement.layout
        self._source, self._placement, self._facts, self._progress = source, placement, facts, progress
        self._form, self._data, self._journal = FORMATS[to], partial / "data", partial / JOURNAL
        streams = len(layout.sizes) if layout.dimensions == 2 else None
        self._spec = PartSpec(layout.vocabulary_size, streams, placement.dedup, facts)
        self._id_bytes = self._form.dtype(layout.vocabulary_size).itemsize
        self._hash = hash_json({**facts, "sctok_version": sctok.__version__})
        self._parts: list[_Part] = []

    def run(self) -> None:
        """Complete the export in the folder `data`."""
        self._resume()
        shard, done = self._parts[-1].following if self._parts else (0, 0)
        self._progress(ExportPlanned(len(self._source.shards) - shard))
        files = self._files(shard, done)
        for first in files:
            self._parts.append(self._write_part(chain([first], files)))
            write_json(self._journal, {"hash": self._hash, "parts": [asdict(part) for part in self._parts]})
        self._close()

    def _resume(self) -> None:
        """Load the journal if it belongs to this export, and remove files that it does not list."""
        self._data.mkdir(exist_ok=True)
        found = read_json(self._journal, max_input_bytes()) if self._journal.exists() else {}
        if found.get("hash") == self._hash:
            self._parts = [_Part(**part) for part in found["parts"]]
        listed = {name: facts["bytes"] for part in self._parts for name, facts in part.files.items()}
        existing = {path.name: path.stat().st_size for path in self._data.iterdir()}
        if not listed.items() <= existing.items():
            self._parts, listed = [], {}
        for path in self._data.iterdir():
            if path.name not in listed:
                path.unlink()

    def _files(self, shard: int, done: int) -> Iterator[tuple[int, int, TokenFile]]:
        """Yield (shard, number in the shard, file) from file `done` of a shard on."""
        for index in range(shard, len(self._source.shards)):
            start = done if index == shard else 0
            for number, file in enumerate(islice(self._source.read_shard(index), start, None), start):
                yield index, number, file
            self._progress(ShardExported())

    def _write_part(self, files: Iterator[tuple[int, int, TokenFile]]) -> _Part:
        limit = self._facts["part_bytes"]
        prefix = self._data / ("tokens" if limit is None else f"tokens-{len(self._parts):05d}")
        part = _Part({}, 0, 0, 0, 0, [len(self._source.shards), 0])
        with self._form.open_part(prefix, self._spec) as add:
            for shard, number, file in files:
                document = self._document(shard, file)
                add(document)
                part.documents += 1
                part.ids += document.ids.size
                part.steps += len(file.tokens)
                part.samples += document.samples
                self._progress(DocumentExported(document.ids.size))
                if limit is not None and part.ids * self._id_bytes >= limit:
                    part.following = [shard, number + 1]
                    break
        part.files = {path.name: _measure(path) for path in sorted(self._data.glob(f"{prefix.name}.*"))}
        return part

    def _document(self, shard: int, file: TokenFile) -> Document:
        try:
            return self._placement.document(file)
        except ValueError as error:
            raise FormatError(f"{self._source.shards[shard]}: {file.key!r}: {error}") from None

    def _close(self) -> None:
        files = {name: facts for part in self._parts for name, facts in part.files.items()}
        self._form.close(self._data, list(files), self._spec)
        files |= {path.name: _measure(path) for path in sorted(self._data.iterdir()) if path.name not in files}
        counts = {
            name: sum(getattr(part, name) for part in self._parts) for name in ("documents", "ids", "steps", "samples")
        }
        more = {"sctok_version": sctok.__version__, "parts": len(self._parts), "files": files}
        write_json(self._data / EXPORT, {**self._facts, **counts, **more})


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
