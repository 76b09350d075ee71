"""The published code's features and tokens, with stand-in weights in the published layout."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sctok.audio.windows import token_count
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import FeatureExtractor
from sctok.formats.stacking import stack_patches
from sctok.kernels.assign import nearest_centroid

PREFIX = "audiomae.model."


@pytest.fixture(scope="module")
def published(reference):
    """The AudioMAE part of the stand-in encoder checkpoint; drawing all of it would take long."""
    layout = json.loads((reference.HERE / "layout_encoder_100.json").read_text())
    shapes = {key: tuple(shape) for key, (shape, _) in layout.items() if key.startswith(PREFIX)}
    return {key: torch.from_numpy(np.ascontiguousarray(reference.draw(key, shape))) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoints(published, tmp_path_factory):
    """The same weights in the three public layouts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    bare = {key.removeprefix(PREFIX): value for key, value in published.items()}
    extra = {"encoder_output_linear.weight": torch.zeros(4, 4)}
    torch.save({**published, **extra}, folder / "encoder.ckpt")
    torch.save({"model": bare, "epoch": 32, "args": argparse.Namespace(lr=1e-3)}, folder / "pretrained.pth")
    timm = {key: value.contiguous() for key, value in bare.items() if "decoder" not in key and key != "mask_token"}
    save_file(timm, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def features(checkpoints, signal_windows):
    extractor = FeatureExtractor(load_weights(checkpoints / "encoder.ckpt"), torch.device("cpu"), "fp32")
    return extractor.embed(*signal_windows)


def test_contextual_embedding(features, golden):
    assert np.abs(features[0, ::8] - golden[100]["audiomae_first_window_every_8th"][0]).max() < 2e-4


@pytest.mark.parametrize("rate", [25, 50, 100])
def test_stacked_features(rate, features, golden):
    stacked = stack_patches(features[0], 100 // rate)
    assert np.abs(stacked[::8] - golden[rate]["stacked_first_window_every_8th"][0]).max() < 2e-4


@pytest.mark.parametrize("rate", [25, 50, 100])
def test_semantic_tokens(rate, features, golden, reference):
    stacked = torch.from_numpy(stack_patches(features.reshape(-1, 768), 100 // rate))
    tokens = nearest_centroid(stacked, torch.from_numpy(reference.codebook(rate))).labels
    count = token_count(len(reference.waveform()), 100 // rate)
    assert np.array_equal(tokens[:count].numpy(), golden[rate]["tokens"][0, :, 0])


@pytest.mark.parametrize("name", ["pretrained.pth", "model.safetensors"])
def test_every_layout_loads_the_same_weights(name, checkpoints):
    assert load_weights(checkpoints / name).hash == load_weights(checkpoints / "encoder.ckpt").hash
