"""The bundled weights: their size, and reconstruction of a clip from both streams of tokens."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from sctok import Codec
from sctok.audio.decoding.decode import read_audio
from sctok.audio.spectral_distances import mel_distance
from sctok.codec.samplers import SamplerConfig

PACKAGE_BYTES = 60_000_000
QUICK = SamplerConfig(name="dpm++", steps=5)


def test_weights_fit_into_the_package():
    weights = Path(str(files("sctok.weights")))
    assert sum(part.stat().st_size for part in weights.rglob("*.*") if part.suffix != ".pyc") <= PACKAGE_BYTES


@pytest.fixture(scope="module")
def codec():
    return Codec.load("mini", device="cpu")


@pytest.fixture(scope="module")
def clip(codec, samples_folder):
    wave = read_audio(samples_folder / "speech" / "en_conf_only_person.flac")
    return wave, codec.encode(wave, 16_000)


def distance(codec, wave, tokens):
    decoded = codec.decode(tokens, QUICK)
    assert decoded.shape == wave.shape
    return mel_distance(*(torch.from_numpy(np.asarray(each)[None]) for each in (decoded, wave))).item()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [0, 1], ids=["semantic", "acoustic"])
def test_clip_is_reconstructed_from_both_streams(codec, clip, stream):
    wave, tokens = clip
    shuffled = tokens.tokens.copy()
    np.random.default_rng(0).shuffle(shuffled[:, stream])
    whole = distance(codec, wave, tokens)
    assert whole < 0.85 * distance(codec, wave, replace(tokens, tokens=shuffled))
    assert whole < 0.5 * mel_distance(torch.zeros(1, len(wave)), torch.from_numpy(wave)[None]).item()
