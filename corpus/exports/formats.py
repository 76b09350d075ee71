"""The formats of exported tokens: how each writes one part of an export, and how it completes the export."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sctok.corpus.runs.manifest import json_line
from sctok.formats.files import atomic_path, hash_json, json_text, write_json
from sctok.formats.megatron import MegatronWriter, megatron_dtype
from sctok.formats.npy import GrowingNpy

ROW_GROUP_BYTES = 1 << 23  # of ids in one batch of a Parquet or Arrow file
ROW_GROUP_FILES = 10_000
DEFAULT_PART_BYTES = 1 << 29


@dataclass(frozen=True)
class Document:
    """One exported file: ids int64 (m,) or (m, streams), and durations int64 (n,) if steps were merged."""

    key: str
    ids: npt.NDArray[np.int64]
    durations: npt.NDArray[np.int64] | None
    samples: int
    source: Mapping[str, Any]


@dataclass(frozen=True)
class PartSpec:
    """Properties that all parts of an export share. streams: columns of ids; None if ids are one-dimensional."""

    vocabulary_size: int
    streams: int | None
    durations: bool
    metadata: Mapping[str, Any]


Add = Callable[[Document], None]
OpenPart = Callable[[Path, PartSpec], AbstractContextManager[Add]]
Close = Callable[[Path, Sequence[str], PartSpec], None]


@dataclass(frozen=True)
class ExportFormat:
    """How an export is written.

    open_part(prefix, spec): opens the files of a part, whose names begin with the prefix. dtype(vocabulary size):
    returns the type of the ids. part_bytes: default size of the ids in a part; None writes one part. two_dimensional:
    whether ids may have several columns. close(folder, file names, spec): writes the files of the whole export.
    """

    open_part: OpenPart
    dtype: Callable[[int], np.dtype[np.generic]]
    part_bytes: int | None = None
    two_dimensional: bool = True
    close: Close = field(default=lambda folder, files, spec: None)


def unsigned_dtype(vocabulary_size: int) -> np.dtype[np.generic]:
    """Return the smallest of uint16, uint32 and int64 that holds all ids."""
    return np.dtype("u2" if vocabulary_size <= 1 << 16 else "u4" if vocabulary_size <= 1 << 32 else "i8")


@contextmanager
def _open_files(prefix: Path, *suffixes: str) -> Iterator[list[BinaryIO]]:
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(f"{prefix}{suffix}")) for suffix in suffixes]
        yield [stack.enter_context(path.open("w+b")) for path in paths]


def _text(name: str) -> str:
    """Return text that any format can store: bytes of a file name that are not UTF-8 are escaped, as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _source(document: Document) -> dict[str, Any]:
    return {name: _text(value) if isinstance(value, str) else value for name, value in document.source.items()}


def _row(document: Document) -> dict[str, Any]:
    return {"key": _text(document.key), "samples": document.samples, "source": _source(document)}


class _RaggedNpy:
    """Concatenated arrays of many files, with the offsets of their first rows and the end of the last one."""

    def __init__(self, data: BinaryIO, offsets: BinaryIO, dtype: np.dtype[np.generic], *row: int) -> None:
        self._data = GrowingNpy(data, dtype, row)
        self._offsets = GrowingNpy(offsets, np.dtype("i8"))
        self._mark()

    def _mark(self) -> None:
        self._offsets.append(np.array([self._data.rows]))

    def add(self, rows: npt.NDArray[np.int64]) -> None:
        self._data.append(rows)
        self._mark()

    def finish(self) -> None:
        self._data.finish()
        self._offsets.finish()


class _ArrayWriter(Protocol):
    def add(self, rows: npt.NDArray[np.int64], /) -> None: ...

    def finish(self) -> None: ...


def _array_part(data: str, index: str, make: Callable[[BinaryIO, BinaryIO, PartSpec | None], _ArrayWriter]) -> OpenPart:
    """Return a function that opens a part of arrays: ids, their index, the documents, and durations if there are any.

    data, index: suffixes of the files. make(data file, index file, spec): returns a writer of ids, or of durations if
    the spec is None.
    """

    @contextmanager
    def open_part(prefix: Path, spec: PartSpec) -> Iterator[Add]:
        names = [data, index, ".documents.jsonl"] + [f".durations{data}", f".durations{index}"] * spec.durations
        with _open_files(prefix, *names) as (ids_data, ids_index, documents, *more):
            ids = make(ids_data, ids_index, spec)
            durations = make(more[0], more[1], None) if more else None

            def add(document: Document) -> None:
                ids.add(document.ids)
                documents.write(json_line(_row(document)))
                if durations is not None and document.durations is not None:
                    durations.add(document.durations)

            yield add
            ids.finish()
            if durations is not None:
                durations.finish()

    return open_part


def _megatron_writer(data: BinaryIO, index: BinaryIO, spec: PartSpec | None) -> _ArrayWriter:
    return MegatronWriter(data, index, np.dtype("<i4") if spec is None else megatron_dtype(spec.vocabulary_size))


def _npy_writer(data: BinaryIO, offsets: BinaryIO, spec: PartSpec | None) -> _ArrayWriter:
    if spec is None:
        return _RaggedNpy(data, offsets, np.dtype("u4"))
    row = () if spec.streams is None else (spec.streams,)
    return _RaggedNpy(data, offsets, unsigned_dtype(spec.vocabulary_size), *row)


@contextmanager
def _jsonl_part(prefix: Path, spec: PartSpec) -> Iterator[Add]:
    with _open_files(prefix, ".jsonl") as (lines,):

        def add(document: Document) -> None:
            more = {} if document.durations is None else {"durations": document.durations.tolist()}
            lines.write(json_line({**_row(document), "tokens": document.ids.tolist(), **more}))

        yield add


@contextmanager
def _km_part(prefix: Path, spec: PartSpec) -> Iterator[Add]:
    names = [".km", ".tsv"] + [".dur"] * spec.durations
    with _open_files(prefix, *names) as (labels, manifest, *more):
        manifest.write(b"/\n")

        def add(document: Document) -> None:
            labels.write(_numbers(document.ids))
            manifest.write(f"{_audio_path(document)}\t{document.samples}\n".encode("utf-8", "surrogateescape"))
            if more and document.durations is not None:
                more[0].write(_numbers(document.durations))

        yield add


def _audio_path(document: Document) -> str:
    """Return the path of a file relative to /, on one line without tabs; its key if it was part of a tar."""
    path = str(document.source.get("path") or "")
    if not path or path.endswith(".tar"):
        path = document.key
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", path.lstrip("/"))


def _numbers(values: npt.NDArray[np.int64]) -> bytes:
    return (" ".join(map(str, values.tolist())) + "\n").encode("ascii")


def _close_km(folder: Path, files: Sequence[str], spec: PartSpec) -> None:
    with atomic_path(folder / "dict.km.txt") as temporary, temporary.open("w", encoding="ascii") as out:
        out.writelines(f"{number} 1\n" for number in range(spec.vocabulary_size))


def _arrow_schema(spec: PartSpec) -> Any:
    import pyarrow as pa

    ids = pa.from_numpy_dtype(unsigned_dtype(spec.vocabulary_size))
    columns = {
        "key": pa.string(),
        "tokens": pa.list_(ids if spec.streams is None else pa.list_(ids, spec.streams)),
        **({"durations": pa.list_(pa.uint32())} if spec.durations else {}),
        "samples": pa.int64(),
        "source": pa.string(),
    }
    return pa.schema(list(columns.items()), {"sctok": json_text(dict(spec.metadata))})


def _arrow_batch(schema: Any, documents: Sequence[Document]) -> Any:
    import pyarrow as pa

    def lists(name: str, arrays: Sequence[npt.NDArray[np.int64]]) -> Any:
        kind = schema.field(name).type
        joined = np.concatenate(arrays).reshape(-1)
        values = pa.array(joined, safe=True)
        inner = kind.value_type
        if pa.types.is_fixed_size_list(inner):
            values = pa.FixedSizeListArray.from_arrays(values.cast(inner.value_type), inner.list_size)
        else:
            values = values.cast(inner)
        offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values).cast(kind)

    durations = [document.durations for document in documents if document.durations is not None]
    columns = [
        pa.array([_text(document.key) for document in documents], pa.string()),
        lists("tokens", [document.ids for document in documents]),
        *([lists("durations", durations)] if durations else []),
        pa.array([document.samples for document in documents], pa.int64()),
        pa.array([json_text(_source(document)) for document in documents], pa.string()),
    ]
    return pa.record_batch(columns, schema=schema)


def _arrow_part(kind: Literal["parquet", "arrow"]) -> OpenPart:
    @contextmanager
    def open_part(prefix: Path, spec: PartSpec) -> Iterator[Add]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _arrow_schema(spec)
        waiting: list[Document] = []
        waiting_bytes = 0

        def flush() -> None:
            nonlocal waiting_bytes
            if waiting:
                writer.write_batch(_arrow_batch(schema, waiting))
            waiting.clear()
            waiting_bytes = 0

        def add(document: Document) -> None:
            nonlocal waiting_bytes
            waiting.append(document)
            waiting_bytes += document.ids.nbytes
            if waiting_bytes >= ROW_GROUP_BYTES or len(waiting) >= ROW_GROUP_FILES:
                flush()

        with _open_files(prefix, f".{kind}") as (file,):
            if kind == "parquet":
                writer: Any = pq.ParquetWriter(file, schema, compression="zstd")
            else:
                writer = pa.ipc.new_stream(file, schema)
            with writer:
                yield add
                flush()

    return open_part


def _close_for_hub(pattern: str) -> Close:
    """Return a function that writes a dataset card, which names the data files for `datasets.load_dataset`."""

    def close(folder: Path, files: Sequence[str], spec: PartSpec) -> None:
        card = f'---\nconfigs:\n- config_name: default\n  data_files: "{pattern}"\n---\n'
        with atomic_path(folder / "README.md") as temporary:
            temporary.write_text(f"{card}\nAudio tokens; `export.json` says what made them.\n", encoding="ascii")

    return close


def _close_hf_dataset(folder: Path, files: Sequence[str], spec: PartSpec) -> None:
    """Write the metadata for `datasets.load_from_disk`; it reads the types of columns from the Arrow files."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": hash_json(spec.metadata),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    write_json(folder / "dataset_info.json", {"citation": "", "description": "", "homepage": "", "license": ""})


FORMATS: dict[str, ExportFormat] = {
    "parquet": ExportFormat(
        _arrow_part("parquet"), unsigned_dtype, DEFAULT_PART_BYTES, close=_close_for_hub("*.parquet")
    ),
    "megatron": ExportFormat(_array_part(".bin", ".idx", _megatron_writer), megatron_dtype, two_dimensional=False),
    "jsonl": ExportFormat(_jsonl_part, unsigned_dtype, DEFAULT_PART_BYTES, close=_close_for_hub("*.jsonl")),
    "km": ExportFormat(_km_part, unsigned_dtype, two_dimensional=False, close=_close_km),
    "npy": ExportFormat(_array_part(".npy", ".offsets.npy", _npy_writer), unsigned_dtype),
    "hf-dataset": ExportFormat(_arrow_part("arrow"), unsigned_dtype, DEFAULT_PART_BYTES, close=_close_hf_dataset),
}
