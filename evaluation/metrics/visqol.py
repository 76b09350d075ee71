"""ViSQOL v3 by visqol-python: audio mode at 48 kHz and speech mode at 16 kHz, with the models of the C++ program."""

from functools import cache
from typing import Any

import numpy as np

from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import resampled

from .pairs import Pair


def visqol_audio(pair: Pair) -> float:
    """Return MOS-LQO of audio mode at 48 kHz, mapped by the support vector machine; at most about 4.75.

    Raises ValueError if a wave is silent or too short.
    """
    return _measure(pair, "audio", 48_000)


def visqol_speech(pair: Pair) -> float:
    """Return MOS-LQO of speech mode at 16 kHz, mapped by the deep lattice network, as in the C++ program.

    Raises ValueError if a wave is silent or too short, or if ViSQOL finds no speech.
    """
    return _measure(pair, "speech", SAMPLE_RATE)


def _measure(pair: Pair, mode: str, rate: int) -> float:
    pair.check_sound()
    waves = [resampled(wave, SAMPLE_RATE, rate).astype(np.float64) for wave in (pair.reference, pair.estimate)]
    try:
        result = _api(mode).measure_from_arrays(*waves, rate)
    except (IndexError, ZeroDivisionError) as error:
        # visqol-python raises these if it finds no patch in the reference.
        raise ValueError(f"too short for ViSQOL, or without audio that it can compare ({error})") from None
    return float(result.moslqo)


@cache
def _api(mode: str) -> Any:
    from visqol import VisqolApi

    api = VisqolApi()
    # Without the lattice, speech mode falls back to a polynomial that is wrong by up to two points.
    api.create(mode=mode, use_lattice_model=True if mode == "speech" else None)
    return api
