"""The context of the T-UNet: vectors of the tokens and their positions."""

import pytest
import torch

from sctok.codec.models.condition import build_condition, mark_out, positional_encoding, unconditional


def test_positions_by_hand():
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.8414710, 0.5403023, 0.0099998, 0.9999500]])
    torch.testing.assert_close(positional_encoding(2, 4), expected)


def test_published_order():
    acoustic, semantic = torch.full((1, 2, 3), 5.0), torch.full((1, 2, 4), 7.0)
    condition = build_condition(acoustic, semantic)
    assert torch.equal(condition, torch.cat((acoustic, semantic, positional_encoding(2)[None]), dim=-1))


def test_order_of_the_paper():
    acoustic, semantic = torch.full((1, 2, 3), 5.0), torch.full((1, 2, 4), 7.0)
    condition = build_condition(acoustic, semantic, order="paper")
    assert torch.equal(condition, torch.cat((semantic, acoustic, positional_encoding(2)[None]), dim=-1))


def test_padding_has_a_position():
    padded = torch.tensor([[False, True]])
    condition = build_condition(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), padded)
    assert torch.equal(condition[0, 1], torch.cat((torch.full((7,), -1.0), positional_encoding(2)[1])))


def test_unconditional_context_has_only_positions():
    assert torch.equal(unconditional(2, 7), torch.cat((torch.zeros(1, 2, 7), positional_encoding(2)[None]), dim=-1))


def sounding(*frames: int, count: int = 1024) -> torch.Tensor:
    """Return the filterbank of a window in which only the given frames are not flat."""
    mel = torch.full((1, count, 128), -1.278)
    mel[:, list(frames), 0] = 1.0
    return mel


@pytest.mark.parametrize(
    ("frames", "unmarked"),
    [
        (range(1024), 512),
        (range(1022), 511),
        ((0, 1), 1),
        ((0, 2), 2),  # 3 of 1024 frames are 1.5 of 512 positions
        ((5, 800), 401),
        ((), 0),
        ((800,), 0),  # as published
    ],
)
def test_positions_after_the_sound_are_marked(frames, unmarked):
    assert torch.equal(mark_out(sounding(*frames), 512)[0], torch.arange(512) >= unmarked)


def test_windows_are_marked_independently():
    padded = mark_out(torch.cat((sounding(0, 1), sounding(0, 1023))), 128)
    assert padded.sum(dim=1).tolist() == [127, 0]
