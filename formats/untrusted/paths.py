"""The one way from a key, which may come out of any file, to a path: it stays inside the folder that it belongs to."""

import os
import re
from pathlib import Path

from sctok.formats.files import FormatError

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DRIVE = re.compile(r"[A-Za-z]:")
_NAME_BYTES = 255  # of one name in a folder, in every common file system
_PATH_BYTES = 4095
_TEMPORARY_BYTES = len(".tmp-4194304")  # what `atomic_path` appends; Linux numbers processes up to there


def path_problem(key: str) -> str | None:
    """Return why a key cannot be the path of a file below some folder, or None if it can.

    A key is a relative path with `/`. Refused are empty keys, `..`, `.` and empty parts (hence absolute paths), drive
    letters, control characters and line separators, and text that no file name can hold. A backslash is a character of
    a name, but the parts on both sides of it are held to the same rules.
    """
    try:
        key = os.fsdecode(os.fsencode(key))  # bytes of an undecoded name may be characters when they are joined
    except UnicodeEncodeError:
        return "has characters that no file name can hold"
    parts = re.split(r"[/\\]", key)
    if any(part in ("", ".", "..") for part in parts) or _DRIVE.fullmatch(parts[0]):
        return "is not a relative path without empty, '.' and '..' parts"
    if _CONTROLS.search(key):
        return "has control characters"
    return None


def is_file_name(name: str) -> bool:
    """Return whether a name read from a file is that of a file in the same folder, not a path to somewhere else."""
    return path_problem(name) is None and "/" not in name and "\\" not in name


def path_inside(folder: str | os.PathLike[str], key: str, suffix: str) -> Path:
    """Return `folder/key` with `suffix` appended, which lies inside the folder whatever the key is.

    Links inside the folder are followed: one that leads out of it is refused. The folder itself may be a link. The
    last part may be one, too, because files are renamed to their place and so replace it.

    Raises FormatError, which shows the key escaped, for a key that `path_problem` refuses or that makes too long a
    name, and if a link leads out of the folder or a file lies where the key needs a folder, or a folder where it needs
    the file.
    """
    path = Path(folder, f"{key}{suffix}") if path_problem(key) is None else None
    problem = path_problem(key) if path is None else _place_problem(Path(folder), path)
    if path is None or problem:
        raise FormatError(f"the key {key!r:.200} cannot be a path in {folder}: it {problem}; rename it")
    return path


def _place_problem(folder: Path, path: Path) -> str | None:
    names = path.relative_to(folder).parts
    longest = max(len(os.fsencode(name)) for name in (*names[:-1], names[-1] + "-" * _TEMPORARY_BYTES))
    if longest > _NAME_BYTES or len(os.fsencode(path)) + _TEMPORARY_BYTES > _PATH_BYTES:
        return "is too long for a file name"
    real, inside = (Path(os.path.realpath(each)) for each in (folder, path.parent))
    if not inside.is_relative_to(real):
        return "leads through a link out of this folder"
    above = next((each for each in path.parents if os.path.lexists(each)), folder)
    if not above.is_dir() and above.is_relative_to(folder):
        return f"needs a folder where the file {above.name} lies"
    return "is the name of a folder there" if path.is_dir() and not path.is_symlink() else None
