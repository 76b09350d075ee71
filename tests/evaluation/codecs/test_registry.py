"""`open_codec`, codecs of sctok, and the anchors of listening tests."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sctok.codec.codec import Codec
from sctok.codec.samplers import SamplerConfig
from sctok.evaluation.codecs.registry import open_codec
from sctok.formats.sct import write_sct


@pytest.fixture(scope="module")
def speech(samples_folder):
    wave, rate = soundfile.read(samples_folder / "speech" / "en_conf_only_person.flac", dtype="float32")
    assert rate == 16_000
    return wave


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nope", "'nope' is neither a codec folder nor one of: mini, original"),
        ("", "'' is neither a codec folder"),
        ("/nowhere/codec:steps=2", "neither a codec folder"),
        ("mini:stepz=2", "no option 'stepz'; its options are codebook, eta"),
        ("mini:steps=many", "steps 'many' is not a number"),
        ("mini:steps=0", "'mini:steps=0': steps 0 is below 1"),
        ("mini:eta=0,fast", "'fast' in the codec options 'eta=0,fast' is not of the form option=value"),
        ("lowpass:deep", "frequency 'deep' is not a number"),
        ("lowpass:-1", "between 20 and 100000 Hz"),
        ("original:3", "takes no value"),
        ("original,name=../up", "name '../up' may hold only letters, digits, dots and hyphens"),
    ],
)
def test_invalid_specs_are_rejected_with_a_reason(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_codec(spec)


@pytest.mark.parametrize("spec", [None, 3, ["mini"], Path("mini"), b"mini"])
def test_specs_that_are_not_text_are_rejected(spec):
    with pytest.raises(ValueError, match="spec must be text that names a codec"):
        open_codec(spec)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("original", "original"),
        ("lowpass:3500", "lowpass-3500"),
        ("lowpass:3500,name=anchor", "anchor"),
        ("original,name=reference", "reference"),
        ("mini:steps=20,eta=0", "mini-steps20-eta0"),
    ],
)
def test_codec_names_are_valid_file_names(spec, name):
    assert open_codec(spec).name == name


@pytest.mark.slow
def test_a_codec_of_sctok_returns_its_decoded_audio_and_the_size_of_its_file(speech, tmp_path):
    coded = open_codec("mini:steps=2,eta=0,guidance=1", device="cpu").roundtrip(speech, 16_000)
    codec = Codec.load("mini", "cpu")
    tokens = codec.encode(speech, 16_000)
    np.testing.assert_array_equal(coded.samples, codec.decode(tokens, SamplerConfig(steps=2, eta=0, guidance=1)))
    assert coded.bytes == write_sct(tmp_path / "tokens.sct", tokens)
    assert (coded.container, coded.tokens) == (56, tokens.tokens.size)


def test_the_original_is_the_wave_and_counts_16_bits_per_sample(speech):
    coded = open_codec("original").roundtrip(speech, 16_000)
    np.testing.assert_array_equal(coded.samples, speech)
    assert coded.bytes == 2 * len(speech)


@pytest.mark.parametrize(("rate", "hz", "gain"), [(16_000, 3400, 1.0), (48_000, 3400, 1.0), (16_000, 4100, 0.0)])
def test_the_low_pass_passes_frequencies_below_and_stops_those_above(rate, hz, gain):
    tone = np.sin(2 * np.pi * hz * np.arange(rate) / rate).astype(np.float32)
    coded = open_codec("lowpass:3500").roundtrip(tone, rate)
    middle = slice(rate // 4, -rate // 4)
    np.testing.assert_allclose(coded.samples[middle], gain * tone[middle], atol=2e-3)


def test_a_low_pass_above_half_of_the_sample_rate_is_rejected():
    with pytest.raises(ValueError, match="changes nothing at a sample rate of 8000 Hz"):
        open_codec("lowpass:3500").roundtrip(np.zeros(100, np.float32), 8000)
