"""Locks that let processes share the shards of one run; the kernel releases a lock when its process dies."""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType


class LockError(ValueError):
    """The file system under a run folder cannot lock files."""


class Claim:
    """A held lock; a context manager that releases it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def take_lock(path: Path) -> Claim:
    """Wait for the lock on the file at `path`, which is created if absent.

    Raises:
        LockError: the file system has no locks.
    """
    claim = _lock(path, fcntl.LOCK_EX)
    assert claim is not None
    return claim


def try_lock(path: Path) -> Claim | None:
    """Lock the file at `path`, created if absent; return None if this or another process holds the lock.

    Raises:
        LockError: the file system has no locks.
    """
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(path: Path, operation: int) -> Claim | None:
    # Lock files are never removed; otherwise two processes could lock two files of the same name.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise LockError(
                f"{path.parent}: this file system has no file locks; use a folder on another file system"
            ) from None
        raise
    return Claim(descriptor)
