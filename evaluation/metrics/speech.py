"""Metrics made for speech: intelligibility, perceived quality, and whether the speaker is the same."""

import warnings
from functools import cache
from typing import Any

import numpy as np

from sctok.audio.windows import SAMPLE_RATE

from .pairs import Pair

_STOI_SAMPLES = (256 + 29 * 128) * SAMPLE_RATE // 10_000  # of 30 frames at 10 kHz


def stoi(pair: Pair, extended: bool = False) -> float:
    """Return short-time objective intelligibility (Taal et al. 2011; extended: Jensen and Taal 2016), by pystoi.

    Raises ValueError where a wave is silent, and where fewer than 30 frames of the reference (0.4 s) hold speech.
    """
    from pystoi import stoi as measure

    pair.check_sound()
    too_little = "too little speech: STOI needs 30 frames (0.4 s) that are not silent"
    if len(pair.reference) < _STOI_SAMPLES:  # pystoi fails in other words below one frame
        raise ValueError(too_little)
    with warnings.catch_warnings():
        # pystoi gives 1e-5 for too short speech, and says so in a warning alone.
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(measure(pair.reference, pair.estimate, SAMPLE_RATE, extended=extended))
        except RuntimeWarning:
            raise ValueError(too_little) from None


def pesq_wideband(pair: Pair) -> float:
    """Return wideband PESQ (ITU-T P.862.2), MOS-LQO from 1.04 to 4.64, by the package pesq.

    Raises ValueError where a wave is silent or too short, or holds nothing that PESQ takes for an utterance.
    """
    from pesq import PesqError, pesq

    pair.check_sound()
    try:
        return float(pesq(SAMPLE_RATE, pair.reference, pair.estimate, "wb"))
    except PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None


def speaker_similarity(pair: Pair) -> float:
    """Return the cosine of resemblyzer's embeddings (GE2E, Wan et al. 2018) of both waves.

    Quiet waves are raised to its level, and silence is taken out, before that.
    Raises ValueError where a wave is silent.
    """
    pair.check_sound()
    from resemblyzer import preprocess_wav

    ours, theirs = (_voice_encoder().embed_utterance(preprocess_wav(w)) for w in (pair.reference, pair.estimate))
    return float(np.dot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


@cache
def _voice_encoder() -> Any:
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)
