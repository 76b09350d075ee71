"""The collection of clips of a training: it is listed once, split by a hash, and sampled at random."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, audio_seconds, list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import read_json, write_json
from sctok.formats.untrusted.bounds import max_input_bytes
from sctok.runtime.distributed import ALONE, Group

INDEX_FILE = "clips.json"

Skipped = Callable[[str, str], None]  # gets the path and the reason of each file that is left out


class AnyClip(Protocol):
    """Interface of clips. The sampler balances groups of clips against each other."""

    @property
    def key(self) -> str:
        """Name of the clip, unique in the collection."""

    @property
    def group(self) -> Any:
        """Domain or input of the clip, of a sortable type."""

    @property
    def seconds(self) -> float:
        """Duration of the clip."""


ClipType = TypeVar("ClipType", bound=AnyClip)


@dataclass(frozen=True)
class Clip:
    """One file of a collection. `group` is its domain, or the number of the input that it came from."""

    key: str
    group: str
    item: AudioItem
    seconds: float


@dataclass(frozen=True, eq=False)
class Collection(Generic[ClipType]):
    """Clips to train on and clips held out for validation."""

    train: Sequence[ClipType]
    held_out: Sequence[ClipType]

    @property
    def hours(self) -> float:
        """Hours of audio to train on."""
        return sum(clip.seconds for clip in self.train) / 3600


def open_collection(
    inputs: Sequence[str],
    folder: Path,
    skipped: Skipped = lambda path, reason: None,
    progress: Callable[[float], None] = lambda seconds: None,
    group: Group = ALONE,
) -> Collection[Clip]:
    """List the clips of `inputs` with their durations, or read the list that an earlier call left in `folder`.

    A clip's group is the `domain` in its manifest or tar, or else its input. Files that cannot be read are reported to
    `skipped`; `progress` gets the seconds of each clip. Files whose header has no length are decoded to measure it.
    Only rank 0 lists.

    Raises:
        ValueError: no readable audio was found, or `folder` has the list of other inputs.
        AudioError: an input does not exist.
    """
    if group.leads and not (folder / INDEX_FILE).exists():
        clips = []
        for number, each in enumerate(inputs):
            for clip in _list_clips(each, number, skipped):
                clips.append(clip)
                progress(clip.seconds)
        write_index(folder, inputs, [[clip.key, clip.group, clip.item.to_json(), clip.seconds] for clip in clips])
    group.broadcast(None)
    rows = read_index(folder, inputs)
    return split_clips([Clip(key, group, AudioItem.from_json(item), seconds) for key, group, item, seconds in rows])


def split_clips(clips: Sequence[ClipType]) -> Collection[ClipType]:
    """Split clips by a hash of their keys, the same way in every run; if one part is empty, both have all clips."""
    train = [clip for clip in clips if key_share(clip.key) >= VALIDATION_SHARE]
    held_out = [clip for clip in clips if key_share(clip.key) < VALIDATION_SHARE]
    return Collection(train, held_out) if train and held_out else Collection(clips, clips)


def spread_clips(clips: Sequence[ClipType]) -> list[ClipType]:
    """Return clips in the order of a hash of their keys, so that the first ones are spread over the collection."""
    return sorted(clips, key=lambda clip: key_share("order" + clip.key))


def write_index(folder: Path, inputs: Sequence[str], rows: Sequence[Any]) -> None:
    """Write the rows that describe the clips of `inputs`. Raises ValueError if there are none."""
    if not rows:
        raise ValueError(f"no readable audio in {', '.join(map(str, inputs))}")
    write_json(folder / INDEX_FILE, {"inputs": _input_names(inputs), "clips": rows})


def read_index(folder: Path, inputs: Sequence[str]) -> list[Any]:
    """Return the rows that `write_index` wrote. Raises ValueError if `folder` has the clips of other inputs."""
    index = read_json(folder / INDEX_FILE, max_input_bytes())
    if index["inputs"] != _input_names(inputs):
        raise ValueError(f"{folder} belongs to a training on {', '.join(index['inputs'])}: choose another --name")
    rows: list[Any] = index["clips"]
    return rows


def _input_names(inputs: Sequence[str]) -> list[str]:
    return [each if "://" in each else str(Path(each).absolute()) for each in inputs]


def list_items(each: str, skipped: Skipped) -> Iterator[AudioItem]:
    """Yield the audio files of one input, and report the others to `skipped`."""
    for item in list_audio([each]):
        if isinstance(item, AudioItem):
            yield item
        else:
            skipped(item.path, item.reason)


def _list_clips(each: str, number: int, skipped: Skipped) -> Iterator[Clip]:
    for item in list_items(each, skipped):
        try:
            seconds = audio_seconds(item)
            if seconds is None:
                seconds = sum(map(len, stream_audio(item.open(), name=item.name))) / SAMPLE_RATE
        except AudioError as error:
            skipped(item.name, error.args[1])
            continue
        if seconds == 0:
            skipped(item.name, "holds no samples")
            continue
        group = str(item.metadata.get("domain") or number)
        yield Clip(f"{number}/{item.key}", group, item, round(seconds, 3))


class ClipSampler(Generic[ClipType]):
    """Draws clips at random to fill crops or windows.

    The probability of a group grows with its total length to the power `balance`, the probability of a clip in its
    group with the square root of its length: by length, short clips would hardly be drawn; by count, they would crowd
    out long ones. A share `packed` of the crops is filled with successive clips of one group; the others hold one clip
    and silence.
    """

    def __init__(
        self, clips: Sequence[ClipType], balance: float, packed: float, length: Callable[[ClipType], float]
    ) -> None:
        if not clips:
            raise ValueError("no clips to draw from: the collection is empty")
        self._packed = packed
        self._groups = [[clip for clip in clips if clip.group == name] for name in sorted({c.group for c in clips})]
        lengths = [np.array([length(clip) for clip in members], float) for members in self._groups]
        self._group_edges = _cumulative(np.array([each.sum() for each in lengths]) ** balance)
        self._clip_edges = [_cumulative(np.sqrt(each)) for each in lengths]

    def fill(self, size: int, rng: np.random.Generator, place: Callable[[Callable[[], ClipType], int], int]) -> None:
        """Fill a crop of `size` samples, or a window of `size` frames, with clips of one group.

        place: gets a function that draws a clip and the number of samples or frames filled so far; returns the number
            that it filled itself. If it returns 0, the rest stays silent.
        """
        group = _pick(self._group_edges, rng)
        draw = partial(self._draw, group, rng)
        packed, filled = rng.random() < self._packed, 0
        while filled < size:
            placed = place(draw, filled)
            filled += placed
            if not packed or not placed:
                return

    def _draw(self, group: int, rng: np.random.Generator) -> ClipType:
        return self._groups[group][_pick(self._clip_edges[group], rng)]


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative probabilities (n,) of weights (n,)."""
    edges = np.cumsum(weights / weights.sum())
    return edges / edges[-1]


def _pick(edges: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return a random index with the cumulative probabilities `edges`."""
    return int(edges.searchsorted(rng.random(), side="right"))
