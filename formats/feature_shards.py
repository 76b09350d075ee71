"""HDF5 feature shards: the unstacked patch embeddings of many clips, and the table of their rows."""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

import sctok
from sctok.formats.untrusted.bounds import parse_json
from sctok.formats.untrusted.hdf5 import iter_rows, open_dataset, read_attribute

from .feature_hashes import ClipRows, ContentHash, Seal
from .files import (
    FormatError,
    atomic_path,
    check_format,
    damaged,
    disk_errors,
    foreign,
    is_key,
    json_text,
)
from .hdf5_rows import RowFile, chunk_rows
from .stacking import PATCHES_PER_COLUMN, stack_patches, token_rate

FEATURES_FORMAT = "sctok-features"
FEATURES_VERSION = 1
SAMPLE_RATE = 16_000  # of `ClipRows.samples`

_ATTRIBUTES = ("format", "format_version", "provenance", "content_hash", "encoder_hash")
_REMEDY = "run sctok extract again"
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)  # errors of h5py for damage
_STRING = h5py.string_dtype()
_CLIP_TABLE = np.dtype(
    [("key", _STRING), ("first_row", "<i8"), ("rows", "<i8"), ("samples", "<i8"), ("metadata", _STRING)]
)


class FeatureShardWriter:
    """Write one feature shard. A context manager: the file appears at `path` only if the block ends without an error.

    width: values of one patch embedding. provenance: JSON values with `encoder` and `encoder_hash`, and optionally
    `config_hash` and `sctok_version` (default: this version).

    Add one clip at a time, whole (`add_clip`) or streamed (`begin_clip`, `append_rows` …, `finish_clip`). Memory holds
    one chunk of rows (at most 1 MiB) and the clip table. Equal clips and provenance give equal bytes, however the calls
    split the rows.

    Raises ValueError for an invalid width or provenance; DiskFullError.
    """

    def __init__(self, path: str | os.PathLike[str], *, width: int, provenance: Mapping[str, Any]) -> None:
        if width < 1:
            raise ValueError(f"{path}: feature width {width} is not positive")
        for name in ("encoder", "encoder_hash"):
            if not provenance.get(name):
                raise ValueError(f"{path}: the provenance of features must name {name}")
        self.path = Path(path)
        self.width = width
        self.provenance = {"config_hash": "", "sctok_version": sctok.__version__, **provenance}
        self._provenance_json = json_text(self.provenance)
        self._clips: list[ClipRows] = []
        self._keys: set[str] = set()
        self._open_clip: tuple[str, int] | None = None  # key and first row
        self._rows: RowFile | None = None
        self._hash = ContentHash()
        self._exit = contextlib.ExitStack()

    @property
    def rows(self) -> int:
        """Rows so far, including those of an open clip."""
        return self._row_file().rows

    @property
    def clips(self) -> tuple[ClipRows, ...]:
        """The clips finished so far."""
        return tuple(self._clips)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._rows = RowFile(temporary, self.width)
            stack.callback(self._rows.abandon)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._exit.__exit__(kind, error, trace)
            return
        with self._exit:
            if self._open_clip is not None:
                raise ValueError(f"{self.path}: clip {self._open_clip[0]!r} was neither finished nor discarded")
            with disk_errors(self.path):
                self._row_file().close(self._write_tables)

    def add_clip(
        self, key: str, features: npt.ArrayLike, samples: int, metadata: Mapping[str, Any] | None = None
    ) -> ClipRows:
        """Add a whole clip: `features` (8·columns, width) of any float type, `samples` at 16 kHz, JSON metadata.

        Raises as `begin_clip`, `append_rows` and `finish_clip`; the shard stays usable, without the clip.
        """
        self.begin_clip(key)
        try:
            self.append_rows(features)
            return self.finish_clip(samples, metadata)
        except FormatError:
            self.discard_clip()
            raise

    def begin_clip(self, key: str) -> None:
        """Begin the clip `key`. Raises FormatError for a key that is empty, has a NUL or is in the shard already."""
        if self._open_clip is not None:
            raise ValueError(f"{self.path}: clip {self._open_clip[0]!r} is still open")
        if not is_key(key):
            raise FormatError(f"{self.path}: {key!r} cannot be the key of a clip; rename the file")
        if key in self._keys:
            raise FormatError(f"{self.path}: the key {key!r} occurs twice; give every clip its own key")
        self._open_clip = (key, self.rows)

    def append_rows(self, features: npt.ArrayLike) -> None:
        """Append rows (n, width), any n, to the open clip, rounded to float16.

        Raises FormatError for another shape and for values that float16 cannot hold (NaN, infinity, beyond ±65504).
        Then nothing is appended and the clip stays open: finish or discard it.
        """
        key, _ = self._clip_in_progress()
        given = np.asarray(features)
        if given.ndim != 2 or given.shape[1] != self.width:
            raise FormatError(f"{self.path}: features of clip {key!r} have shape {given.shape}, not (n, {self.width})")
        with np.errstate(over="ignore"):
            half = given.astype("<f2")
        if not np.isfinite(half).all():
            what = "are not finite" if not np.isfinite(given).all() else "are too large for float16 (above 65504)"
            raise FormatError(f"{self.path}: features of clip {key!r} {what}; check the encoder and that audio file")
        with disk_errors(self.path):
            self._row_file().append(half)
        self._hash.add(half)

    def finish_clip(self, samples: int, metadata: Mapping[str, Any] | None = None) -> ClipRows:
        """Finish the open clip of `samples` samples at 16 kHz and return its entry in the table.

        Raises FormatError if its rows are not whole columns of 8 or the metadata is not JSON; the clip stays open.
        """
        key, first = self._clip_in_progress()
        rows = self.rows - first
        if rows % PATCHES_PER_COLUMN:
            raise FormatError(f"{self.path}: clip {key!r} has {rows} rows, not whole columns of {PATCHES_PER_COLUMN}")
        try:
            plain = json.loads(json_text(dict(metadata or {})))
        except FormatError as error:
            raise FormatError(f"{self.path}: metadata of clip {key!r}: {error}") from None
        clip = ClipRows(key, first, rows, int(samples), plain)
        self._hash.keep()
        self._clips.append(clip)
        self._keys.add(key)
        self._open_clip = None
        return clip

    def discard_clip(self) -> None:
        """Discard the open clip and its rows."""
        _, first = self._clip_in_progress()
        with disk_errors(self.path):
            self._row_file().truncate(first)
        self._hash.drop()
        self._open_clip = None

    def _clip_in_progress(self) -> tuple[str, int]:
        if self._open_clip is None:
            raise ValueError(f"{self.path}: no clip is open; call begin_clip first")
        return self._open_clip

    def _row_file(self) -> RowFile:
        if self._rows is None:
            raise ValueError(f"{self.path}: the writer works only inside a with block")
        return self._rows

    def _write_tables(self, file: h5py.File) -> None:
        attributes = {
            "format": FEATURES_FORMAT,
            "format_version": np.int64(FEATURES_VERSION),
            **{
                name: str(self.provenance[name]) for name in ("encoder", "encoder_hash", "config_hash", "sctok_version")
            },
            "provenance": self._provenance_json,
            "content_hash": self._hash.value(self.width, self._clips),
        }
        for name, value in attributes.items():
            file.attrs[name] = value
        table = np.empty(len(self._clips), _CLIP_TABLE)
        for index, clip in enumerate(self._clips):
            key = clip.key.encode("utf-8", "surrogateescape")
            table[index] = (key, clip.first_row, clip.rows, clip.samples, json_text(clip.metadata))
        file.create_dataset("clips", data=table, track_times=False)


class FeatureShard:
    """Read one feature shard. A context manager; any number of readers may open a shard at once.

    width: values of one patch embedding. rows: number of patch embeddings. clips: tuple of ClipRows in row order.
    provenance: as given to `FeatureShardWriter`. encoder_hash: of the encoder's weights. content_hash: of the rows and
    the clip table when they were written; `verify` compares it with the file.

    Each byte is checked before it is used: the attributes, the clip table and the structure of HDF5 against one CRC-32
    when the file is opened, each chunk of rows (at most 1 MiB) against its own when it is read. Shards of versions
    without checksums are read unchecked.

    Raises FileNotFoundError; FormatError if the file is not a feature shard, truncated, damaged, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            if file.read(8) != b"\x89HDF\r\n\x1a\n":
                raise foreign(path, FEATURES_FORMAT)
        try:
            self._seal = Seal.read(self.path)  # before HDF5, which may hang on damaged strings
            self._file = h5py.File(self.path, "r", locking=False)
        except (OSError, RuntimeError, ValueError, struct.error) as error:
            raise damaged(path, error, _REMEDY) from None
        self._held: tuple[int, npt.NDArray[np.float16]] | None = None  # the last chunk: its number and rows
        try:
            self._read_tables()
        except BaseException:
            self._file.close()
            raise

    def _read_tables(self) -> None:
        try:
            attributes = {name: read_attribute(self._file, name) for name in _ATTRIBUTES}
            check_format(self.path, attributes, FEATURES_FORMAT, FEATURES_VERSION)
            self.provenance: dict[str, Any] = parse_json(attributes["provenance"])
            self._data = open_dataset(self._file, "features", 2)
            self.rows, self.width = (int(size) for size in self._data.shape)
            self.clips = _read_clips(iter_rows(self._file, open_dataset(self._file, "clips", 1), 2))
            self.content_hash = str(attributes["content_hash"])
            if attributes["content_hash"] is None or not isinstance(self.provenance, dict) or not self.width:
                raise ValueError("its content_hash, provenance or width is missing")
        except FormatError:
            raise
        except _UNREADABLE as error:
            raise damaged(self.path, error, _REMEDY) from None
        self.encoder_hash = str(attributes["encoder_hash"] or "")
        if self._data.dtype != np.dtype("<f2"):
            raise damaged(self.path, f"its features are {self._data.dtype}, not float16", _REMEDY)
        self._check_clips()
        self._kept_columns = self._columns_in_pairs()

    def _check_clips(self) -> None:
        row = 0
        for clip in self.clips:
            if clip.first_row != row or clip.rows < 0 or clip.rows % PATCHES_PER_COLUMN:
                raise damaged(self.path, f"the rows of clip {clip.key!r} do not fit the table", _REMEDY)
            row += clip.rows
        if row != self.rows:
            raise damaged(self.path, f"its clips have {row} rows and its features {self.rows}", _REMEDY)

    def _columns_in_pairs(self) -> npt.NDArray[np.int64]:
        # Factor 4 joins two columns of a clip, so the last of an odd number of columns has no partner. Without these,
        # all clips together are one run of pairs, and division gives the position of a stacked row.
        kept = np.ones(self.rows // PATCHES_PER_COLUMN, bool)
        for clip in self.clips:
            if clip.rows // PATCHES_PER_COLUMN % 2:
                kept[(clip.first_row + clip.rows) // PATCHES_PER_COLUMN - 1] = False
        return np.flatnonzero(kept)

    def stacked_rows(self, stack: int) -> int:
        """Return the number of stacked vectors at stack factor 1, 2 or 4."""
        token_rate(stack)
        if stack == 4:
            return len(self._kept_columns) * PATCHES_PER_COLUMN // 4
        return self.rows // stack

    def read(self, start: int, stop: int, stack: int = 1) -> npt.NDArray[np.float32]:
        """Return the stacked vectors start … stop - 1 of the shard: float32 (stop - start, width·stack).

        Vectors are numbered over all clips in order, time-major within a clip; none joins patches of two clips.
        Raises ValueError unless 0 ≤ start ≤ stop ≤ stacked_rows(stack); FormatError if the file is damaged.
        """
        if not 0 <= start <= stop <= self.stacked_rows(stack):
            raise ValueError(f"{self.path}: rows {start} to {stop} of {self.stacked_rows(stack)} cannot be read")
        if start == stop:
            return np.empty((0, self.width * stack), np.float32)
        if stack < 4:
            patches = self._patches(start * stack, stop * stack)
            return patches.reshape(stop - start, self.width * stack).astype(np.float32)
        first, last = start // 4, -(-stop // 4)
        columns = self._kept_columns[2 * first : 2 * last]
        patches = self._patches(columns[0] * PATCHES_PER_COLUMN, (columns[-1] + 1) * PATCHES_PER_COLUMN)
        kept = patches.reshape(-1, PATCHES_PER_COLUMN, self.width)[columns - columns[0]]
        stacked = stack_patches(kept.reshape(-1, self.width), stack)
        return np.asarray(stacked[start - 4 * first : stop - 4 * first], np.float32)

    def _patches(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        try:
            if self._seal is None:
                return self._data[start:stop]
            patches = np.empty((stop - start, self.width), np.float16)
            size = self._data.chunks[0]
            for index in range(start // size, -(-stop // size)):
                low, high = max(start, index * size), min(stop, (index + 1) * size)
                chunk = self._chunk(self._seal, index)
                patches[low - start : high - start] = chunk[low - index * size : high - index * size]
        except (OSError, RuntimeError) as error:
            raise damaged(self.path, error, _REMEDY) from None
        return patches

    def _chunk(self, seal: Seal, index: int) -> npt.NDArray[np.float16]:
        """Return a chunk of rows, checked against its checksum."""
        if self._held is None or self._held[0] != index:
            size, width = self._data.chunks
            _, data = self._data.id.read_direct_chunk((index * size, 0))
            if zlib.crc32(data) != seal.checksums[index]:
                last = min((index + 1) * size, self.rows)
                raise damaged(self.path, f"rows {index * size} to {last} do not match their checksum", _REMEDY)
            self._held = index, np.frombuffer(data, "<f2").reshape(size, width)
        return self._held[1]

    def verify(self) -> None:
        """Check all rows, one chunk at a time, and the clip table against `content_hash`.

        Raises FormatError if anything was changed after it was written.
        """
        found, size = ContentHash(), chunk_rows(self.width)
        for start in range(0, self.rows, size):
            found.add(self._patches(start, min(start + size, self.rows)))
        if found.value(self.width, self.clips) != self.content_hash:
            raise damaged(self.path, "its rows or clip table do not match its content_hash", _REMEDY)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_clips(table: Iterable[tuple[Any, ...]]) -> tuple[ClipRows, ...]:
    return tuple(
        ClipRows(key.decode("utf-8", "surrogateescape"), int(first_row), int(rows), int(samples), parse_json(metadata))
        for key, first_row, rows, samples, metadata in table
    )
