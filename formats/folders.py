"""Folders that are there when all of them is written, and not before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import disk_errors, is_running, sync_folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends well, and is removed otherwise.

    What writers that were killed left beside it is removed; the old folder that one of them had moved away comes back.
    Raises DiskFullError, naming `folder`.
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
    beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for what in ("old", "tmp"):
        mark = f"{folder.name}.{what}-"
        for path in [each for each in beside if each.name.startswith(mark)]:
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
