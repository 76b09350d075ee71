"""The context of the T-UNet: the acoustic and semantic vectors of a window's tokens, and their positions."""

import math
from typing import Literal

import torch
from torch import Tensor

PE_WIDTH = 192
PE_BASE = 10000.0
PADDING = -1.0  # value of all vectors after the end of a clip
FLAT = 1e-7  # a filterbank frame with a smaller standard deviation contains no sound

Order = Literal["published", "paper"]


def positional_encoding(length: int, width: int = PE_WIDTH) -> Tensor:
    """Return the interleaved sines and cosines of the positions 0…length-1, float32 (length, width)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(PE_BASE) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def mark_out(mel: Tensor, length: int) -> Tensor:
    """Mark the positions of each window that lie after the end of its sound, as the published code does.

    Takes normalized filterbanks (B, frames, bins) and returns bool (B, length). The sound ends with the last frame that
    is not flat. A window with only one such frame counts as empty.
    """
    frames = mel.shape[1]
    sounding = mel.std(dim=-1) > FLAT
    end = (sounding * torch.arange(1, frames + 1, device=mel.device)).amax(dim=1)
    end = torch.where(sounding.sum(dim=1) == 1, 0, end)
    sounding_positions = (length * end + frames - 1) // frames
    return torch.arange(length, device=mel.device) >= sounding_positions[:, None]


def build_condition(
    acoustic: Tensor, semantic: Tensor, padded: Tensor | None = None, *, order: Order = "published"
) -> Tensor:
    """Build the context of the T-UNet, (B, L, A + F + 192), from acoustic (B, L, A) and semantic (B, L, F) vectors.

    padded: bool (B, L), True at positions without a token. order: "published" for [acoustic, semantic, position],
    "paper" for [semantic, acoustic, position].
    """
    parts = (acoustic, semantic) if order == "published" else (semantic, acoustic)
    vectors = torch.cat(parts, dim=-1)
    if padded is not None:
        vectors = vectors.masked_fill(padded[..., None], PADDING)
    return _with_positions(vectors)


def unconditional(length: int, width: int) -> Tensor:
    """Return the unconditional context: zeros, also at padded positions, and positions; (1, length, width + 192)."""
    return _with_positions(torch.zeros(1, length, width))


def _with_positions(vectors: Tensor) -> Tensor:
    positions = positional_encoding(vectors.shape[1]).to(vectors)
    return torch.cat((vectors, positions.expand(len(vectors), -1, -1)), dim=-1)
