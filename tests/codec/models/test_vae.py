"""The VAE: published layout, small sizes, invalid configurations."""

import json

import pytest
import torch

from sctok.codec.models.vae import AutoencoderKL, VAEConfig, sample_posterior

SMALL = VAEConfig(channels=8, multipliers=(1, 2), res_blocks=1, latent_channels=3, patch=2)


def test_published_layout(reference):
    layout = json.loads((reference.HERE / "layout_decoder_100.json").read_text())
    prefix = "first_stage_model."
    published = {
        key.removeprefix(prefix): shape
        for key, (shape, _) in layout.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}vocoder.")
    }
    with torch.device("meta"):
        ours = AutoencoderKL(VAEConfig()).state_dict()
    assert {key: list(value.shape) for key, value in ours.items()} == published


def test_shapes_of_the_published_sizes():
    assert VAEConfig().latent_shape(1024) == (8, 256, 16)


def test_shapes():
    torch.manual_seed(0)
    model = AutoencoderKL(SMALL)
    mean, log_variance = model.encode(torch.randn(2, 1, 32, 64))
    assert mean.shape == log_variance.shape == (2, *SMALL.latent_shape(32)) == (2, 3, 8, 16)
    assert model.decode(mean).shape == (2, 1, 32, 64)


def test_sample_of_the_posterior():
    mean, noise = torch.full((1,), 2.0), torch.full((1,), -1.0)
    assert sample_posterior(mean, torch.log(torch.tensor([9.0])), noise).item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels 0"),
        ({"channels": 6}, "6"),
        ({"multipliers": ()}, "multipliers"),
        ({"patch": 0}, "patch 0"),
        ({"patch": 3}, "not divisible"),
    ],
)
def test_invalid_sizes_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**settings)
