"""The basis of all file formats: atomic writes, JSON, hashes, versions and errors."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.formats.untrusted.bounds import max_json_bytes, parse_json

HASH_CHARACTERS = 16
_WEIGHT_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".npy")
_TEMPORARY = re.compile(r".+\.tmp-(\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # the only message of NumPy's tofile
# Errors of h5py and safetensors have the errno of the system only in their text.
_FULL_TEXT = re.compile(rf"\b(?:errno = |os error )({'|'.join(str(number) for number in _FULL)})\b")


class FormatError(ValueError):
    """A file, or content to be written to one, violates the format. The message is one line: file, fault, remedy."""


class DiskFullError(OSError):
    """The disk is full. The unfinished file was removed; files written before it are complete."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block ends without an error, else remove it.

    The file is synced before the rename and the folder after it, so that a crash at any moment leaves either the old
    file or the complete new one. Missing parent folders are made. The block must create and close the file.

    Raises DiskFullError if an error in the block says that the disk is full. OSErrors about the temporary file name
    `path` instead.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    try:
        with disk_errors(final):
            temporary.unlink(missing_ok=True)  # writing would follow a link of this name
            yield temporary
            _sync(temporary)
            temporary.replace(final)
            sync_folder(final.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error of any library that says "disk full" into a DiskFullError that names `path`."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        number = _full_errno(error)
        if number is None:
            raise
        reason = "the file size limit is reached" if number == errno.EFBIG else "the disk is full"
        full = DiskFullError(f"{path}: {reason}; make room and run the same command again")
        full.errno = number
        raise full from error


def _full_errno(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    if _SHORT_WRITE.fullmatch(str(error)):
        return errno.ENOSPC
    found = _FULL_TEXT.search(str(error))
    return int(found[1]) if found else None


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a crash, if its file system supports that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the rename itself has been done.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
    """Remove and return the temporary files of killed writers in `folder`, or only those of the file `name`.

    These are files named `*.tmp-<pid>` whose process no longer runs on this machine. The folder may be missing.
    """
    removed = []
    for path in sorted(Path(folder).glob("*.tmp-*")):
        found = _TEMPORARY.fullmatch(path.name)
        if name is not None and path.name.rpartition(".tmp-")[0] != name:
            continue
        if found and path.is_file() and not path.is_symlink() and not is_running(int(found[1])):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def is_running(pid: int) -> bool:
    """Return whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def is_repository(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is a repository `owner/name` of the Hugging Face hub, not a path.

    A text is a path if it begins like one (`.`, `~`, `/`), ends like a file of weights, or names a file in an existing
    folder, whether the file exists or not.
    """
    text = str(source)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) or text.endswith(_WEIGHT_SUFFIXES):
        return False
    return not Path(text).exists() and not Path(text).parent.exists()


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as JSON with sorted keys and ASCII escapes; equal values give the same text.

    Without `indent` it is one line without spaces. NumPy scalars become numbers.
    Raises FormatError for NaN, infinities and values without a JSON type.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(value, sort_keys=True, indent=indent, separators=separators, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"this cannot be written as JSON: {error}") from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON to `path`, atomically, with sorted keys, two spaces of indent and a final newline.

    Raises FormatError for values without a JSON type; DiskFullError.
    """
    try:
        text = json_text(value, indent=2)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="ascii")


def read_json(path: str | os.PathLike[str], limit: int | None = None) -> Any:
    """Read a JSON file of at most `limit` bytes with `parse_json`.

    Raises FormatError if it is not JSON, longer, or nested too deep; OSError if it cannot be read.
    """
    limit = max_json_bytes() if limit is None else limit
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    try:
        return parse_json(content, limit)
    except ValueError as error:
        raise FormatError(
            f"{path} is not valid JSON ({_one_line(error)}); restore it, or delete it and make it again"
        ) from None


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the first 16 hexadecimal characters of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:HASH_CHARACTERS]


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the hash of the bytes of a file, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_CHARACTERS]


def hash_json(value: Any) -> str:
    """Return the hash of a JSON value; the order of keys does not matter. Raises FormatError as `json_text` does."""
    return hash_bytes(json_text(value).encode("ascii"))


def hash_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return one hash of the names, types, shapes and values of arrays, independent of order and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        digest.update(json_text([name, little.dtype.str, list(little.shape)]).encode("ascii"))
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:HASH_CHARACTERS]


def is_key(key: str) -> bool:
    """Return whether `key` can be the key of a clip: not empty, no NUL, and UTF-8 or undecoded bytes of file names."""
    try:
        return bool(key) and b"\0" not in key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def check_format(path: str | os.PathLike[str], found: Any, format_name: str, version: int) -> None:
    """Raise FormatError unless `found` is a dict with `format` == `format_name` and `format_version` == `version`."""
    if not isinstance(found, Mapping) or found.get("format") != format_name:
        raise foreign(path, format_name)
    actual = found.get("format_version")
    if actual == version:
        return
    remedy = "update sctok" if isinstance(actual, int) and actual > version else "make the file again"
    raise FormatError(f"{path} has version {actual} of {format_name}, this sctok reads version {version}; {remedy}")


def foreign(path: str | os.PathLike[str], expected: str | None = None) -> FormatError:
    """Return the error for a file that sctok does not write, or that does not have the `expected` format."""
    return FormatError(
        f"{path} is not a file that sctok writes{f' (expected: {expected})' if expected else ''}; check the path"
    )


def damaged(path: str | os.PathLike[str], reason: object, remedy: str = "make it again") -> FormatError:
    """Return the error for a truncated or changed file: the file, the reason in one line, the remedy."""
    return FormatError(f"{path} is damaged ({_one_line(reason)}); delete it and {remedy}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
