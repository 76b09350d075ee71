import json

import pytest
import torch

from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder

SMALL = AcousticConfig(6, hidden=5, layers=2, acoustic_width=4, codebook_size=16)


def small_batch(batch=3, length=8):
    torch.manual_seed(1)
    features, quantized = torch.randn(2, batch, length, SMALL.feature_width)
    return features, quantized, torch.zeros(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("rate", [25, 50, 100])
def test_published_layout(rate, reference):
    layout = json.loads((reference.HERE / f"layout_encoder_{rate}.json").read_text())
    with torch.device("meta"):
        ours = AcousticEncoder(AcousticConfig.published(rate)).state_dict()
    published = {key: shape for key, (shape, _) in layout.items() if not key.startswith("audiomae.")}
    assert {key: list(value.shape) for key, value in ours.items()} == published


def test_input_of_padded_positions_is_minus_one():
    torch.manual_seed(0)
    encoder = AcousticEncoder(SMALL).eval()
    features, quantized, padded = small_batch()
    padded[1, 5:] = True
    inputs = torch.cat([features, quantized], dim=-1)
    inputs[1, 5:] = -1
    expected = encoder.quantizer(encoder.encoder_output_linear(encoder.encoder(inputs)[0])).indices
    assert torch.equal(encoder(features, quantized, padded).indices, expected)


def test_training_changes_all_parameters_and_codes():
    torch.manual_seed(0)
    encoder = AcousticEncoder(SMALL).train()
    features, quantized, padded = small_batch()
    before = encoder.quantizer.codes.clone()
    found = encoder(features, quantized, padded)
    (found.vectors.square().mean() + found.commit_loss).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert not torch.equal(encoder.quantizer.codes, before)


def test_mismatched_shapes_are_rejected():
    features, quantized, padded = small_batch()
    with pytest.raises(ValueError, match=r"\(3, 7, 6\)"):
        AcousticEncoder(SMALL)(features, quantized[:, 1:], padded)


@pytest.mark.parametrize("settings", [{"layers": 0}, {"feature_width": 0}, {"hidden": 0}, {"acoustic_width": 0}])
def test_invalid_sizes_are_rejected(settings):
    with pytest.raises(ValueError, match="at least 1"):
        AcousticConfig(**settings)
