"""The T-UNet: published layout and output, prepared contexts, small configurations."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from tests.codec.standins import PREFIX, golden_condition, initial_noise, published_unet, relative_error
from torch.nn import functional as F

from sctok.codec.models.tunet import Conv3x3, TUNet, TUNetConfig, time_embedding

SMALL = TUNetConfig(
    latent_channels=2,
    model_channels=8,
    multipliers=(1, 3),
    res_blocks=1,
    attention_levels=(0, 1),
    head_width=4,
    context_width=6,
)


@pytest.fixture
def small() -> TUNet:
    """A small T-UNet in which no layer is zero, as after training."""
    torch.manual_seed(0)
    model = TUNet(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_names_and_shapes_equal_the_published_ones(reference):
    layout = json.loads((reference.HERE / "layout_decoder_100.json").read_text())
    expected = {key.removeprefix(PREFIX): tuple(shape) for key, (shape, _) in layout.items() if key.startswith(PREFIX)}
    with torch.device("meta"):
        model = TUNet(TUNetConfig())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.slow
def test_velocity_equals_the_published_one(reference, golden):
    model = published_unet(reference, 100)
    context = golden_condition(reference, 100, golden[100])
    with torch.inference_mode():
        velocity = model(initial_noise(), torch.tensor([500]), context)
    assert relative_error(velocity, golden[100]["unet_v_at_500"]) < 2e-5


def test_time_embedding_by_hand():
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0], [-0.4161468, 0.9998, 0.9092974, 0.0199987]])
    torch.testing.assert_close(time_embedding(torch.tensor([0, 2]), 4), expected)


def test_prepared_context_gives_the_same_velocity(small):
    latent, context, steps = torch.randn(2, 2, 8, 4), torch.randn(2, 5, 6), torch.tensor([3, 900])
    torch.testing.assert_close(small(latent, steps, small.prepare(context)), small(latent, steps, context))


def test_expanded_and_joined_contexts(small):
    latent, steps = torch.randn(3, 2, 8, 4), torch.tensor([3, 3, 3])
    one, two = torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    joined = small.prepare(one).expand(2).join(small.prepare(two))
    torch.testing.assert_close(small(latent, steps, joined), small(latent, steps, torch.cat((one, one, two))))


def test_each_latent_can_have_several_contexts(small):
    latent, steps, context = torch.randn(2, 2, 8, 4), torch.tensor([3, 900]), torch.randn(4, 5, 6)
    apart = torch.cat([small(latent, steps, part) for part in context.chunk(2)])
    torch.testing.assert_close(small(latent, steps, context), apart)


def test_convolution_of_narrow_maps_gives_the_same_result():
    layer = Conv3x3(6, 10)
    x = torch.randn(3, 6, 5, 2)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))


def test_assigned_weights_are_stored_channels_last(small):
    small.load_state_dict({name: value.contiguous() for name, value in small.state_dict().items()}, assign=True)
    weights = [layer.weight for layer in small.modules() if isinstance(layer, Conv3x3)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_windows_of_a_batch_are_independent(small):
    latent, context, steps = torch.randn(3, 2, 8, 4), torch.randn(3, 5, 6), torch.tensor([3, 900, 7])
    separate = torch.cat([small(latent[i : i + 1], steps[i : i + 1], context[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(small(latent, steps, context), separate)


def test_output_depends_on_the_context(small):
    latent, steps = torch.randn(1, 2, 8, 4), torch.tensor([3])
    context = torch.randn(1, 5, 6)
    assert not torch.allclose(small(latent, steps, context), small(latent, steps, context.flip(2)))


def test_output_depends_on_the_extra_channels():
    model = TUNet(replace(SMALL, extra_channels=3))
    torch.nn.init.normal_(model.out[-1].weight)
    latent, steps, context = torch.randn(1, 2, 8, 4), torch.tensor([3]), torch.randn(1, 5, 6)
    velocities = [model(latent, steps, context, torch.randn(1, 3, 8, 4)) for _ in range(2)]
    assert not torch.allclose(*velocities)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("res_blocks", [1, 3])
def test_any_number_of_levels(levels, res_blocks):
    config = replace(SMALL, multipliers=(1, 2, 3)[:levels], res_blocks=res_blocks, attention_levels=range(levels))
    latent = torch.randn(2, 2, 8, 4)
    assert TUNet(config)(latent, torch.tensor([3, 4]), torch.randn(2, 5, 6)).shape == latent.shape


def test_every_parameter_gets_a_gradient(small):
    small(torch.randn(2, 2, 8, 4), torch.tensor([3, 900]), torch.randn(2, 5, 6)).square().mean().backward()
    assert [name for name, value in small.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_untrained_unet_predicts_zero():
    latent = torch.randn(1, 2, 8, 4)
    assert not TUNet(SMALL)(latent, torch.tensor([3]), torch.randn(1, 5, 6)).any()


@pytest.mark.parametrize(
    "change",
    [
        {"latent_channels": 0},
        {"extra_channels": -1},
        {"multipliers": ()},
        {"model_channels": 7},
        {"attention_levels": (2,)},
        {"head_width": 5},
    ],
)
def test_invalid_sizes_are_rejected(change):
    with pytest.raises(ValueError, match=r".+"):
        replace(SMALL, **change)


def test_configuration_round_trips_through_json():
    assert TUNetConfig(**json.loads(json.dumps(asdict(SMALL)))) == SMALL


@pytest.mark.parametrize(
    ("latent", "context", "extra", "message"),
    [
        ((1, 2, 7, 4), (1, 5, 6), None, "multiples of 2"),
        ((1, 3, 8, 4), (1, 5, 6), None, "a latent must be"),
        ((1, 2, 8, 4), (1, 5, 7), None, "a context must be"),
        ((1, 2, 8, 4), (1, 5, 6), (1, 1, 8, 4), "extra channels"),
        ((2, 2, 8, 4), (3, 5, 6), None, "multiple of the 2 latents"),
    ],
)
def test_invalid_shapes_are_rejected(latent, context, extra, message, small):
    with pytest.raises(ValueError, match=message):
        small(
            torch.zeros(latent),
            torch.full(latent[:1], 3),
            torch.zeros(context),
            None if extra is None else torch.zeros(extra),
        )
