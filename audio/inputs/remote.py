"""Files at the URLs that fsspec supports, read in place by ranges."""

import io
import os
import re
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from sctok.audio.errors import AudioError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(:|//).*", re.DOTALL)
_BLOCK_BYTES = 1 << 20


def is_url(path: object) -> bool:
    """Return whether a path is a URL for fsspec, such as `s3://…`, `https://…` or `simplecache::s3://…`."""
    return isinstance(path, str) and _URL.fullmatch(path) is not None


def url_path(url: str) -> PurePosixPath:
    """Return the path of a URL, which has its name and suffix."""
    return PurePosixPath(urlsplit(url.rpartition("::")[2]).path)


def open_url(url: str) -> BinaryIO:
    """Open the file at a URL for reading by ranges, one block of 1 MiB at a time.

    Raises AudioError if the file is missing, the server refuses, or the package for the protocol is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise AudioError(url, "is a URL; to read those, run: pip install 'sctok[remote]'") from None
    try:
        return fsspec.open(url, "rb", block_size=_BLOCK_BYTES).open()
    except ImportError as error:  # fsspec names the package
        raise AudioError(url, f"cannot be opened: {error}") from error
    except FileNotFoundError as error:
        raise AudioError(url, "no such file") from error
    except Exception as error:  # each protocol's client has its own errors
        raise AudioError(url, f"cannot be opened: {type(error).__name__}: {error}") from error


class RemoteFile(io.RawIOBase):
    """A remote file; errors of any client library become OSError."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._file = open_url(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._file.read(len(view))
        except Exception as error:  # each protocol's client has its own errors
            raise OSError(f"{type(error).__name__}: {error}") from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
