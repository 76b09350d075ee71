"""Writing folders atomically."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import disk_errors, is_running, sync_folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` if the block ends without an error, and is removed otherwise.

    First removes the leftovers of killed writers, and restores the old folder if one of them had moved it away.
    Raises DiskFullError.
    """
    _tidy(folder)
    temporary, replaced = (folder.with_name(f"{folder.name}.{what}-{os.getpid()}") for what in ("tmp", "old"))
    _remove(temporary)
    try:
        with disk_errors(folder):
            temporary.mkdir(parents=True)
            yield temporary
        if os.path.lexists(folder):
            folder.rename(replaced)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        if os.path.lexists(replaced) and not os.path.lexists(folder):
            replaced.rename(folder)
        for leftover in (temporary, replaced):
            _remove(leftover)


def _tidy(folder: Path) -> None:
    siblings = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for what in ("old", "tmp"):
        mark = f"{folder.name}.{what}-"
        for path in [each for each in siblings if each.name.startswith(mark)]:
            pid = path.name.removeprefix(mark)
            if not (pid.isascii() and pid.isdigit()) or is_running(int(pid)):
                continue
            if what == "old" and not os.path.lexists(folder):
                path.rename(folder)
            else:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
