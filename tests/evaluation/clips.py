"""Real audio for the tests of metrics: bundled clips, and copies as a poor codec might decode them."""

from pathlib import Path

import numpy as np

import sctok
from sctok.audio.decoding.decode import read_audio
from sctok.evaluation.metrics.pairs import Pair

SAMPLES = Path(sctok.__file__).parent / "samples"
CLIPS = ("speech/fr_agent_login", "music/guitar_em9", "general/frogs")


def clip(name, seconds=2.0):
    """Return the first seconds of a bundled clip, float32 (n,)."""
    return read_audio(SAMPLES / f"{name}.flac")[: round(16_000 * seconds)]


def spoilt(wave):
    """Return a duller, quieter and noisier copy of a wave."""
    dull = np.convolve(wave, [0.25, 0.5, 0.25], "same")
    noise = np.random.default_rng(0).standard_normal(len(wave))
    return (0.6 * dull + 0.004 * noise).astype(np.float32)


def pair_of(name, seconds=2.0):
    """Return a clip and its spoilt copy."""
    wave = clip(name, seconds)
    return Pair(wave, spoilt(wave))
