"""What codecs are measured on: references with their domains and transcripts."""

import csv
from collections.abc import Iterable, Mapping, Sequence
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
    """A file to code and decode. key: its name in tables and files. domain: "" where unknown. transcript: if known."""

    item: AudioItem | BadItem
    key: str
    domain: str = ""
    transcript: str | None = None


def list_references(
    inputs: Sequence[str | Path], domain: str | None = None, transcripts: Mapping[str, str] | None = None
) -> list[Reference]:
    """Return the audio in folders, files, manifests and tar shards, as `list_audio` does, with domains and transcripts.

    domain: of all files; else a manifest's column `domain`, or the last folder on the way to a file that is called
    speech, music or general. transcripts: as `read_transcripts` gives them; else a manifest's column `text`,
    `transcript`, `transcription` or `sentence`, or the file of the same name that ends in `.normalized.txt` or `.txt`.
    What cannot be read is among them, with the reason. Raises AudioError for an input that does not exist or holds no
    audio.
    """
    found = []
    taken: set[str] = set()
    for item in list_audio(inputs):
        key = item.key if item.key and item.key not in taken else item.path
        while key in taken:  # the third of three files of one key
            key += "'"
        taken.add(key)
        found.append(_reference(item, key, domain, transcripts or {}))
    return found


def _reference(item: AudioItem | BadItem, key: str, domain: str | None, transcripts: Mapping[str, str]) -> Reference:
    metadata = item.metadata if isinstance(item, AudioItem) else {}
    found = domain or metadata.get("domain") or _domain_of(item.path)
    said = _listed_text(item, transcripts)
    if said is None:
        columns = [metadata[name] for name in TEXT_COLUMNS if isinstance(metadata.get(name), str)]
        said = next((text for text in columns if text.strip()), None) or _text_beside(item)
    return Reference(item, key, str(found), said)


def _domain_of(path: str) -> str:
    folders = PurePosixPath(path).parts[:-1]
    return next((part for part in reversed(folders) if part in DOMAINS), "")


def _listed_text(item: AudioItem | BadItem, transcripts: Mapping[str, str]) -> str | None:
    """Return the transcript listed under a file's key, or under an end of its path, the longest first."""
    if item.key in transcripts:
        return transcripts[item.key]
    parts = PurePosixPath(item.path).with_suffix("").parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((transcripts[end] for end in ends if end in transcripts), None)


def _text_beside(item: AudioItem | BadItem) -> str | None:
    if isinstance(item, BadItem) or item.offset is not None or "://" in item.path:
        return None
    for suffix in (".normalized.txt", ".txt"):
        path = Path(item.path).with_suffix(suffix)
        if path.is_file():
            return path.read_text(encoding="utf-8").strip() or None
    return None


def read_transcripts(path: str | Path) -> dict[str, str]:
    """Return transcripts by key or path without suffix, from a CSV or TSV file or a folder of them.

    A file has a header with a column `path` or `key` and a column `text`, or no header and two columns: path, text.
    Raises ValueError naming the file for one that is neither, OSError where it cannot be read.
    """
    path = Path(path)
    files = sorted(each for each in path.iterdir() if each.suffix in _TABLE_SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no .csv or .tsv files in this folder; give one with the columns path and text")
    found: dict[str, str] = {}
    for file in files:
        found.update(_table(file))
    return found


def _table(path: Path) -> dict[str, str]:
    if path.suffix not in _TABLE_SUFFIXES:
        raise ValueError(f"{path}: transcripts are read from .csv and .tsv files, with the columns path and text")
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".tsv":
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        else:
            rows = list(csv.reader(file))
    if not rows:
        raise ValueError(f"{path}: is empty; give a table with the columns path and text")
    places = _columns(rows[0])
    if places is None and len(rows[0]) != 2:
        raise ValueError(f"{path}: has the columns {', '.join(rows[0])}; path (or key) and text are needed")
    where, what = places or (0, 1)
    kept: Iterable[list[str]] = rows[1:] if places else rows
    return {_key(row[where]): row[what] for row in kept if len(row) > max(where, what) and row[what].strip()}


def _columns(header: Sequence[str]) -> tuple[int, int] | None:
    where = next((header.index(name) for name in _PATH_COLUMNS if name in header), None)
    what = next((header.index(name) for name in TEXT_COLUMNS if name in header), None)
    return None if where is None or what is None else (where, what)


def _key(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else path
