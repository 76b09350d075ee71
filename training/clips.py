"""Random crops of an audio collection for training, drawn by number so that any batch can be drawn again."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sctok.audio.crops import read_crop
from sctok.audio.decoding.decode import stream_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, audio_seconds, list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.files import read_json, write_json
from sctok.formats.untrusted.bounds import max_input_bytes
from sctok.runtime.distributed import ALONE, Group
from sctok.runtime.memory import free_memory

from .mel_cache import chance_edges, pick

INDEX_FILE = "clips.json"
TRIES = 10
AUDIBLE = 1e-4  # a crop that nowhere exceeds this is drawn again, as in the published training code
PEAK = 0.5
QUIETEST_DB, LOUDEST_DB = -18.0, 6.0
READERS = 2
WHOLE_SECONDS = 60.0  # clips up to this long are decoded as a whole, and kept
KEPT_BYTES = 4 << 30

Skipped = Callable[[str, str], None]


@dataclass(frozen=True)
class Clip:
    """One file of a collection, of `group` (its domain, or the input that it came from)."""

    key: str
    group: str
    item: AudioItem
    seconds: float


def index_clips(
    inputs: Sequence[str],
    folder: Path,
    skipped: Skipped = lambda path, reason: None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> list[Clip]:
    """List the clips of `inputs` with their durations, or read the list that an earlier call left in `folder`.

    A clip's group is the `domain` that its manifest or tar states, else its input. Files that cannot be read are
    reported to `skipped` (path, reason); `progress` gets the seconds of each clip. Files whose header does not state
    their length are decoded to find it.

    Raises:
        ValueError: nothing was found, or `folder` holds the list of other inputs.
        AudioError: an input does not exist.
    """
    names = [each if "://" in each else str(Path(each).absolute()) for each in inputs]
    if not (folder / INDEX_FILE).exists():
        clips = []
        for number, each in enumerate(inputs):
            for clip in _list_clips(each, number, skipped):
                clips.append(clip)
                progress(clip.seconds)
        if not clips:
            raise ValueError(f"no readable audio in {', '.join(map(str, inputs))}")
        rows = [[clip.key, clip.group, clip.item.to_json(), clip.seconds] for clip in clips]
        write_json(folder / INDEX_FILE, {"inputs": names, "clips": rows})
    index = read_json(folder / INDEX_FILE, max_input_bytes())
    if index["inputs"] != names:
        raise ValueError(f"{folder} belongs to a training on {', '.join(index['inputs'])}: choose another --name")
    return [Clip(key, group, AudioItem.from_json(item), seconds) for key, group, item, seconds in index["clips"]]


def _list_clips(each: str, number: int, skipped: Skipped) -> Iterator[Clip]:
    for item in list_audio([each]):
        if not isinstance(item, AudioItem):
            skipped(item.path, item.reason)
            continue
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


def split_clips(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Return (training, validation) clips: a hash of the key decides, as for the encoder's training."""
    train = [clip for clip in clips if key_share(clip.key) >= VALIDATION_SHARE]
    held_out = [clip for clip in clips if key_share(clip.key) < VALIDATION_SHARE]
    return (train, held_out) if train and held_out else (list(clips), list(clips))


@dataclass(frozen=True)
class CropConfig:
    """How crops are drawn.

    samples: of one crop, at 16 kHz; 163,840 (10.24 s) in the paper.
    balance: a group is drawn by its hours to this power: 0 evenly, 1 by hours.
    packed: share of crops that are filled with clip after clip; the others hold one clip and silence.
    level: "peak" normalises every crop to a peak of 0.5, as the published training code; "random" does so and then
        changes it by -18 to +6 dB, so that a model learns levels.
    """

    samples: int = 163_840
    balance: float = 0.5
    packed: float = 0.0
    level: str = "peak"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1_600:
            raise ValueError(f"crops of {self.samples} samples are shorter than 0.1 s")
        if not 0 <= self.packed <= 1 or not 0 <= self.balance <= 1:
            raise ValueError(f"packed {self.packed} and balance {self.balance} must lie between 0 and 1")
        if self.level not in ("peak", "random"):
            raise ValueError(f"level {self.level!r} is neither peak nor random")


class CropSampler:
    """Draws crop `index` of step `step` from the seed alone: independent of batch sizes, ranks and what came before.

    Files that cannot be read are reported once to `skipped` and drawn around. `readers` threads read ahead. Clips of up
    to a minute are kept as float32 once they were decoded, the last ones used, in up to 4 GiB or an eighth of what
    memory is free at the start.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        config: CropConfig,
        skipped: Skipped = lambda path, reason: None,
        readers: int = READERS,
    ) -> None:
        self.config = config
        self._skipped, self._bad, self._lock = skipped, set[str](), threading.Lock()
        names = sorted({clip.group for clip in clips})
        self._members = [[clip for clip in clips if clip.group == name] for name in names]
        seconds = [np.array([clip.seconds for clip in members]) for members in self._members]
        self._group_edges = chance_edges(np.array([each.sum() for each in seconds]) ** config.balance)
        # Short clips would never be drawn by length alone, and long ones would be lost among them by count.
        self._clip_edges = [chance_edges(np.sqrt(each)) for each in seconds]
        self._kept, self._room = OrderedDict[str, NDArray[np.float32]](), min(KEPT_BYTES, free_memory() // 8)
        self._ahead: dict[tuple[int, int, int], list[Future[NDArray[np.float32]]]] = {}
        self._pool = ThreadPoolExecutor(readers, "crops")

    def draw(self, step: int, first: int, count: int) -> NDArray[np.float32]:
        """Return crops `first` to `first + count` of a step, float32 (count, samples); reads the next step ahead."""
        for key in [key for key in self._ahead if key[0] < step]:
            for future in self._ahead.pop(key):
                future.cancel()
        crops = self._ahead.pop((step, first, count), None) or self._begin(step, first, count)
        self._ahead[step + 1, first, count] = self._begin(step + 1, first, count)
        return np.stack([crop.result() for crop in crops])

    def _begin(self, step: int, first: int, count: int) -> list[Future[NDArray[np.float32]]]:
        seeds = [(self.config.seed, step, first + index) for index in range(count)]
        return [self._pool.submit(self._crop, np.random.default_rng(seed)) for seed in seeds]

    def _crop(self, rng: np.random.Generator) -> NDArray[np.float32]:
        crop = np.zeros(self.config.samples, np.float32)
        for _ in range(TRIES):
            group = pick(self._group_edges, rng)
            packed, filled = rng.random() < self.config.packed, 0
            while filled < len(crop):
                piece = self._piece(group, len(crop) - filled, rng)
                crop[filled : filled + len(piece)] = self._levelled(piece, rng)
                filled += len(piece)
                if not packed or not len(piece):
                    break
            if np.abs(crop).max() > AUDIBLE:
                break
        return crop

    def _piece(self, group: int, samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
        for _ in range(TRIES):
            clip = self._members[group][pick(self._clip_edges[group], rng)]
            start = rng.random() * max(0.0, clip.seconds - samples / SAMPLE_RATE)
            try:
                piece = self._read(clip, start, samples)
            except AudioError as error:
                self._report(clip, error.args[1])
                continue
            if len(piece):
                return piece
            self._report(clip, f"has no samples at {start:.2f} s")
        return np.empty(0, np.float32)

    def _read(self, clip: Clip, start: float, samples: int) -> NDArray[np.float32]:
        if clip.seconds > WHOLE_SECONDS:
            return read_crop(clip.item, start, samples)
        with self._lock:
            whole = self._kept.get(clip.key)
            if whole is not None:
                self._kept.move_to_end(clip.key)
        if whole is None:
            whole = read_crop(clip.item, 0.0, math.ceil((clip.seconds + 1) * SAMPLE_RATE))
            with self._lock:
                self._room -= whole.nbytes if clip.key not in self._kept else 0
                self._kept[clip.key] = whole
                while self._room < 0:
                    self._room += self._kept.popitem(last=False)[1].nbytes
        return whole[round(start * SAMPLE_RATE) :][:samples]

    def _report(self, clip: Clip, reason: str) -> None:
        with self._lock:
            if clip.key not in self._bad:
                self._bad.add(clip.key)
                self._skipped(clip.item.name, reason)

    def _levelled(self, piece: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        piece = piece - piece.mean() if len(piece) else piece
        peak = float(np.abs(piece).max(initial=0.0))
        decibels = rng.uniform(QUIETEST_DB, LOUDEST_DB) if self.config.level == "random" else 0.0
        return piece * np.float32(PEAK / peak * 10 ** (decibels / 20)) if peak > AUDIBLE else piece


def validation_crops(
    clips: Sequence[Clip], config: CropConfig, limit: int, otherwise: Sequence[Clip] = ()
) -> NDArray[np.float32]:
    """Return float32 (n, samples): the beginnings of up to `limit` clips, spread over the collection, peak 0.5.

    Where none of `clips` can be heard, those of `otherwise` are taken. Raises ValueError where none can be, either.
    """
    crops: list[NDArray[np.float32]] = []
    problem = "there are none"
    for clip in sorted(clips, key=lambda clip: key_share("order" + clip.key)):
        if len(crops) == limit:
            break
        try:
            piece = read_crop(clip.item, 0.0, config.samples)
        except AudioError as error:
            problem = str(error)
            continue
        peak = float(np.abs(piece).max(initial=0.0))
        if peak <= AUDIBLE:
            problem = f"{clip.item.name} begins with silence"
            continue
        crops.append(np.pad(piece * (PEAK / peak), (0, config.samples - len(piece))).astype(np.float32))
    if crops:
        return np.stack(crops)
    if otherwise:
        return validation_crops(otherwise, config, limit)
    raise ValueError(f"none of {len(clips)} clips can be validated on: {problem}")


@dataclass(frozen=True, eq=False)
class Collection:
    """Clips to train on and clips held out."""

    train: Sequence[Clip]
    held_out: Sequence[Clip]

    @property
    def hours(self) -> float:
        """Hours of audio to train on."""
        return sum(clip.seconds for clip in self.train) / 3600

    def validation(self, config: CropConfig, limit: int) -> NDArray[np.float32]:
        """Return validation crops float32 (n, samples)."""
        return validation_crops(self.held_out, config, limit, otherwise=self.train)


def open_collection(
    audio: Sequence[str],
    folder: Path,
    skipped: Skipped = lambda path, reason: None,
    progress: Callable[[float], None] = lambda seconds: None,
    group: Group = ALONE,
) -> Collection:
    """Return the clips of `audio`, listed once for all runs in `folder` and by the first rank alone.

    Arguments and errors are those of `index_clips`.
    """
    if group.leads:
        index_clips(audio, folder, skipped, progress)
    group.broadcast(None)
    return Collection(*split_clips(index_clips(audio, folder)))
