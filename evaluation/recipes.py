"""Evaluation sets by recipe: the same clips of the same folders for everybody, chosen by hashes, as a manifest.

The choice depends on the seed and on the files' names below their folder alone. A manifest is JSON lines that every
command of sctok reads: whole files as `path`, `key` and `domain`, stretches of files as cuts of lhotse.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, audio_seconds, list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import atomic_path, json_text


@dataclass(frozen=True)
class Part:
    """Clips of one domain. seconds: length of the stretches taken; None for whole files. exact: fewer are an error.

    inside: a folder that is gone into where it is there. stems: which files count where there are any of these.
    held_out: where the bundled models were trained on what the others are, the place of the domain in that training.
    """

    domain: str
    source: str
    clips: int
    seconds: float | None = None
    exact: bool = True
    inside: str = ""
    stems: tuple[str, ...] = ()
    held_out: int | None = None


# Section IV-A of the paper gives the numbers; which utterances and stretches it took is not published.
RECIPES: Mapping[str, Sequence[Part]] = {
    "paper": (
        Part("speech", "LibriTTS", 300, inside="test-clean"),
        Part("general", "AudioSet", 500),
        Part("music", "MUSDB18", 250, 10.0, inside="test", stems=("mixture", ".stem")),
    ),
    "debian": (
        Part("speech", "speech", 60, 10.0, exact=False, held_out=0),
        Part("music", "music", 60, 10.0, exact=False, held_out=1),
        Part("general", "general", 60, 10.0, exact=False, held_out=2),
    ),
}
_MIN_SECONDS = 1.0


def write_recipe(recipe: str, folders: Sequence[str | Path], out: Path, seed: int = 0) -> Path:
    """Write the evaluation set of a recipe as a manifest, atomically, and return its path.

    Args:
        recipe: "paper", for three folders, LibriTTS, AudioSet and MUSDB18 (with ffmpeg for its `.stem.mp4`); or
            "debian", for one folder with speech/, music/ and general/, of which it takes up to 60 clips each that the
            bundled models were not trained on.
        folders: where the audio is.
        out: a `.jsonl` file.
        seed: another one chooses other clips.

    Raises:
        ValueError: the recipe is unknown, the folders are too many or too few, or hold too few clips.
    """
    rows = list(choose_clips(recipe, folders, seed))
    with atomic_path(out) as temporary:
        temporary.write_text("".join(f"{json_text(row)}\n" for row in rows), encoding="utf-8")
    return out


def choose_clips(recipe: str, folders: Sequence[str | Path], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows that `write_recipe` writes; arguments and errors are the same."""
    if isinstance(folders, str | Path) or not isinstance(folders, Sequence):
        raise ValueError(f"folders must be a list of folders, not {folders!r:.80}")
    if recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    parts = RECIPES[recipe]
    places = [Path(folder) for folder in folders]
    if recipe == "debian" and len(places) == 1:
        places = [places[0] / part.source for part in parts]
    if len(places) != len(parts):
        wanted = " ".join(part.source for part in parts)
        raise ValueError(f"the recipe {recipe} takes folders in this order: {wanted}; {len(folders)} are given")
    for part, place in zip(parts, places, strict=True):
        if not place.is_dir():
            raise ValueError(f"{place}: is no folder; the recipe {recipe} looks for {part.source} there")
        yield from _clips(part, place, seed)


def _clips(part: Part, folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    inner = folder / part.inside
    listed = [item for item in list_audio([inner if inner.is_dir() else folder]) if isinstance(item, AudioItem)]
    named = [item for item in listed if item.key.rsplit("/")[-1].endswith(part.stems)] if part.stems else []
    items = sorted(named or listed, key=lambda item: _order(seed, item.key))
    if part.held_out is not None:
        items = [item for item in items if key_share(f"{part.held_out}/{item.key}") < VALIDATION_SHARE]
    rows = _stretches(part, items, seed) if part.seconds else (_whole(part, item) for item in items)
    chosen = list(islice(rows, part.clips))
    if len(chosen) < (part.clips if part.exact else 1):
        raise ValueError(f"{folder}: has {len(chosen)} clips of {part.source} that fit, the recipe takes {part.clips}")
    yield from chosen


def _order(seed: int, text: str) -> float:
    return key_share(f"{seed} {text}")


def _whole(part: Part, item: AudioItem) -> dict[str, Any]:
    return {"path": str(Path(item.path).resolve()), "key": f"{part.domain}/{item.key}", "domain": part.domain}


def _stretches(part: Part, items: Sequence[AudioItem], seed: int) -> Iterator[dict[str, Any]]:
    """Yield stretches that do not overlap: the first of each file, then the second of each, as far as they go."""
    assert part.seconds is not None
    lengths = {item.key: _length(item) for item in items}
    for turn in range(part.clips):
        found = False
        for item in items:
            length = lengths[item.key]
            slots = sorted(range(int(length // part.seconds)), key=lambda slot: _order(seed, f"{item.key} {slot}"))
            if turn < len(slots):
                found = True
                yield _cut(part, item, slots[turn] * part.seconds)
            elif not slots and not turn and length >= _MIN_SECONDS:
                found = True
                yield _whole(part, item)
        if not found:
            return


def _length(item: AudioItem) -> float:
    """Return the seconds of a file, decoding it where no header says; 0 for one that cannot be read."""
    stated = audio_seconds(item)
    if stated is not None:
        return stated
    try:
        return sum(map(len, stream_audio(item.open(), name=item.name))) / SAMPLE_RATE
    except (ValueError, OSError):
        return 0.0


def _cut(part: Part, item: AudioItem, start: float) -> dict[str, Any]:
    source = {"type": "file", "channels": [0], "source": str(Path(item.path).resolve())}
    key = f"{part.domain}/{item.key}@{start:g}"
    custom = {"domain": part.domain}
    return {"id": key, "start": start, "duration": part.seconds, "recording": {"sources": [source]}, "custom": custom}
