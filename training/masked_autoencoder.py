"""Masked autoencoding of filterbank patches (Huang et al., 2022, section 3)."""

import math

import torch
from torch import Tensor, nn

from sctok.audio.windows import MEL_BINS, PATCH_ROWS, WINDOW_COLUMNS, WINDOW_FRAMES, WINDOW_PATCHES
from sctok.features.encoder import NORM_EPS, PATCH_VALUES, AudioMAE, EncoderBlock, EncoderConfig, split_patches
from sctok.runtime.low_precision import Step, filled, training_steps

POSITION_PARTS = 4  # sine and cosine of time, sine and cosine of frequency
NORMALISATION_EPS = 1e-6
FLAT_PATCH = 1e-6  # patches of a lower variance are padding, whose normalized target would be noise


class MaskedAutoencoder(nn.Module):
    """An AudioMAE encoder with a small decoder, which only pretraining uses."""

    def __init__(self, encoder: AudioMAE, decoder_width: int, decoder_depth: int, decoder_heads: int) -> None:
        super().__init__()
        width = encoder.config.width
        self.encoder = encoder
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + WINDOW_PATCHES, decoder_width))
        self.decoder_blocks = nn.ModuleList(EncoderBlock(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_width, PATCH_VALUES)
        self._init_weights()

    def forward(self, mel: Tensor, order: Tensor, visible: int) -> Tensor:
        """Return the mean squared error of the predicted patches that are not padding, a scalar.

        Args:
            mel: float (B, 1024, 128), normalized filterbanks.
            order: int64 (B, N), patches of each window in random order. The encoder sees the first `visible` ones, the
                decoder predicts the others. With N < 512 some patches are neither seen nor predicted, which makes a
                step cheaper.
            visible: number of patches that the encoder sees (20 % of 512 in the paper).

        The targets are patches normalized to zero mean and unit variance.
        """
        patches = split_patches(mel)
        predicted = self.decode(self.encode(patches, order[:, :visible]), order)[:, visible:]
        hidden = patches.gather(1, order[:, visible:, None].expand(-1, -1, PATCH_VALUES))
        mean, variance = hidden.mean(-1, keepdim=True), hidden.var(-1, keepdim=True)
        error = (predicted - (hidden - mean) / (variance + NORMALISATION_EPS).sqrt()).square().mean(-1)
        weight = (variance[..., 0] > FLAT_PATCH).to(error.dtype)
        return (error * weight).sum() / weight.sum().clamp_min(1)

    def encode(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Encode the visible ones of patches (B, 512, 256), given by index (B, N), as (B, 1 + N, width)."""
        x = self.encoder.embed_patches(patches, visible)
        for block in self.encoder.blocks:
            x = block(x)
        return self.encoder.norm(x)

    def decode(self, encoded: Tensor, order: Tensor) -> Tensor:
        """Predict patches (B, N, 256) from the encoded visible ones (B, 1 + visible, width) and all indices (B, N)."""
        x = self.decoder_embed(encoded)
        batch, seen, width = x.shape
        x = torch.cat([x, self.mask_token.expand(batch, 1 + order.shape[1] - seen, -1)], dim=1)
        positions = (
            self.decoder_pos_embed[:, 1:].expand(batch, -1, -1).gather(1, order[..., None].expand(-1, -1, width))
        )
        x = x + torch.cat([self.decoder_pos_embed[:, :1].expand(batch, -1, -1), positions], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1:]))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.data.view(self.encoder.config.width, -1))
        if self.encoder.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.encoder.patch_embed.proj.bias)
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for embedding in (self.encoder.pos_embed, self.decoder_pos_embed):
            embedding.data[0, 1:] = sine_positions(embedding.shape[2])


def sine_positions(width: int) -> Tensor:
    """Return two-dimensional sine-cosine position embeddings, float32 (512, width).

    The first half encodes time, the second frequency. `width` is a multiple of 4.
    """
    parts = width // POSITION_PARTS
    rates = torch.exp(torch.arange(parts, dtype=torch.float64) * (-math.log(10_000) / parts))
    time = torch.arange(WINDOW_COLUMNS, dtype=torch.float64)[:, None, None].expand(-1, PATCH_ROWS, 1) * rates
    frequency = torch.arange(PATCH_ROWS, dtype=torch.float64)[None, :, None].expand(WINDOW_COLUMNS, -1, 1) * rates
    grid = torch.cat([time.sin(), time.cos(), frequency.sin(), frequency.cos()], dim=-1)
    return grid.reshape(WINDOW_PATCHES, width).float()


def pretraining_steps() -> list[Step]:
    """Return small training steps of a masked autoencoder, to test low precision on a CPU."""
    model = filled(MaskedAutoencoder(AudioMAE(EncoderConfig(128, 3, 2)), 64, 1, 2))
    mel, order = torch.randn(1, WINDOW_FRAMES, MEL_BINS), torch.randperm(WINDOW_PATCHES)[None, :256]
    return training_steps("the masked autoencoder's linear layers and attention", model, lambda: model(mel, order, 128))
