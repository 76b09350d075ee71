"""Filterbanks of a collection in one file on disk, and random windows of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.filterbank import SILENCE, filterbank
from sctok.audio.loader import Chunk, load_windows
from sctok.audio.windows import FRAME_SHIFT, MEL_BINS, SAMPLE_RATE, WINDOW_FRAMES
from sctok.formats.files import atomic_path
from sctok.runtime.distributed import ALONE, Group

from .clips import INDEX_FILE, ClipSampler, Skipped, list_items, read_index, split_clips, spread_clips, write_index

FRAMES_FILE = "frames.f16"

GAIN = 0.3  # a random level change of up to ±12 dB, in normalized log energy
PACKED_SHARE = 0.6  # share of windows filled with successive clips; the others hold one clip and silence
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CachedClip:
    """Frames `start` to `start + frames` of the cache: one file of the input with the number `group`."""

    key: str
    group: int
    start: int
    frames: int

    @property
    def seconds(self) -> float:
        """Duration of the clip."""
        return self.frames * FRAME_SHIFT / SAMPLE_RATE


class FilterbankCache:
    """Filterbanks of a collection, memory-mapped: `frames.f16` (frames, 128) and `clips.json` in one folder."""

    def __init__(self, inputs: Sequence[str], folder: Path) -> None:
        """Open the cache of `inputs`. Raises ValueError if `folder` has the filterbanks of other inputs."""
        self.clips = [CachedClip(**row) for row in read_index(folder, inputs)]
        self.collection = split_clips(self.clips)
        self.frames = np.memmap(folder / FRAMES_FILE, np.float16, "r").reshape(-1, MEL_BINS)

    @property
    def hours(self) -> float:
        """Hours of audio of all clips."""
        return len(self.frames) * FRAME_SHIFT / SAMPLE_RATE / 3600


def build_filterbank_cache(
    inputs: Sequence[str],
    folder: Path,
    *,
    workers: int,
    channel: int | None = None,
    device: torch.device = CPU,
    skipped: Skipped = lambda path, reason: None,
    progress: Callable[[str, float], None] = lambda key, seconds: None,
    group: Group = ALONE,
) -> FilterbankCache:
    """Compute the filterbanks of all files of `inputs` on `device`, or open those that an earlier call computed.

    Each input is one group. Rank 0 computes. Files that cannot be read are reported to `skipped` and left out;
    `progress` gets the key and the seconds of audio of each file done.

    Raises:
        ValueError: no readable audio was found, or `folder` has the filterbanks of other inputs.
    """
    if group.leads and not (folder / INDEX_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        clips: list[CachedClip] = []
        with atomic_path(folder / FRAMES_FILE) as temporary, temporary.open("wb") as file:
            for number, each in enumerate(inputs):
                chunks = load_windows(list_items(each, skipped), workers=workers, channel=channel)
                _append_group(file, clips, number, chunks, device, skipped, progress)
        write_index(folder, inputs, [asdict(clip) for clip in clips])
    group.broadcast(None)
    return FilterbankCache(inputs, folder)


def _append_group(
    file: BinaryIO,
    clips: list[CachedClip],
    group: int,
    chunks: Iterable[Chunk],
    device: torch.device,
    skipped: Skipped,
    progress: Callable[[str, float], None],
) -> None:
    start = clips[-1].start + clips[-1].frames if clips else 0
    done = 0
    for chunk in chunks:
        if chunk.error is not None:
            skipped(chunk.item.path, chunk.error)
            file.truncate(start * MEL_BINS * 2)
            file.seek(0, 2)
            done = 0
            continue
        mels = _chunk_mels(chunk, device)
        if chunk.last:
            mels = mels[: -(-(chunk.samples or 0) // FRAME_SHIFT) - done]
        file.write(mels.tobytes())
        done += len(mels)
        if chunk.last and done:
            clip = CachedClip(f"{group}/{chunk.item.key}", group, start, done)
            clips.append(clip)
            progress(chunk.item.key, clip.seconds)
            start, done = start + done, 0


def _chunk_mels(chunk: Chunk, device: torch.device) -> NDArray[np.float16]:
    # One window at a time on CPUs, where the result would otherwise depend on the number of windows.
    waves = torch.from_numpy(chunk.waves).to(device).split(1 if device.type == "cpu" else len(chunk.waves))
    mels = [filterbank(each, torch.zeros(len(each), dtype=torch.bool, device=device)).half() for each in waves]
    return np.concatenate([each.flatten(0, 1).numpy(force=True) for each in mels])


class WindowSampler:
    """Draws training windows as indices of frames; see `ClipSampler` for `balance`."""

    def __init__(self, clips: Sequence[CachedClip], balance: float) -> None:
        self._clips = ClipSampler(clips, balance, PACKED_SHARE, lambda clip: clip.frames)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Return the frames and levels from which `cut_windows` makes `count` windows.

        Both are (count, 1024): indices of frames in the cache, int64, with -1 for silence; level changes, float32.
        """
        frames = np.full((count, WINDOW_FRAMES), -1, np.int64)
        levels = np.zeros((count, WINDOW_FRAMES), np.float32)
        for window in zip(frames, levels, strict=True):
            self._fill(*window, rng)
        return torch.from_numpy(frames), torch.from_numpy(levels)

    def _fill(self, frames: NDArray[np.int64], levels: NDArray[np.float32], rng: np.random.Generator) -> None:
        def place(draw: Callable[[], CachedClip], filled: int) -> int:
            clip = draw()
            count = min(WINDOW_FRAMES - filled, clip.frames)
            start = clip.start + int(rng.integers(clip.frames - count + 1))
            levels[filled : filled + count] = rng.uniform(-GAIN, GAIN)
            frames[filled : filled + count] = np.arange(start, start + count)
            return count

        self._clips.fill(WINDOW_FRAMES, rng, place)


def cut_windows(cache: Tensor, frames: Tensor, levels: Tensor) -> Tensor:
    """Return windows float32 (n, 1024, 128) of the cache, float16 (m, 128), as `WindowSampler.draw` chose them."""
    chosen = cache[frames.clamp(min=0).flatten()].view(*frames.shape, MEL_BINS)
    windows = (chosen.float() + levels[..., None]).clamp(min=SILENCE)
    return windows.where((frames >= 0)[..., None], SILENCE)


def validation_windows(cache: FilterbankCache, limit: int) -> NDArray[np.float32]:
    """Return the first window of up to `limit` held-out clips, spread over the collection: float32 (n, 1024, 128)."""
    chosen = spread_clips(cache.collection.held_out)[:limit]
    windows = np.full((len(chosen), WINDOW_FRAMES, MEL_BINS), SILENCE, np.float32)
    for window, clip in zip(windows, chosen, strict=True):
        count = min(clip.frames, WINDOW_FRAMES)
        window[:count] = cache.frames[clip.start : clip.start + count]
    return windows
