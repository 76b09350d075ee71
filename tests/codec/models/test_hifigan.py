"""The HiFi-GAN vocoder: layout and arithmetic."""

import json

import pytest
import torch
from torch.nn import functional as F

from sctok.codec.models.hifigan import HifiGan, HifiGanConfig

SMALL = HifiGanConfig(16, (5, 2), (16, 4), (3, 7), (1, 3))
PREFIX = "first_stage_model.vocoder."


def by_definition(model, mel):
    """Compute the vocoder with one-dimensional convolutions in the usual memory layout of PyTorch."""
    x = model.conv_pre(mel.mT)
    for index, up in enumerate(model.ups):
        x = up(F.leaky_relu(x, 0.1))
        outputs = []
        for block in model.resblocks[2 * index : 2 * index + 2]:
            y = x
            for first, second in zip(block.convs1, block.convs2, strict=True):
                y = y + second(F.leaky_relu(first(F.leaky_relu(y, 0.1)), 0.1))
            outputs.append(y)
        x = sum(outputs) / len(outputs)
    return torch.tanh(model.conv_post(F.leaky_relu(x, 0.01)))[:, 0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HifiGan(SMALL)


def test_published_layout(reference):
    layout = json.loads((reference.HERE / "layout_decoder_100.json").read_text())
    published = {key.removeprefix(PREFIX): shape for key, (shape, _) in layout.items() if key.startswith(PREFIX)}
    with torch.device("meta"):
        ours = HifiGan(HifiGanConfig()).state_dict()
    assert {key: list(value.shape) for key, value in ours.items()} == published


def test_published_length():
    with torch.device("meta"):
        assert HifiGan(HifiGanConfig())(torch.empty(2, 1024, 64)).shape == (2, 163_872)


def test_output_equals_the_definition(model):
    mel = torch.randn(3, 20, 64)
    torch.testing.assert_close(model(mel), by_definition(model, mel), rtol=1e-4, atol=1e-6)


def test_gradients_equal_those_of_the_definition(model):
    mel = torch.randn(1, 9, 64)
    found = torch.autograd.grad(model(mel).square().sum(), list(model.parameters()))
    expected = torch.autograd.grad(by_definition(model, mel).square().sum(), list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"initial": 100},
        {"rates": (5, 4), "kernels": (16,)},
        {"kernels": (2, 16, 8, 4, 4)},
        {"res_kernels": (4,)},
        {"dilations": ()},
    ],
)
def test_invalid_sizes_are_rejected(settings):
    with pytest.raises(ValueError, match=list(settings)[-1]):
        HifiGanConfig(**settings)
