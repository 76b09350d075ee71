"""Locks by which processes share the shards of one run; the kernel takes a lock back when its process dies."""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType


class LockError(ValueError):
    """The file system under a run folder cannot lock files."""


class Claim:
    """A held lock: the right to write what it stands for. A context manager that gives it back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def take_lock(path: Path) -> Claim:
    """Lock the file at `path`, made if absent; wait for other holders.

    Raises:
        LockError: the file system has no locks.
    """
    claim = _lock(path, fcntl.LOCK_EX)
    assert claim is not None
    return claim


def try_lock(path: Path) -> Claim | None:
    """Lock the file at `path`, made if absent; return None if it is held already, here or elsewhere.

    Raises:
        LockError: the file system has no locks.
    """
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(path: Path, operation: int) -> Claim | None:
    # Lock files stay for good: were they removed, two processes could hold locks on two files of the same name.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        if isinstance(error, OSError) and error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise LockError(f"{path.parent}: this file system has no file locks; put the run on another one") from None
        raise
    return Claim(descriptor)
