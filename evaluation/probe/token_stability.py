"""Do tokens stay the same when the sound does, but for what nobody hears?"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.decoding.decode import read_audio
from sctok.audio.windows import SAMPLE_RATE

from .features import Samples, System

GAIN_DB = -6.0
NOISE_DB = 30.0  # of signal over noise
MP3_LEVEL = 0.6  # of libsndfile's compression levels: 64 kbit/s at 16 kHz
SHORTEST = 2  # samples; of one, a shift leaves nothing

Change = Callable[[Samples], Samples]


@dataclass(frozen=True)
class Stability:
    """Share of a stream's tokens that a change leaves as they were, over `tokens` of `clips`, its standard error."""

    change: str
    stream: str
    unchanged: float
    standard_error: float
    clips: int
    tokens: int


def sound_changes(seed: int = 0) -> dict[str, Change]:
    """Return the changes by name; each maps samples float32 (n,) at 16 kHz to (m,), m <= n.

    shift: the first sample is missing. gain: 6 dB less. noise: white, 30 dB below the clip. mp3: 64 kbit/s and back,
    where libsndfile can write it.
    """
    changes: dict[str, Change] = {
        "shift": lambda samples: samples[1:],
        "gain": lambda samples: samples * np.float32(10 ** (GAIN_DB / 20)),
        "noise": lambda samples: add_noise(samples, seed),
    }
    return {**changes, "mp3": mp3_and_back} if "MP3" in soundfile.available_formats() else changes


def add_noise(samples: Samples, seed: int) -> Samples:
    """Return samples with white noise 30 dB below their power."""
    noise = np.random.default_rng(seed).standard_normal(len(samples), np.float32)
    level = np.sqrt(np.square(samples, dtype=np.float64).mean()) * 10 ** (-NOISE_DB / 20)
    return samples + noise * np.float32(level)


def mp3_and_back(samples: Samples) -> Samples:
    """Return samples as MP3 of 64 kbit/s gives them back, in time with the original."""
    file = io.BytesIO()
    settings: dict[str, Any] = {"compression_level": MP3_LEVEL, "bitrate_mode": "CONSTANT"}
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", **settings)
    return read_audio(file.getvalue(), name="audio.mp3")[: len(samples)]


def token_stability(
    clips: Sequence[Samples], systems: Sequence[System], seed: int = 0, changes: Mapping[str, Change] | None = None
) -> list[Stability]:
    """Return how many tokens each change leaves in each stream.

    Tokens are compared position by position where both sounds have some. Clips weigh by their tokens; the standard
    error takes clips for independent.

    Args:
        clips: float32 (n,) at 16 kHz; those of a single sample are left out.
        systems: what makes tokens of them.
        seed: of the noise, which differs from clip to clip.
        changes: by name, those of `sound_changes` where None.
    """
    hits: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, samples in enumerate(clips):
        if len(samples) < SHORTEST:
            continue
        tried = sound_changes(seed + number) if changes is None else changes
        for system in systems:
            if not system.streams:
                continue
            before = system.encode(samples).tokens
            for change, apply in tried.items():
                after = system.encode(apply(samples)).tokens
                for stream, tokens in before.items():
                    hits.setdefault((change, stream), []).append(_compare(tokens, after[stream]))
    return [_summary(change, stream, np.array(found)) for (change, stream), found in hits.items()]


def _compare(before: NDArray[np.int64], after: NDArray[np.int64]) -> tuple[int, int]:
    steps = min(len(before), len(after))
    return int((before[:steps] == after[:steps]).sum()), before[:steps].size


def _summary(change: str, stream: str, found: NDArray[np.int64]) -> Stability:
    same, tokens = found.sum(axis=0)
    share = same / tokens
    error = np.sqrt(np.square(found[:, 0] - share * found[:, 1]).sum()) / tokens  # of a ratio of sums
    return Stability(change, stream, float(share), float(error), len(found), int(tokens))
