"""Finding audio in WebDataset tar shards, and reading it in place without unpacking."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sctok.audio.decoding.containers import AUDIO_SUFFIXES
from sctok.audio.errors import AudioError
from sctok.formats.untrusted.bounds import json_value, max_metadata_bytes
from sctok.formats.untrusted.tars import next_member, open_tar

from .remote import RemoteFile, is_url

MAX_METADATA_BYTES = 65_536

_BLOCK = 512
_METADATA_SUFFIXES = (".json", ".txt")
# The name of a WebDataset sample is the path of its members up to the first dot of the last component.
_SAMPLE_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)


@dataclass(frozen=True)
class Member:
    """One audio file inside a tar: its key, the position of its bytes, its suffix, and its sample's metadata."""

    key: str
    offset: int
    size: int
    suffix: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class BadMember:
    """A member of a tar that cannot be read; `name` is empty for the archive itself."""

    name: str
    reason: str


@dataclass
class _Sample:
    base: str
    audio: list[tuple[str, int, int]] = field(default_factory=list)  # member name, offset, size
    metadata: dict[str, Any] = field(default_factory=dict)
    metadata_bytes: int = 0

    def takes(self, size: int) -> bool:
        """Return whether a metadata member is small enough, both by itself and together with the earlier ones, and
        count its bytes.
        """
        if size > MAX_METADATA_BYTES or self.metadata_bytes + size > max_metadata_bytes():
            return False
        self.metadata_bytes += size
        return True

    def members(self) -> Iterator[Member]:
        """Yield the audio of the sample; the full names distinguish several files of one sample."""
        names = {str(PurePosixPath(name).with_suffix("")) for name, _, _ in self.audio}
        for name, offset, size in self.audio:
            path = PurePosixPath(name)
            key = self.base if len(names) == 1 else str(path.with_suffix(""))
            yield Member(key, offset, size, path.suffix.lower(), self.metadata)


def scan_tar(path: str | Path) -> Iterator[Member | BadMember]:
    """Yield the audio files of an uncompressed tar in order, reading only its headers and metadata.

    Consecutive members with one base name form a sample, whose small `.json` and `.txt` members become metadata.
    Truncation or damage is reported once, after all intact members.
    """
    try:
        with _open(path) as file, open_tar(file) as tar:
            yield from _scan(file, tar)
    except tarfile.TarError as error:
        yield BadMember("", f"is damaged, or not an uncompressed tar archive ({error})")
    except AudioError as error:
        yield BadMember("", error.args[1])
    except OSError as error:
        yield BadMember("", error.strerror or str(error))


def _open(path: str | Path) -> BinaryIO:
    if is_url(path):
        return io.BufferedReader(RemoteFile(str(path)))
    return open(path, "rb")  # noqa: PTH123


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)  # tarfile seeks itself before it reads
    return file.read(size)


def _scan(file: BinaryIO, tar: tarfile.TarFile) -> Iterator[Member | BadMember]:
    end = file.seek(0, os.SEEK_END)
    sample, found = _Sample(""), 0
    problem: str | None = None
    while True:
        header = tar.offset
        try:
            info = next_member(tar)
        except tarfile.TarError as error:
            info, problem = None, f"is cut short or damaged at byte {header} ({error})"
        if info is None:
            problem = problem or _end_problem(file, header)
            break
        if not info.isdir() and info.offset_data + info.size > end:
            problem = f"is truncated inside {info.name}; the members before it are intact"
            break
        name = info.name.removeprefix("./").lstrip("/")
        match = _SAMPLE_NAME.match(name)
        if info.isdir() or match is None:
            continue
        if match[1] != sample.base:
            yield from sample.members()
            sample = _Sample(match[1])
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in AUDIO_SUFFIXES:
            found += 1
            if info.isreg() and not info.issparse():
                sample.audio.append((name, info.offset_data, info.size))
            else:
                yield BadMember(name, "is a link or a sparse file inside a tar, which cannot be read in place")
        elif suffix in _METADATA_SUFFIXES and info.isreg() and sample.takes(info.size):
            _add_metadata(sample.metadata, match[2], _read_at(file, info.offset_data, info.size))
    yield from sample.members()
    if problem:
        yield BadMember("", problem)
    elif not found:
        yield BadMember("", "holds no audio files")


def _end_problem(file: BinaryIO, offset: int) -> str | None:
    """Return why an archive does not end properly at `offset`; None if zeros, the end mark, follow."""
    block = _read_at(file, offset, _BLOCK)
    if block == bytes(_BLOCK):
        return None
    if len(block) < _BLOCK:
        return "is truncated: it has no end mark; all its members were read"
    return f"is damaged at byte {offset}; the rest was not read"


def _add_metadata(metadata: dict[str, Any], extension: str, data: bytes) -> None:
    value: Any = data.decode("utf-8", "replace")
    if extension.lower() == "json":
        with suppress(ValueError, RecursionError):
            value = json_value(json.loads(value))
    metadata.update(value if isinstance(value, dict) else {extension: value})


class MemberFile(io.RawIOBase):
    """The bytes [offset, offset + size) of a file as a seekable read-only file."""

    def __init__(self, path: str | Path, offset: int, size: int) -> None:
        super().__init__()
        self._file: io.RawIOBase = (
            RemoteFile(str(path)) if is_url(path) else open(path, "rb", buffering=0)  # noqa: PTH123, SIM115
        )
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        self._file.seek(self._offset + self._position)
        done = self._file.readinto(view[:count]) or 0
        self._position += done
        return done

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
