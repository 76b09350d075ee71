"""Reading the headers of untrusted tar archives in bounded memory and only forwards."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 1 << 20  # of one header, which holds long names and extended attributes
_MAX_GLOBAL_FIELDS = 1000


class _HeaderFile(io.RawIOBase):
    """A file that returns at most `MAX_HEADER_BYTES` at once to tarfile, whatever a header claims."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes; {MAX_HEADER_BYTES:,} are allowed")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def open_tar(file: BinaryIO, **options: Any) -> tarfile.TarFile:
    """Open a file as an uncompressed tar for `next_member`. Raises tarfile.TarError."""
    with _tar_errors():
        return tarfile.open(fileobj=_HeaderFile(file), mode="r:", **options)


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member of a tar, None at the end; the tar does not keep it in memory.

    Raises tarfile.TarError for headers that are invalid, too long, or lead backwards.
    """
    with _tar_errors():
        member = tar.next()
    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has read
    if member is not None and (member.size < 0 or tar.offset <= member.offset):
        raise tarfile.ReadError(f"a member of {member.size:,} bytes")
    if len(tar.pax_headers) > _MAX_GLOBAL_FIELDS:
        raise tarfile.ReadError(f"more than {_MAX_GLOBAL_FIELDS:,} global fields")
    return member


@contextmanager
def _tar_errors() -> Iterator[None]:
    """Turn the errors of tarfile for invalid headers into tarfile.TarError."""
    try:
        yield
    except RecursionError:
        raise tarfile.ReadError("too many headers for one member") from None
    except (ValueError, OverflowError, KeyError, IndexError) as error:
        raise tarfile.ReadError(f"an invalid header ({error})") from None
