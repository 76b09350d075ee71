"""Turning keys from untrusted files into paths that stay inside their folder."""

import os
import re
from pathlib import Path

from sctok.formats.files import FormatError

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DRIVE = re.compile(r"[A-Za-z]:")
_NAME_BYTES = 255  # limit of one name in all common file systems
_PATH_BYTES = 4095
_TEMPORARY_BYTES = len(".tmp-4194304")  # the longest suffix of `atomic_path`; process ids of Linux end there


def path_problem(key: str) -> str | None:
    """Return why a key cannot be the path of a file in a folder, or None if it can.

    A key is a relative path with `/`. Empty keys, `..`, `.` and empty parts (hence absolute paths), drive letters,
    control characters, line separators, and text that no file name can hold are refused. A backslash is a character of
    a name, but the parts on both sides of it obey the same rules.
    """
    try:
        key = os.fsdecode(os.fsencode(key))  # joined bytes of undecoded names may form characters
    except UnicodeEncodeError:
        return "has characters that no file name can hold"
    parts = re.split(r"[/\\]", key)
    if any(part in ("", ".", "..") for part in parts) or _DRIVE.fullmatch(parts[0]):
        return "is not a relative path without empty, '.' and '..' parts"
    if _CONTROLS.search(key):
        return "has control characters"
    return None


def is_file_name(name: str) -> bool:
    """Return whether a name read from a file is a plain file name, not a path to another folder."""
    return path_problem(name) is None and "/" not in name and "\\" not in name


def path_inside(folder: str | os.PathLike[str], key: str, suffix: str) -> Path:
    """Return `folder/key` with `suffix` appended, a path inside the folder.

    Links in the folder are followed, and refused if they lead out of it. The folder itself may be a link, and so may
    the last part, because writers replace it by a rename.

    Raises FormatError, with the key escaped, for a key that `path_problem` refuses, a name that is too long, a link out
    of the folder, a file in place of a folder, or a folder in place of the file.
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
        return f"needs a folder in place of the file {above.name}"
    return "is the name of a folder" if path.is_dir() and not path.is_symlink() else None
