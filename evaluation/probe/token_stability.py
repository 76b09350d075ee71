"""Token stability: the share of tokens that inaudible changes of the sound leave unchanged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.decoding.decode import read_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import Wave, sound_file

from .features import System

GAIN_DB = -6.0
NOISE_DB = 30.0  # signal-to-noise ratio
MP3_LEVEL = 0.6  # libsndfile's compression level for 64 kbit/s at 16 kHz
MIN_SAMPLES = 2  # a shift removes one

Change = Callable[[Wave], Wave]


@dataclass(frozen=True)
class TokenStability:
    """The share of a stream's tokens that a change leaves unchanged, with its standard error over clips."""

    change: str
    stream: str
    unchanged: float
    standard_error: float
    clips: int
    tokens: int


def sound_changes(seed: int) -> dict[str, Change]:
    """Return the changes by name; each maps samples float32 (n,) at 16 kHz to (m,), m <= n.

    shift: the first sample is removed. gain: -6 dB. noise: white noise 30 dB below the clip. mp3: coded at 64 kbit/s
    and decoded, if libsndfile supports MP3.
    """
    changes: dict[str, Change] = {
        "shift": lambda samples: samples[1:],
        "gain": lambda samples: samples * np.float32(10 ** (GAIN_DB / 20)),
        "noise": lambda samples: add_noise(samples, seed),
    }
    return {**changes, "mp3": mp3_and_back} if "MP3" in soundfile.available_formats() else changes


def add_noise(samples: Wave, seed: int) -> Wave:
    """Add white noise 30 dB below the power of the samples."""
    noise = np.random.default_rng(seed).standard_normal(len(samples), np.float32)
    level = np.sqrt(np.square(samples, dtype=np.float64).mean()) * 10 ** (-NOISE_DB / 20)
    return samples + noise * np.float32(level)


def mp3_and_back(samples: Wave) -> Wave:
    """Code samples as MP3 at 64 kbit/s and decode them, aligned with the original."""
    options = {"compression_level": MP3_LEVEL, "bitrate_mode": "CONSTANT"}
    file = sound_file(samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", **options)
    return read_audio(file, name="audio.mp3")[: len(samples)]


def token_stability(
    clips: Sequence[Wave], systems: Sequence[System], seed: int, changes: Callable[[int], Mapping[str, Change]]
) -> list[TokenStability]:
    """Measure the share of tokens that each change leaves unchanged in each stream.

    Tokens at equal positions are compared; tokens that one of the sounds lacks are ignored. Clips are weighted by their
    number of tokens. The standard error assumes independent clips.

    Args:
        clips: float32 (n,) at 16 kHz; clips of one sample are skipped.
        systems: systems that encode the clips to tokens.
        seed: seed of the first clip's changes; each further clip adds one.
        changes: returns the changes by name for a seed, such as `sound_changes`.
    """
    hits: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, samples in enumerate(clips):
        if len(samples) < MIN_SAMPLES:
            continue
        for system in systems:
            if not system.streams:
                continue
            before = system.encode(samples).tokens
            for change, apply in changes(seed + number).items():
                after = system.encode(apply(samples)).tokens
                for stream, tokens in before.items():
                    hits.setdefault((change, stream), []).append(_compare(tokens, after[stream]))
    return [_summary(change, stream, np.array(counts)) for (change, stream), counts in hits.items()]


def _compare(before: NDArray[np.int64], after: NDArray[np.int64]) -> tuple[int, int]:
    steps = min(len(before), len(after))
    return int((before[:steps] == after[:steps]).sum()), before[:steps].size


def _summary(change: str, stream: str, counts: NDArray[np.int64]) -> TokenStability:
    same, tokens = counts.sum(axis=0)
    share = same / tokens
    error = np.sqrt(np.square(counts[:, 0] - share * counts[:, 1]).sum()) / tokens  # of a ratio of sums
    return TokenStability(change, stream, float(share), float(error), len(counts), int(tokens))
