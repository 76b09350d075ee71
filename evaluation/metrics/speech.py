"""Speech metrics: intelligibility (STOI), perceived quality (PESQ) and speaker similarity."""

import warnings
from functools import cache
from typing import Any

import numpy as np

from sctok.audio.windows import SAMPLE_RATE

from .pairs import Pair

_STOI_SAMPLES = (256 + 29 * 128) * SAMPLE_RATE // 10_000  # 30 frames at 10 kHz


def stoi(pair: Pair, extended: bool = False) -> float:
    """Return short-time objective intelligibility (Taal et al. 2011; extended: Jensen and Taal 2016), by pystoi.

    Raises ValueError if a wave is silent, or if fewer than 30 frames of the reference (0.4 s) contain speech.
    """
    from pystoi import stoi as measure

    pair.check_sound()
    too_little = "too little speech: STOI needs 30 frames (0.4 s) that are not silent"
    if len(pair.reference) < _STOI_SAMPLES:  # below one frame, pystoi fails with an unrelated error
        raise ValueError(too_little)
    with warnings.catch_warnings():
        # For too little speech, pystoi only warns and returns 1e-5.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(measure(pair.reference, pair.estimate, SAMPLE_RATE, extended=extended))
        except RuntimeWarning:
            raise ValueError(too_little) from None


def pesq_wideband(pair: Pair) -> float:
    """Return wideband PESQ (ITU-T P.862.2), MOS-LQO from 1.04 to 4.64, by the package pesq.

    Raises ValueError if a wave is silent or too short, or if PESQ finds no utterance in it.
    """
    from pesq import PesqError, pesq

    pair.check_sound()
    try:
        return float(pesq(SAMPLE_RATE, pair.reference, pair.estimate, "wb"))
    except PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None


def speaker_similarity(pair: Pair) -> float:
    """Return the cosine of the embeddings of both waves by resemblyzer (GE2E, Wan et al. 2018).

    resemblyzer first amplifies quiet waves and removes silence. Raises ValueError if a wave is silent.
    """
    pair.check_sound()
    from resemblyzer import preprocess_wav

    a, b = (_voice_encoder().embed_utterance(preprocess_wav(wave)) for wave in (pair.reference, pair.estimate))
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


@cache
def _voice_encoder() -> Any:
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)
