"""The description of an evaluation, run.json: read by those who go on with it and those who show it."""

from pathlib import Path
from typing import Any

from sctok.formats.files import FormatError, check_format
from sctok.formats.untrusted.bounds import max_input_bytes, parse_json

RUN_FILE = "run.json"
FORMAT, VERSION = "sctok-evaluation", 1
_TEXTS = {"files": ("key", "domain"), "codecs": ("name", "spec"), "metrics": ("name",)}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the description of the evaluation in a folder.

    Raises FormatError, naming file, fault and remedy, for damage and for another format or version; OSError.
    """
    path = folder / RUN_FILE
    try:
        found = parse_json(path.read_bytes(), max_input_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    check_format(path, found, FORMAT, VERSION)
    for part, texts in _TEXTS.items():
        entries = found.get(part)
        if not isinstance(entries, list) or not all(_has_texts(entry, texts) for entry in entries):
            raise _damaged(path, f"{part} is no list of entries with {' and '.join(texts)}")
    if not isinstance(found.get("settings"), dict) or not isinstance(found.get("created"), str):
        raise _damaged(path, "settings or created is missing or of another kind")
    run: dict[str, Any] = found
    return run


def _has_texts(entry: Any, names: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names)


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path} is damaged ({reason}); restore it, or delete the folder {path.parent} and run sctok evaluate again"
    )
