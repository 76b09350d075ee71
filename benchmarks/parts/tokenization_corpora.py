"""Collections of audio of any size for benchmarks/tokenization.py, cut and repeated from real sound."""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SPAN

FILE_RATE = 44_100  # sample rate of the stereo files
DISTINCT = 64  # different files of one collection; the others are links to them

Audio = npt.NDArray[np.float32]


def real_audio(folder: str | None, seconds: float) -> Audio:
    """Return 16 kHz audio (n,) of a folder or the bundled clips, at most 20 s of each file, repeated to `seconds`."""
    wanted, parts, held = round(seconds * SAMPLE_RATE), [], 0
    found = [item for item in list_audio([folder or str(files("sctok.samples"))]) if isinstance(item, AudioItem)]
    np.random.default_rng(0).shuffle(found)  # type: ignore[arg-type]
    for item in found:
        try:
            parts.append(read_audio(item.open(), name=item.name)[: 20 * SAMPLE_RATE])
        except AudioError:
            continue
        held += len(parts[-1])
        if held >= wanted:
            break
    return np.resize(np.concatenate(parts), wanted)


def write_collection(folder: Path, sound: Audio, count: int, seconds: float, kind: str = "wav") -> float:
    """Write `count` files of `seconds` each, and return their total seconds.

    kind: wav, 16 kHz mono PCM; flac, 44.1 kHz stereo. At most 64 files differ; the others are links. Folders hold a
    thousand files.
    """
    folder.mkdir(parents=True)
    length = round(seconds * SAMPLE_RATE)
    for index in range(min(count, DISTINCT)):
        path = _path(folder, index, kind)
        wave = np.take(sound, range(index * length, (index + 1) * length), mode="wrap")
        if kind == "flac":
            stereo = soxr.resample(wave, SAMPLE_RATE, FILE_RATE)
            soundfile.write(path, np.stack([stereo, stereo[::-1]], axis=1), FILE_RATE)
        else:
            soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
    for index in range(DISTINCT, count):
        os.link(_path(folder, index % DISTINCT, kind), _path(folder, index, kind))
    return count * seconds


def _path(folder: Path, index: int, kind: str) -> Path:
    path = folder / f"{index // 1000:03d}" / f"{index % 1000:03d}.{kind}"
    path.parent.mkdir(exist_ok=True)
    return path


def windows_of(sound: Audio, count: int) -> tuple[Audio, npt.NDArray[np.bool_]]:
    """Return `count` windows (count, 164,080) of a sound, and a mask of last windows, all false."""
    starts = [index * WINDOW_SAMPLES % max(1, len(sound) - WINDOW_SPAN) for index in range(count)]
    return np.stack([sound[start : start + WINDOW_SPAN] for start in starts]), np.zeros(count, bool)
