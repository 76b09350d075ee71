"""The references of an evaluation: audio files with their domains and transcripts."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sctok.audio.decoding.containers import AUDIO_SUFFIXES
from sctok.audio.inputs.sources import AudioItem, BadItem, list_audio

DOMAINS = ("speech", "music", "general")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence")
_PATH_COLUMNS = ("path", "file_name", "audio_filepath", "key")
_TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Reference:
    """A file to code. key: its name in tables and files. domain: "" if unknown. transcript: None if unknown."""

    item: AudioItem | BadItem
    key: str
    domain: str = ""
    transcript: str | None = None


def list_references(
    inputs: Sequence[str | Path], domain: str | None = None, transcripts: Mapping[str, str] | None = None
) -> list[Reference]:
    """List the audio in folders, files, manifests and tar shards, with domains and transcripts.

    Unreadable files are listed too, with the reason.

    Args:
        inputs: as for `list_audio`.
        domain: domain of all files. The default is a manifest's column `domain`, or the innermost folder in a file's
            path that is called speech, music or general.
        transcripts: from `read_transcripts`. The default is a manifest's column `text`, `transcript`, `transcription`
            or `sentence`, or a file of the same name that ends in `.normalized.txt` or `.txt`.

    Raises:
        AudioError: an input does not exist or has no audio.
    """
    references = []
    keys: set[str] = set()
    for item in list_audio(inputs):
        key = item.key if item.key and item.key not in keys else item.path
        while key in keys:  # a third file with the same key
            key += "'"
        keys.add(key)
        references.append(_reference(item, key, domain, transcripts or {}))
    return references


def _reference(item: AudioItem | BadItem, key: str, domain: str | None, transcripts: Mapping[str, str]) -> Reference:
    metadata = item.metadata if isinstance(item, AudioItem) else {}
    found = domain or metadata.get("domain") or _domain_of(item.path)
    transcript = _listed_text(item, transcripts)
    if transcript is None:
        columns = [metadata[name] for name in TEXT_COLUMNS if isinstance(metadata.get(name), str)]
        transcript = next((text for text in columns if text.strip()), None) or _text_file(item)
    return Reference(item, key, str(found), transcript)


def _domain_of(path: str) -> str:
    folders = PurePosixPath(path).parts[:-1]
    return next((part for part in reversed(folders) if part in DOMAINS), "")


def _listed_text(item: AudioItem | BadItem, transcripts: Mapping[str, str]) -> str | None:
    """Return the transcript listed under a file's key, or under the longest trailing part of its path."""
    if item.key in transcripts:
        return transcripts[item.key]
    parts = PurePosixPath(item.path).with_suffix("").parts
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((transcripts[suffix] for suffix in suffixes if suffix in transcripts), None)


def _text_file(item: AudioItem | BadItem) -> str | None:
    """Return the content of the text file next to an audio file."""
    if isinstance(item, BadItem) or item.offset is not None or "://" in item.path:
        return None
    for suffix in (".normalized.txt", ".txt"):
        path = Path(item.path).with_suffix(suffix)
        if path.is_file():
            return path.read_text(encoding="utf-8").strip() or None
    return None


def read_transcripts(path: str | Path) -> dict[str, str]:
    """Read transcripts by key, or by path without suffix, from a CSV or TSV file or a folder of such files.

    A file has a header with a column `path` or `key` and a column `text`, or no header and two columns: path, text.

    Raises:
        ValueError: a file, which the message names, is not such a table.
        OSError: a file cannot be read.
    """
    path = Path(path)
    files = sorted(each for each in path.iterdir() if each.suffix in _TABLE_SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no .csv or .tsv files in this folder; give one with the columns path and text")
    return {key: text for file in files for key, text in _read_table(file).items()}


def _read_table(path: Path) -> dict[str, str]:
    if path.suffix not in _TABLE_SUFFIXES:
        raise ValueError(f"{path}: transcripts must be a .csv or .tsv file with the columns path and text")
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix == ".tsv"
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file))
    if not rows:
        raise ValueError(f"{path} is empty; give a table with the columns path and text")
    columns = _columns(rows[0])
    if columns is None and len(rows[0]) != 2:
        raise ValueError(f"{path} has the columns {', '.join(rows[0])}; it needs path (or key) and text")
    key, text = columns or (0, 1)
    rows = rows[1:] if columns else rows
    return {_key(row[key]): row[text] for row in rows if len(row) > max(key, text) and row[text].strip()}


def _columns(header: Sequence[str]) -> tuple[int, int] | None:
    key = next((header.index(name) for name in _PATH_COLUMNS if name in header), None)
    text = next((header.index(name) for name in TEXT_COLUMNS if name in header), None)
    return None if key is None or text is None else (key, text)


def _key(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else path
