"""The grid condition: each token at its position in time and frequency."""

import pytest
import torch

from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.formats.stacking import stack_patches


@pytest.mark.parametrize(("stack", "columns", "rows"), [(1, 64, 8), (2, 64, 4), (4, 32, 4)])
def test_tokens_are_at_the_position_of_their_patches(stack, columns, rows):
    config = GridConfig(2 * stack, stack, (3, 128, 8), hidden=16)
    assert (config.columns, config.rows) == (columns, rows)
    time, frequency = torch.meshgrid(torch.arange(64.0), torch.arange(8.0), indexing="ij")
    patches = torch.stack([time, frequency], dim=-1).reshape(1, 512, 2)
    seen = []
    model = GridCondition(config)
    model.enter.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    model(stack_patches(patches, stack))
    [grid] = seen
    first = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="ij"))
    scale = torch.tensor([64 // columns, 8 // rows])[:, None, None]
    assert torch.equal(grid[0, :2], (first * scale).float())


def test_positions_of_the_latent_belong_to_the_token_at_the_same_place():
    torch.manual_seed(0)
    config = GridConfig(4, 2, (3, 128, 8), hidden=16, features=2, blocks=1)
    model = GridCondition(config)
    context = torch.randn(1, 256, 4)
    changed = context.clone()
    changed[0, 40 * 4 + 1] += 9  # column 40, row 1
    moved = (model(changed) - model(context)).abs().sum(dim=(0, 1))
    time, frequency = divmod(int(moved.argmax()), 8)
    assert moved.shape == (128, 8)
    assert (time // 2, frequency // 2) == (40, 1)


def test_estimate_is_the_first_channels():
    torch.manual_seed(0)
    config = GridConfig(4, 4, (3, 64, 4), hidden=16, features=2)
    grid = GridCondition(config)(torch.randn(2, 128, 4))
    assert grid.shape == (2, config.channels, 64, 4)
    assert torch.equal(GridCondition(config).estimate(grid), grid[:, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((4, 3, (3, 64, 4)), "stack factor 3"),
        ((0, 2, (3, 64, 4)), "positive"),
        ((4, 1, (3, 64, 4)), "64 x 8"),
        ((4, 2, (3, 100, 4)), "multiple"),
        ((4, 2, (3, 128, 4), 24), "24 .* multiple of 16"),
    ],
)
def test_invalid_sizes_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        GridConfig(*settings)
