"""Token shards: WebDataset tar files with the tokens of many audio files."""

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sctok.formats.untrusted.bounds import max_input_bytes, max_json_bytes, parse_json
from sctok.formats.untrusted.tars import next_member, open_tar

from .files import FormatError, atomic_path, check_format, damaged, disk_errors, foreign, is_key, json_text
from .npy import read_npy

TOKENS_FORMAT = "sctok-tokens"
TOKENS_VERSION = 1

_TOKENS_SUFFIX = ".tokens.npy"
_INFO_SUFFIX = ".json"
_RESERVED = ("format", "format_version", "key")

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def encode_key(key: str) -> str:
    """Return the member name of a key, percent-encoded so that WebDataset splits member names after it.

    The encoded characters are `%` and control characters, dots in the last path component, and the first underscore of
    a leading folder `__…__`, which WebDataset would skip. Keys are relative paths with `/`.
    Raises FormatError for an empty or absolute key, and for empty, `.` and `..` folders.
    """
    folders, _, name = key.rpartition("/")
    if not is_key(key) or not name or ("/" in key and any(part in ("", ".", "..") for part in folders.split("/"))):
        raise FormatError(f"{key!r} cannot be the key of a token file; use a relative path without . and .. folders")
    folders, name = (
        re.sub(r"[%\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", part) for part in (folders, name)
    )
    if re.match(r"__[^/]*__(/|$)", folders):
        folders = "%5F" + folders[1:]
    name = name.replace(".", "%2E")
    return f"{folders}/{name}" if folders else name


def decode_key(name: str) -> str:
    """Return the key that `encode_key` encoded as `name`."""
    return re.sub(r"%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), name)


class TokenShardWriter:
    """Write one token shard. A context manager: the file appears at `path` only if the block ends without an error.

    codebook_sizes: one per stream. Tokens are stored as uint16 if all sizes are at most 65536, else as uint32.
    Equal content in equal order gives equal bytes. Raises ValueError for invalid sizes; DiskFullError.
    """

    def __init__(self, path: str | os.PathLike[str], *, codebook_sizes: Sequence[int]) -> None:
        sizes = tuple(int(size) for size in codebook_sizes)
        if not sizes or min(sizes) < 1 or max(sizes) > 1 << 32:
            raise ValueError(f"{path}: codebook sizes {sizes} are not between 1 and 2**32, one per stream")
        self.path = Path(path)
        self._sizes = np.array(sizes, np.int64)
        self._dtype = np.dtype("<u2" if max(sizes) <= 1 << 16 else "<u4")
        self._keys: set[str] = set()
        self._tar: tarfile.TarFile | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            file = stack.enter_context(atomic_path(self.path)).open("wb")
            stack.callback(_abandon, file)
            self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")
            self._file = file
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tar, self._tar = self._tar, None
        if error is not None or tar is None:
            self._exit.__exit__(kind, error, trace)
            return
        with self._exit, disk_errors(self.path):
            tar.close()
            self._file.close()

    def add(self, key: str, tokens: npt.ArrayLike, info: Mapping[str, Any]) -> None:
        """Add the tokens of one file, integers (n, streams), n may be 0; info: JSON values (samples, sample_rate, …).

        Raises FormatError, and adds nothing, for a duplicate or invalid key, tokens of another shape or outside their
        codebook, and info that is not JSON.
        """
        if self._tar is None:
            raise ValueError(f"{self.path}: the writer works only inside a with block")
        name = encode_key(key)
        if key in self._keys:
            raise FormatError(f"{self.path}: the key {key!r} occurs twice; give every file its own key")
        data = self._token_bytes(key, np.asarray(tokens))
        text = self._info_bytes(key, info)
        with disk_errors(self.path):
            for suffix, content in ((_TOKENS_SUFFIX, data), (_INFO_SUFFIX, text)):
                member = tarfile.TarInfo(name + suffix)  # its time and owner are 0 unless set
                member.size = len(content)
                member.mode = 0o644
                self._tar.addfile(member, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps every header
        self._keys.add(key)

    def _token_bytes(self, key: str, tokens: npt.NDArray[Any]) -> bytes:
        if tokens.ndim != 2 or tokens.shape[1] != len(self._sizes) or tokens.dtype.kind not in "iu":
            found = f"{tokens.dtype} {tokens.shape}"
            raise FormatError(f"{self.path}: tokens of {key!r} are {found}, not integers (n, {len(self._sizes)})")
        if ((tokens < 0) | (tokens >= self._sizes)).any():
            raise FormatError(f"{self.path}: tokens of {key!r} are outside the codebooks of {self._sizes.tolist()}")
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(tokens, self._dtype), allow_pickle=False)
        return buffer.getvalue()

    def _info_bytes(self, key: str, info: Mapping[str, Any]) -> bytes:
        if taken := [name for name in _RESERVED if name in info]:
            raise FormatError(f"{self.path}: info of {key!r} may not set {taken[0]!r}, which the format sets")
        try:
            text = json_text({**info, "format": TOKENS_FORMAT, "format_version": TOKENS_VERSION, "key": key})
        except FormatError as error:
            raise FormatError(f"{self.path}: info of {key!r}: {error}") from None
        return text.encode("ascii")


def _abandon(file: io.BufferedWriter) -> None:
    # On a full disk, closing fails once more, but that error was reported already.
    with suppress(OSError):
        file.close()


def read_token_shard(path: str | os.PathLike[str]) -> Iterator[tuple[str, TokenArray, dict[str, Any]]]:
    """Yield (key, tokens uint16 or uint32 (n, streams), info) of each file in a shard, in the order of writing.

    The structure of the shard is checked first. Raises FileNotFoundError; FormatError if it is not a token shard,
    truncated, damaged, or of another version.
    """
    members = _check_members(path)
    return _read_members(path, members)


@dataclass(frozen=True)
class _Member:
    """The position of the content of a member in its shard."""

    name: str
    start: int
    size: int


def _check_members(path: str | os.PathLike[str]) -> list[_Member]:
    """Return the members; check that they come in pairs and that the archive is complete."""
    with Path(path).open("rb") as file, _open_tar(path, file) as tar:
        size = file.seek(0, os.SEEK_END)
        try:
            members = [_checked_member(member, size) for member in iter(partial(next_member, tar), None)]
        except (tarfile.TarError, ValueError) as error:
            raise damaged(path, error) from None
        names = [member.name.removesuffix(_TOKENS_SUFFIX) for member in members[::2]]
        expected = [name + suffix for name in names for suffix in (_TOKENS_SUFFIX, _INFO_SUFFIX)]
        if any(member.name != wanted for member, wanted in zip(members, expected, strict=False)):
            raise foreign(path, TOKENS_FORMAT)
        _check_end(path, file, tar.offset)
    if len(members) != len(expected):
        raise damaged(path, f"{expected[-1]!r} is missing")
    return members


def _checked_member(member: tarfile.TarInfo, size: int) -> _Member:
    """Return the position of a member in a shard of `size` bytes. Raises ValueError if it cannot be read."""
    limit = max_json_bytes() if member.name.endswith(_INFO_SUFFIX) else max_input_bytes()
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name!r:.200} is a link, a folder or a sparse file")
    if member.size > limit or member.offset_data + member.size > size:
        raise ValueError(
            f"{member.name!r:.200} promises {member.size:,} bytes, more than the file has or the limit allows"
        )
    return _Member(member.name, member.offset_data, member.size)


def _open_tar(path: str | os.PathLike[str], file: io.BufferedReader) -> tarfile.TarFile:
    try:
        return open_tar(file, encoding="utf-8")
    except (tarfile.TarError, ValueError):
        raise foreign(path, TOKENS_FORMAT) from None


def _check_end(path: str | os.PathLike[str], file: io.BufferedReader, end: int) -> None:
    # tarfile accepts an archive without an end; a shard ends with zeros up to a whole record.
    size = file.seek(0, os.SEEK_END)
    file.seek(end)
    tail = file.read(2 * tarfile.RECORDSIZE)
    if size % tarfile.RECORDSIZE or size - end != len(tail) or len(tail) < 2 * tarfile.BLOCKSIZE or any(tail):
        raise damaged(path, "the end of the archive is missing")


def _read_members(
    path: str | os.PathLike[str], members: list[_Member]
) -> Iterator[tuple[str, TokenArray, dict[str, Any]]]:
    with Path(path).open("rb") as file:
        for pair in zip(members[::2], members[1::2], strict=True):
            try:
                data, text = (_read_content(file, member) for member in pair)
                tokens = read_npy(io.BytesIO(data), len(data))
                info = parse_json(text)
                check_format(path, info, TOKENS_FORMAT, TOKENS_VERSION)
                key = decode_key(pair[0].name.removesuffix(_TOKENS_SUFFIX))
                if info["key"] != key:
                    raise ValueError(f"tokens of {key!r:.200} have the info of {info['key']!r:.200}")
                if tokens.ndim != 2 or tokens.dtype not in (np.uint16, np.uint32):
                    raise ValueError(f"tokens of {key!r} are {tokens.dtype} {tokens.shape}")
            except FormatError:
                raise
            except (ValueError, KeyError, AttributeError, EOFError) as error:
                raise damaged(path, error) from None
            yield info["key"], tokens, {field: value for field, value in info.items() if field not in _RESERVED}


def _read_content(file: io.BufferedReader, member: _Member) -> bytes:
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) < member.size:
        raise EOFError(f"{member.name!r} ends early")
    return content
