"""Random crops of waveforms. A crop depends only on the seed and its number, so any batch can be drawn again."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sctok.audio.crops import read_crop
from sctok.audio.errors import AudioError
from sctok.audio.windows import SAMPLE_RATE
from sctok.runtime.memory import free_memory

from .clips import Clip, ClipSampler, Skipped, spread_clips

TRIES = 10
AUDIBLE = 1e-4  # a crop whose peak is not above this is drawn again, as in the published training code
PEAK = 0.5
QUIETEST_DB, LOUDEST_DB = -18.0, 6.0
READERS = 2
WHOLE_SECONDS = 60.0  # clips up to this length are decoded whole and cached
CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class CropConfig:
    """How crops are drawn.

    samples: length of a crop at 16 kHz; 163,840 (10.24 s) in the paper.
    balance: exponent of a group's hours in its sampling probability: 0 draws groups evenly, 1 in proportion to their
    hours.
    packed: share of crops that are filled with successive clips; the others hold one clip and silence.
    level: "peak" normalizes the clips of a crop to a peak of 0.5, as the published training code does; "random" then
        changes their level by -18 to +6 dB.
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
    """Draws crops. Crop `index` of step `step` depends only on the seed, not on batch size, ranks or earlier draws.

    Files that cannot be read are reported once to `skipped`, and other clips are drawn instead. `readers` threads read
    ahead. The most recently used clips of up to a minute are kept decoded as float32, in up to 4 GiB or an eighth of
    the memory that is free at the start.
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
        self._clips = ClipSampler(clips, config.balance, config.packed, lambda clip: clip.seconds)
        self._cache, self._room = OrderedDict[str, NDArray[np.float32]](), min(CACHE_BYTES, free_memory() // 8)
        self._ahead: dict[tuple[int, int, int], list[Future[NDArray[np.float32]]]] = {}
        self._pool = ThreadPoolExecutor(readers, "crops")

    def draw(self, step: int, first: int, count: int) -> NDArray[np.float32]:
        """Return crops `first` to `first + count` of a step, float32 (count, samples), and read the next step ahead."""
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

        def place(draw: Callable[[], Clip], filled: int) -> int:
            piece = self._piece(draw, len(crop) - filled, rng)
            crop[filled : filled + len(piece)] = self._set_level(piece, rng)
            return len(piece)

        for _ in range(TRIES):
            self._clips.fill(len(crop), rng, place)
            if np.abs(crop).max() > AUDIBLE:
                break
        return crop

    def _piece(self, draw: Callable[[], Clip], samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
        for _ in range(TRIES):
            clip = draw()
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
            whole = self._cache.get(clip.key)
            if whole is not None:
                self._cache.move_to_end(clip.key)
        if whole is None:
            whole = read_crop(clip.item, 0.0, math.ceil((clip.seconds + 1) * SAMPLE_RATE))
            with self._lock:
                self._room -= whole.nbytes if clip.key not in self._cache else 0
                self._cache[clip.key] = whole
                while self._room < 0:
                    self._room += self._cache.popitem(last=False)[1].nbytes
        return whole[round(start * SAMPLE_RATE) :][:samples]

    def _report(self, clip: Clip, reason: str) -> None:
        with self._lock:
            if clip.key not in self._bad:
                self._bad.add(clip.key)
                self._skipped(clip.item.name, reason)

    def _set_level(self, piece: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        piece = piece - piece.mean() if len(piece) else piece
        peak = float(np.abs(piece).max(initial=0.0))
        decibels = rng.uniform(QUIETEST_DB, LOUDEST_DB) if self.config.level == "random" else 0.0
        return piece * np.float32(PEAK / peak * 10 ** (decibels / 20)) if peak > AUDIBLE else piece


def validation_crops(
    clips: Sequence[Clip], config: CropConfig, limit: int, otherwise: Sequence[Clip] = ()
) -> NDArray[np.float32]:
    """Return the beginnings of up to `limit` clips, spread over the collection, at a peak of 0.5: float32 (n, samples).

    If none of `clips` is audible, clips of `otherwise` are used. Raises ValueError if none of these is, either.
    """
    crops: list[NDArray[np.float32]] = []
    problem = "the collection is empty"
    for clip in spread_clips(clips):
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
    raise ValueError(f"none of {len(clips)} clips can be used for validation: {problem}")
