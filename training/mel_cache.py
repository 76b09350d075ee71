"""Filterbanks of a training collection on disk: one flat float16 file, random windows cut from it by index."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.filterbank import SILENCE, filterbank
from sctok.audio.inputs.held_out import VALIDATION_SHARE, key_share
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.loader import Chunk, load_windows
from sctok.audio.windows import FRAME_SHIFT, MEL_BINS, WINDOW_FRAMES
from sctok.formats.files import atomic_path, read_json, write_json
from sctok.formats.untrusted.bounds import max_input_bytes

FRAMES_FILE = "frames.f16"
INDEX_FILE = "clips.json"

GAIN = 0.3  # a random level change of up to ±12 dB, in normalised log energy
PACKED_SHARE = 0.6  # of the windows are filled with clip after clip; the others hold one clip and padding
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CachedClip:
    """One cached file: frames `start` to `start + frames`, from the `group`-th input of the collection."""

    key: str
    group: int
    start: int
    frames: int


class MelCache:
    """Filterbanks of many clips, memory-mapped: `frames.f16` (frames, 128) and `clips.json` in one folder."""

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / INDEX_FILE, max_input_bytes())
        self.inputs: list[str] = index["inputs"]
        self.clips = [CachedClip(**row) for row in index["clips"]]
        self.frames = np.memmap(folder / FRAMES_FILE, np.float16, "r").reshape(-1, MEL_BINS)

    def split(self) -> tuple[list[CachedClip], list[CachedClip]]:
        """Return (training, validation) clips; a hash of the key decides, so that both stay the same on every run."""
        held_out = [key_share(clip.key) < VALIDATION_SHARE for clip in self.clips]
        train = [clip for clip, out in zip(self.clips, held_out, strict=True) if not out]
        return train, [clip for clip, out in zip(self.clips, held_out, strict=True) if out]

    def cut(self, clip: CachedClip, offset: int, frames: int) -> NDArray[np.float32]:
        """Return up to `frames` frames of a clip from `offset` on, float32 (n, 128)."""
        start = clip.start + offset
        return self.frames[start : min(start + frames, clip.start + clip.frames)].astype(np.float32)


def build_mel_cache(
    inputs: Sequence[str],
    folder: Path,
    *,
    workers: int,
    channel: int | None = None,
    device: torch.device = CPU,
    skipped: Callable[[str, str], None] = lambda path, reason: None,
    progress: Callable[[str, float], None] = lambda key, seconds: None,
) -> MelCache:
    """Compute on `device` the filterbanks of every file under `inputs`, or open those that an earlier call computed.

    Each input is one group. Files that cannot be read are reported to `skipped` (path, reason) and left out;
    `progress` gets the key and the seconds of audio of each file done.

    Raises:
        ValueError: nothing readable was found, or `folder` holds the filterbanks of other inputs.
    """
    names = [str(Path(each).absolute()) for each in inputs]
    if not (folder / INDEX_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        clips: list[CachedClip] = []
        with atomic_path(folder / FRAMES_FILE) as temporary, temporary.open("wb") as file:
            for group, each in enumerate(inputs):
                chunks = load_windows(_readable(each, skipped), workers=workers, channel=channel)
                _append_group(file, clips, group, chunks, device, skipped, progress)
        if not clips:
            raise ValueError(f"no readable audio in {', '.join(map(str, inputs))}")
        write_json(folder / INDEX_FILE, {"inputs": names, "clips": [asdict(clip) for clip in clips]})
    cache = MelCache(folder)
    if cache.inputs != names:
        raise ValueError(f"{folder} holds filterbanks of {', '.join(cache.inputs)}: choose another --name")
    return cache


def _readable(each: str, skipped: Callable[[str, str], None]) -> Iterable[AudioItem]:
    for item in list_audio([each]):
        if isinstance(item, AudioItem):
            yield item
        else:
            skipped(item.path, item.reason)


def _append_group(
    file: BinaryIO,
    clips: list[CachedClip],
    group: int,
    chunks: Iterable[Chunk],
    device: torch.device,
    skipped: Callable[[str, str], None],
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
            clips.append(CachedClip(f"{group}/{chunk.item.key}", group, start, done))
            progress(chunk.item.key, done * FRAME_SHIFT / 16_000)
            start, done = start + done, 0


def _chunk_mels(chunk: Chunk, device: torch.device) -> NDArray[np.float16]:
    # One window at a time on CPUs, where what comes out would otherwise depend on how many there are.
    waves = torch.from_numpy(chunk.waves).to(device).split(1 if device.type == "cpu" else len(chunk.waves))
    mels = [filterbank(each, torch.zeros(len(each), dtype=torch.bool, device=device)).half() for each in waves]
    return np.concatenate([each.flatten(0, 1).numpy(force=True) for each in mels])


class WindowSampler:
    """Draws training windows; a group's chance grows with its hours to the power `balance`."""

    def __init__(self, cache: MelCache, clips: Sequence[CachedClip], balance: float) -> None:
        if not clips:
            raise ValueError("no clips to draw training windows from: the collection is empty or too small to split")
        self.cache = cache
        groups = sorted({clip.group for clip in clips})
        self.members = [[clip for clip in clips if clip.group == group] for group in groups]
        frames = [np.array([clip.frames for clip in members], float) for members in self.members]
        self._group_edges = chance_edges(np.array([each.sum() for each in frames]) ** balance)
        # Short clips would never be drawn by length alone, and long ones would be lost among them by count.
        self._clip_edges = [chance_edges(np.sqrt(each)) for each in frames]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Return what `cut_windows` makes `count` windows of.

        That is for each frame its place in the cache, int64 (count, 1024), -1 for silence, and its level, float32.
        """
        frames = np.full((count, WINDOW_FRAMES), -1, np.int64)
        levels = np.zeros((count, WINDOW_FRAMES), np.float32)
        for window in zip(frames, levels, strict=True):
            self._fill(*window, rng)
        return torch.from_numpy(frames), torch.from_numpy(levels)

    def _fill(self, frames: NDArray[np.int64], levels: NDArray[np.float32], rng: np.random.Generator) -> None:
        group = pick(self._group_edges, rng)
        packed = rng.random() < PACKED_SHARE
        filled = 0
        while filled < WINDOW_FRAMES:
            clip = self.members[group][pick(self._clip_edges[group], rng)]
            spare = max(0, clip.frames - (WINDOW_FRAMES - filled))
            start = clip.start + int(rng.integers(spare + 1))
            count = min(WINDOW_FRAMES - filled, clip.frames)
            levels[filled : filled + count] = rng.uniform(-GAIN, GAIN)
            frames[filled : filled + count] = np.arange(start, start + count)
            filled += count
            if not packed:
                break


def cut_windows(cache: Tensor, frames: Tensor, levels: Tensor) -> Tensor:
    """Return windows float32 (n, 1024, 128) from frames float16 (m, 128) as `WindowSampler.draw` chose them."""
    chosen = cache[frames.clamp(min=0).flatten()].view(*frames.shape, MEL_BINS)
    windows = (chosen.float() + levels[..., None]).clamp(min=SILENCE)
    return windows.where((frames >= 0)[..., None], SILENCE)


def chance_edges(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what `pick` picks by: the running sums of chances, which weights (n,) stand for."""
    edges = np.cumsum(weights / weights.sum())
    return edges / edges[-1]


def pick(edges: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return a random index, by the chances of `chance_edges`."""
    return int(edges.searchsorted(rng.random(), side="right"))


def validation_windows(cache: MelCache, clips: Iterable[CachedClip], limit: int) -> NDArray[np.float32]:
    """Return float32 (n, 1024, 128): the first window of up to `limit` clips, spread over the collection."""
    chosen = sorted(clips, key=lambda clip: key_share("order" + clip.key))[:limit]
    windows = np.full((len(chosen), WINDOW_FRAMES, MEL_BINS), SILENCE, np.float32)
    for window, clip in zip(windows, chosen, strict=True):
        piece = cache.cut(clip, 0, WINDOW_FRAMES)
        window[: len(piece)] = piece
    return windows
