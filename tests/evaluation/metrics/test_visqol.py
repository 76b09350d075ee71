"""ViSQOL by visqol-python; its expected value is from the C++ program."""

import numpy as np
import pytest
from tests.evaluation.clips import CLIPS, clip, pair_of

from sctok.evaluation.metrics.pairs import Pair
from sctok.evaluation.metrics.visqol import visqol_audio, visqol_speech

pytest.importorskip("visqol", reason="visqol-python is built with a C++ compiler")


def test_identical_waves_score_as_in_the_cpp_program():
    wave = clip("music/guitar_em9")
    assert visqol_audio(Pair(wave, wave)) == pytest.approx(4.7321, abs=1e-3)  # castanets_identity


@pytest.mark.parametrize("metric", [visqol_speech, visqol_audio])
def test_spoilt_speech_scores_less(metric):
    if metric is visqol_speech:
        pytest.importorskip("ai_edge_litert", reason="speech mode needs the deep lattice network")
    pair = pair_of("speech/it_agent_login")
    assert 1 <= metric(pair) < metric(Pair(pair.reference, pair.reference)) <= 5


def test_speech_mode_uses_the_deep_lattice():
    pytest.importorskip("ai_edge_litert", reason="speech mode needs the deep lattice network")
    from visqol import VisqolApi

    pair = pair_of("speech/it_agent_login")
    api = VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    waves = pair.reference.astype(np.float64), pair.estimate.astype(np.float64)
    assert visqol_speech(pair) == api.measure_from_arrays(*waves, 16_000).moslqo


def test_silent_and_short_waves_have_no_value():
    wave = clip(CLIPS[0])
    with pytest.raises(ValueError, match="decoded audio is silent"):
        visqol_audio(Pair(wave, np.zeros_like(wave)))
    with pytest.raises(ValueError, match=r"[Tt]oo (short|few)"):
        visqol_audio(Pair(wave[:800], wave[:800]))
