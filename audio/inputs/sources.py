"""Listing the audio in folders, single files, manifests and WebDataset tar shards as one stream of items."""

import io
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import braceexpand
import soundfile

from sctok.audio.decoding.containers import AUDIO_SUFFIXES, FFMPEG_SUFFIXES
from sctok.audio.decoding.decode import open_regular
from sctok.audio.decoding.sections import UNKNOWN_LENGTH
from sctok.audio.errors import AudioError, os_reason

from .archives import BadMember, MemberFile, scan_tar
from .key_table import KeyTable
from .manifests import MANIFEST_SUFFIXES, is_cut, is_manifest, read_cut, read_rows
from .remote import RemoteFile, is_url, url_path
from .tables import TABLE_SUFFIX, audio_column, list_rows, read_row

_TAR_SUFFIX = ".tar"
_LISTED_SUFFIXES = AUDIO_SUFFIXES | {_TAR_SUFFIX}
_PACKED_SUFFIXES = frozenset((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"))
_MEMBER_BUFFER_BYTES = 65_536
_STRETCH = ("start", "seconds")
# What marks a folder of results; corpus/runs/run_folder.py writes it.
_RUN_FILE, _RUN_FORMAT = "run.json", "sctok-run"
_MAX_RUN_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class AudioItem:
    """One audio file to read.

    key: its name in all results. path: the file, or the tar or Parquet file that holds it; may be a URL. offset, size:
    its bytes in a tar; in a Parquet file, `offset` is its row. suffix: its last suffix in lower case. metadata: JSON
    values from its manifest or tar. start, seconds: the stretch of the file to read; None for the whole file.
    """

    key: str
    path: str
    offset: int | None = None
    size: int | None = None
    suffix: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    start: float | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Name of the file in messages."""
        return self.path if self.offset is None else f"{self.path}:{self.key}{self.suffix}"

    def open(self) -> str | BinaryIO:
        """Return a source for `stream_audio`: the path, or a seekable file with the content of a member or a URL."""
        if self.offset is None:
            return io.BufferedReader(RemoteFile(self.path), _MEMBER_BUFFER_BYTES) if is_url(self.path) else self.path
        if self.path.lower().endswith(TABLE_SUFFIX):
            return io.BytesIO(read_row(self.path, self.offset))
        assert self.size is not None
        try:
            return io.BufferedReader(MemberFile(self.path, self.offset, self.size), _MEMBER_BUFFER_BYTES)
        except OSError as error:
            raise AudioError(self.name, os_reason(error)) from error

    def open_file(self) -> BinaryIO:
        """Return the audio as an open, seekable file. Raises AudioError if it cannot be opened."""
        source = self.open()
        return open_regular(source, self.name) if isinstance(source, str) else source

    def to_json(self) -> dict[str, Any]:
        """Return the item as JSON values."""
        fields = asdict(self)
        return fields if self.start is not None else {name: fields[name] for name in fields if name not in _STRETCH}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "AudioItem":
        """Return the item that `to_json` described."""
        return cls(**fields)


@dataclass(frozen=True)
class BadItem:
    """A listed file that cannot be read, and the reason; the listing continues after it.

    `key` is empty if the reason concerns a whole tar, folder or manifest row.
    """

    key: str
    path: str
    reason: str


Listed = AudioItem | BadItem


def list_audio(
    inputs: Sequence[str | Path],
    *,
    path_column: str = "path",
    key_column: str = "key",
    wants: Callable[[AudioItem], bool] = lambda item: True,
) -> Iterator[AudioItem | BadItem]:
    """Return an iterator over the audio in `inputs`, in an order that depends only on the inputs.

    An input is one of the following, and counts once if it is given twice. Braces expand as in `shard-{000..127}.tar`;
    files and tar shards may be URLs that fsspec opens.

    - A folder: all its subfolders are searched for audio and tar shards, in bytewise order of the relative paths. Names
      that begin with a dot are skipped, and so are folders of results (with a `run.json` of format `sctok-run`). Keys
      are the relative paths without suffix.
    - A single file: its key is its stem.
    - A tar shard: keys are the WebDataset names.
    - A manifest (CSV, TSV, JSONL, Parquet): paths are relative to its folder, in `path_column` or else in `file_name`
      (audio folders of Hugging Face datasets) or `audio_filepath` (NeMo); other columns become metadata. Keys are in
      `key_column`, or else the paths without suffix. JSONL, gzipped or not, may hold lhotse cuts: keys are their ids.
    - A Parquet file with an audio column of `bytes` and `path`, as Hugging Face datasets store it: keys are in
      `key_column`, or else that path, or the name of the Parquet file and the number of the row.

    An item with the key of an earlier one, a missing file of a manifest, or the damaged rest of a tar is a BadItem.
    Items that `wants` refuses are skipped. Memory does not grow with the number of items: their keys go to a temporary
    file.

    Raises AudioError at once if an input does not exist, a folder holds no audio, or a manifest has no rows or no
    `path_column`; and while iterating if a manifest cannot be read further.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise AudioError("inputs", "none given; name folders, audio files, manifests or tar shards")
    if "" in inputs:
        raise AudioError("inputs", "one of them is an empty name; write . for the current folder")
    paths = _without_repeats(path for given in inputs for path in _expand_braces(given))
    for path in paths:
        if next(_list_input(path, path_column, key_column), None) is None:
            raise AudioError(path, _nothing_found(path))
    listed = (found for path in paths for found in _list_input(path, path_column, key_column))
    return _unique((origin, item) for origin, item in listed if isinstance(item, BadItem) or wants(item))


def audio_seconds(item: AudioItem) -> float | None:
    """Return the duration in the header of a file, without decoding it; None if it is unknown.

    It is an estimate for MP3 files that do not state their length, and None for files that need ffmpeg.
    """
    if item.seconds is not None:
        return item.seconds
    if item.suffix in FFMPEG_SUFFIXES:
        return None
    try:
        with item.open_file() as file, open_sound(file) as sound:
            return None if sound.frames >= UNKNOWN_LENGTH else sound.frames / sound.samplerate
    except (OSError, AudioError, TypeError, RuntimeError):
        return None


def open_sound(file: BinaryIO) -> soundfile.SoundFile:
    """Return an open file as libsndfile reads it; the caller closes both."""
    # A descriptor has no name, by which soundfile would take "x.raw" for audio without a header.
    return soundfile.SoundFile(file.fileno() if isinstance(file, io.FileIO) else file, closefd=False)


def _expand_braces(given: str | Path) -> Iterator[Path | str]:
    """Yield the paths and URLs that an input expands to. Raises AudioError for a path that does not exist."""
    if is_url(given):
        yield from braceexpand.braceexpand(str(given))
        return
    for name in [given] if Path(given).exists() else braceexpand.braceexpand(str(given)):
        if not Path(name).exists():
            raise AudioError(name, "no such file or folder")
        yield Path(name)


def _without_repeats(paths: Iterable[Path | str]) -> list[Path | str]:
    """Return the paths without those that lead to the input of an earlier one."""
    first: dict[Path | str, Path | str] = {}
    for path in paths:
        # A link to a file counts as an input of its own: keys and relative paths depend on its name and folder.
        first.setdefault(path if isinstance(path, str) else _place(path), path)
    return list(first.values())


def _place(path: Path) -> Path:
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _nothing_found(path: Path | str) -> str:
    if isinstance(path, Path) and path.is_dir():
        suffixes = " ".join(sorted(_LISTED_SUFFIXES))
        return f"no audio in this folder or below it; looked for {suffixes}"
    return "lists no files"


def _unique(found: Iterable[tuple[str, Listed]]) -> Iterator[Listed]:
    taken = KeyTable()  # the input or the tar of each key
    for origin, listed in found:
        if isinstance(listed, BadItem):
            yield listed
            continue
        problem = _key_problem(listed.key)
        if problem:
            yield BadItem(_printable(listed.key), _printable(listed.name), problem)
            continue
        first = taken.add(listed.key, origin)
        if first is None:
            yield listed
            continue
        reason = f"its key '{listed.key}' is already taken by {_holder(first, listed.key)}; rename one of them"
        yield BadItem(listed.key, listed.name, f"{reason} or give keys in a manifest")


def _holder(origin: str, key: str) -> str:
    """Return the name of the file that has a key, or of the input that holds it."""
    path = Path(origin)
    if path.is_dir():
        candidates = (f"{origin}/{key}{suffix}" for suffix in sorted(AUDIO_SUFFIXES))
        return next((name for name in candidates if Path(name).exists()), f"a file in {origin}")
    return f"a file in {origin}" if path.suffix.lower() in MANIFEST_SUFFIXES | {_TAR_SUFFIX} else origin


def _key_problem(key: str) -> str | None:
    try:
        key.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        return f"'{key}' cannot be a key: it must be a relative path without '.' and '..'"
    return None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _strip_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in AUDIO_SUFFIXES else name


def _list_input(path: Path | str, path_column: str, key_column: str) -> Iterator[tuple[str, Listed]]:
    """Yield (origin, item) for each item of an input. origin: the file or folder in which its key is unique."""
    name = url_path(path) if isinstance(path, str) else path
    suffix = name.suffix.lower()
    if isinstance(path, Path) and path.is_dir():
        yield from _list_folder(str(path))
    elif is_manifest(name):
        if isinstance(path, str):
            raise AudioError(path, "is a manifest at a URL; download it, its rows may be URLs")
        for listed in _list_manifest(path, path_column, key_column):
            yield str(path), listed
    elif suffix == _TAR_SUFFIX:
        yield from _list_tar(str(path))
    elif isinstance(path, Path) and suffix in _PACKED_SUFFIXES:
        raise AudioError(path, "is a compressed archive, which cannot be read in place; unpack it, or make it a .tar")
    else:
        yield str(path), AudioItem(_strip_suffix(name.name), str(path), suffix=suffix)


def _list_tar(path: str) -> Iterator[tuple[str, Listed]]:
    for found in scan_tar(path):
        if isinstance(found, BadMember):
            name = _printable(f"{path}:{found.name}" if found.name else path)
            yield path, BadItem(_printable(_strip_suffix(found.name)), name, found.reason)
        else:
            yield path, AudioItem(found.key, path, found.offset, found.size, found.suffix, found.metadata)


def _list_folder(folder: str) -> Iterator[tuple[str, Listed]]:
    for relative, problem in _walk(folder, "", ()):
        path = os.path.join(folder, relative)  # noqa: PTH118
        suffix = PurePosixPath(relative).suffix.lower()
        if problem:
            yield folder, BadItem("", _printable(path), problem)
        elif suffix == _TAR_SUFFIX:
            yield from _list_tar(path)
        else:
            yield folder, AudioItem(_strip_suffix(relative), path, suffix=suffix)


def _walk(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str | None]]:
    """Yield (path relative to `root`, problem) of each audio file and tar, in bytewise order of those paths.

    Links to folders are followed, except into a folder that contains them. Run folders are skipped.
    """
    folder = os.path.join(root, below)  # noqa: PTH118
    try:
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in above or _is_run(folder):
            return
        names = _wanted_names(folder)
    except OSError as error:
        yield below, os_reason(error)
        return
    for name in names:
        if name.endswith("/"):
            yield from _walk(root, below + name, (*above, (status.st_dev, status.st_ino)))
        else:
            yield below + name, None


def _is_run(folder: str) -> bool:
    """Return whether sctok has written results to a folder."""
    path = os.path.join(folder, _RUN_FILE)  # noqa: PTH118
    try:
        with open_regular(path, path) as file:
            content = json.loads(file.read(_MAX_RUN_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == _RUN_FORMAT


def _wanted_names(folder: str) -> list[str]:
    """Return the audio files, tars and subfolders (with a slash) of a folder, sorted bytewise."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                names.append(entry.name + "/")
            elif PurePosixPath(entry.name).suffix.lower() in _LISTED_SUFFIXES:
                names.append(entry.name)
    return sorted(names, key=os.fsencode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself


def _list_table(table: Path, column: str, key_column: str) -> Iterator[Listed]:
    for row, inside, metadata in list_rows(table, column):
        if isinstance(metadata, str):
            yield BadItem("", str(table), f"row {row + 1} {metadata}")
            continue
        key = str(metadata.pop(key_column, None) or _strip_suffix(inside.lstrip("/")) or f"{table.stem}/{row:08d}")
        yield AudioItem(key, str(table), row, 0, PurePosixPath(inside).suffix.lower(), metadata)


def _list_manifest(manifest: Path, path_column: str, key_column: str) -> Iterator[Listed]:
    column = audio_column(manifest, path_column)
    if column is not None:
        yield from _list_table(manifest, column, key_column)
        return
    for number, row in read_rows(manifest, path_column):
        where = f"row {number} of {manifest}"
        if isinstance(row, str):
            yield BadItem("", str(manifest), f"row {number} {row}")
            continue
        start = seconds = None
        if is_cut(row):
            key = row["id"]
            try:
                written, start, seconds, row = read_cut(row)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                yield BadItem(_printable(key), str(manifest), f"{error} ({where})")
                continue
        else:
            written = row.pop(path_column, None)
            key = row.pop(key_column, None)
        if not isinstance(written, str) or not written:
            yield BadItem("", str(manifest), f"row {number} has no '{path_column}'")
            continue
        path = written if is_url(written) else str(manifest.parent / written)
        suffix = (url_path(path) if is_url(path) else Path(path)).suffix.lower()
        key = _manifest_key(manifest, written) if key is None or key == "" else str(key)
        problem = None if is_url(path) else _file_problem(Path(path))
        if problem:
            yield BadItem(_printable(key), _printable(path), f"{problem} ({where})")
            continue
        yield AudioItem(key, path, suffix=suffix, metadata=row, start=start, seconds=seconds)


def _file_problem(path: Path) -> str | None:
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "is not a file"
    except OSError as error:
        return os_reason(error)
    except ValueError:
        return "no such file"  # a name with NUL or a lone surrogate


def _manifest_key(manifest: Path, written: str) -> str:
    if is_url(written):
        return _strip_suffix(str(url_path(written)).lstrip("/"))
    path = PurePosixPath(os.path.normpath(written))
    folder = PurePosixPath(os.path.abspath(manifest.parent))  # noqa: PTH100
    if path.is_relative_to(folder):
        path = path.relative_to(folder)
    return _strip_suffix("/".join(part for part in path.parts if part not in ("/", "..")))
