"""What the T-UNet is told: acoustic and semantic vectors of a window's tokens, and where each token stands."""

import math
from typing import Literal

import torch
from torch import Tensor

PE_WIDTH = 192
PE_BASE = 10000.0
PADDING = -1.0  # value of all vectors behind the end of a clip
FLAT = 1e-7  # a filterbank frame that varies less than this holds no sound

Order = Literal["published", "paper"]


def positional_encoding(length: int, width: int = PE_WIDTH) -> Tensor:
    """Return sines and cosines of the positions 0…length-1, interleaved: float32 (length, width)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(PE_BASE) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def mark_out(mel: Tensor, length: int) -> Tensor:
    """Return which of `length` positions of each window lie behind the end of its sound, as the published code does.

    Takes normalised filterbanks (B, frames, bins); returns bool (B, length). The end is the last frame that is not
    flat; a window with a single such frame counts as empty.
    """
    frames = mel.shape[1]
    sounding = mel.std(dim=-1) > FLAT
    end = (sounding * torch.arange(1, frames + 1, device=mel.device)).amax(dim=1)
    end = torch.where(sounding.sum(dim=1) == 1, 0, end)
    kept = (length * end + frames - 1) // frames
    return torch.arange(length, device=mel.device) >= kept[:, None]


def build_condition(
    acoustic: Tensor, semantic: Tensor, padded: Tensor | None = None, *, order: Order = "published"
) -> Tensor:
    """Return the context of the T-UNet for acoustic (B, L, A) and semantic (B, L, F) vectors: (B, L, A + F + 192).

    `padded` (B, L) bool marks positions without a token. The published order is [acoustic, semantic, position]; the
    paper's text says [semantic, acoustic] + position.
    """
    parts = (acoustic, semantic) if order == "published" else (semantic, acoustic)
    vectors = torch.cat(parts, dim=-1)
    if padded is not None:
        vectors = vectors.masked_fill(padded[..., None], PADDING)
    return _with_positions(vectors)


def unconditional(length: int, width: int) -> Tensor:
    """Return the context that says nothing: zeros (also where padded) and positions, (1, length, width + 192)."""
    return _with_positions(torch.zeros(1, length, width))


def _with_positions(vectors: Tensor) -> Tensor:
    positions = positional_encoding(vectors.shape[1]).to(vectors)
    return torch.cat((vectors, positions.expand(len(vectors), -1, -1)), dim=-1)
