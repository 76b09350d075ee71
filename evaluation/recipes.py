"""Recipes of evaluation sets: clips chosen by hashes, so that the same folders give everyone the same manifest.

The choice depends only on the seed and on the files' names below their folder. A manifest has JSON lines, which every
command of sctok reads: whole files as `path`, `key` and `domain`, excerpts as lhotse cuts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, audio_seconds, list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import atomic_path, json_text


@dataclass(frozen=True)
class RecipePart:
    """The clips of one domain in a recipe.

    Attributes:
        domain: name of the domain.
        source: name of the collection.
        clips: number of clips.
        seconds: length of excerpts, None for whole files.
        exact: whether fewer clips are an error.
        inside: subfolder to use if it exists.
        stems: endings of file names; other files are ignored if any file matches.
        held_out: number of the domain in the training of the bundled models; only clips that were held out are taken.
    """

    domain: str
    source: str
    clips: int
    seconds: float | None = None
    exact: bool = True
    inside: str = ""
    stems: tuple[str, ...] = ()
    held_out: int | None = None


# Section IV-A of the paper gives the numbers of clips; the chosen utterances and excerpts are not published.
RECIPES: Mapping[str, Sequence[RecipePart]] = {
    "paper": (
        RecipePart("speech", "LibriTTS", 300, inside="test-clean"),
        RecipePart("general", "AudioSet", 500),
        RecipePart("music", "MUSDB18", 250, 10.0, inside="test", stems=("mixture", ".stem")),
    ),
    "debian": (
        RecipePart("speech", "speech", 60, 10.0, exact=False, held_out=0),
        RecipePart("music", "music", 60, 10.0, exact=False, held_out=1),
        RecipePart("general", "general", 60, 10.0, exact=False, held_out=2),
    ),
}
_MIN_SECONDS = 1.0


def write_recipe(recipe: str, folders: Sequence[str | Path], out: Path, seed: int = 0) -> Path:
    """Write the evaluation set of a recipe as a manifest, atomically, and return its path.

    Args:
        recipe: "paper" for three folders, LibriTTS, AudioSet and MUSDB18 (its `.stem.mp4` files need ffmpeg); or
            "debian" for one folder with speech/, music/ and general/: up to 60 clips of each, none of which the
            bundled models were trained on.
        folders: the folders with audio.
        out: the `.jsonl` file to write.
        seed: seed of the choice.

    Raises:
        ValueError: the recipe is unknown, the number of folders is wrong, or a folder has too few clips.
    """
    rows = list(choose_clips(recipe, folders, seed))
    with atomic_path(out) as temporary:
        temporary.write_text("".join(f"{json_text(row)}\n" for row in rows), encoding="utf-8")
    return out


def choose_clips(recipe: str, folders: Sequence[str | Path], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows that `write_recipe` writes. Arguments and errors are the same."""
    if isinstance(folders, str | Path) or not isinstance(folders, Sequence):
        raise ValueError(f"folders must be a list of folders, not {folders!r:.80}")
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; the recipes are {', '.join(RECIPES)}")
    parts = RECIPES[recipe]
    paths = [Path(folder) for folder in folders]
    if recipe == "debian" and len(paths) == 1:
        paths = [paths[0] / part.source for part in parts]
    if len(paths) != len(parts):
        sources = " ".join(part.source for part in parts)
        raise ValueError(f"the recipe {recipe} takes folders in this order: {sources}; got {len(folders)}")
    for part, path in zip(parts, paths, strict=True):
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; the recipe {recipe} expects {part.source} there")
        yield from _choose(part, path, seed)


def _choose(part: RecipePart, folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    inner = folder / part.inside
    listed = [item for item in list_audio([inner if inner.is_dir() else folder]) if isinstance(item, AudioItem)]
    named = [item for item in listed if item.key.rsplit("/")[-1].endswith(part.stems)] if part.stems else []
    items = sorted(named or listed, key=lambda item: key_share(f"{seed} {item.key}"))
    if part.held_out is not None:
        items = [item for item in items if key_share(f"{part.held_out}/{item.key}") < VALIDATION_SHARE]
    # One clip of each file, then a second one of each, until none are left.
    turns = zip_longest(*(_clips_of(part, item, seed) for item in items))
    chosen = list(islice((row for turn in turns for row in turn if row), part.clips))
    if len(chosen) < (part.clips if part.exact else 1):
        raise ValueError(f"{folder} has {len(chosen)} suitable clips of {part.source}; the recipe takes {part.clips}")
    yield from chosen


def _clips_of(part: RecipePart, item: AudioItem, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the file, or its excerpts, which do not overlap; a file that is too short for an excerpt is one clip."""
    whole = {"path": str(Path(item.path).resolve()), "key": f"{part.domain}/{item.key}", "domain": part.domain}
    if part.seconds is None:
        yield whole
        return
    length = _length(item)
    slots = range(int(length // part.seconds))
    source = {"type": "file", "channels": [0], "source": whole["path"]}
    common = {"duration": part.seconds, "recording": {"sources": [source]}, "custom": {"domain": part.domain}}
    for slot in sorted(slots, key=lambda slot: key_share(f"{seed} {item.key} {slot}")):
        start = slot * part.seconds
        yield {"id": f"{whole['key']}@{start:g}", "start": start, **common}
    if not slots and length >= _MIN_SECONDS:
        yield whole


def _length(item: AudioItem) -> float:
    """Return the length of a file in seconds; decode it if its header has none. Unreadable files have length 0."""
    stated = audio_seconds(item)
    if stated is not None:
        return stated
    try:
        return sum(map(len, stream_audio(item.open(), name=item.name))) / SAMPLE_RATE
    except (ValueError, OSError):
        return 0.0
