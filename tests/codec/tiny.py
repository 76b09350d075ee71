"""A small, complete and untrained codec for tests."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sctok.codec.codec_parts import CodecParts, DecoderParts, TokenParts
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH
from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.codec.storage.codec_folder import describe_codec
from sctok.features.checkpoints import EncoderWeights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.codebooks import Codebook, CodebookInfo

WIDTH = 32
CODEBOOK_SIZES = (24, 64)
ACOUSTIC_SIZE = 48


def tiny_parts(stack: int = 4, *, grid: bool = True, seed: int = 0) -> CodecParts:
    """Return the parts of an untrained codec whose output depends on every token."""
    torch.manual_seed(seed)
    encoder = AudioMAE(EncoderConfig(WIDTH, 3, 2))
    weights = EncoderWeights("tiny", encoder.config, {k: v.detach() for k, v in encoder.state_dict().items()}, {})
    width = WIDTH * stack
    vae = AutoencoderKL(VAEConfig(8, (1, 2), res_blocks=1, latent_channels=4, patch=4))
    acoustic = AcousticEncoder(AcousticConfig(width, 16, 1, 8, ACOUSTIC_SIZE))
    context = 8 + width + PE_WIDTH
    grid_condition = (
        GridCondition(GridConfig(context, stack, vae.config.latent_shape(1024), 16, 4, 1)) if grid else None
    )
    channels = grid_condition.config.channels if grid_condition else 0
    unet = TUNet(TUNetConfig(4, channels, 8, (1, 2), 1, (1,), 8, context))
    with torch.no_grad():
        for layer in (
            unet.out[-1].weight,
            *(block.proj_out.weight for block in unet.modules() if hasattr(block, "proj_out")),
        ):
            layer.normal_(0, 0.1)  # untrained, these layers are zero
    vocoder = IstftVocoder(VocoderConfig(16, 1, 2))
    for module in (acoustic, unet, grid_condition, vae, vocoder):
        if module is not None:
            module.eval()
    books = tuple(_codebook(size, stack, weights.hash) for size in CODEBOOK_SIZES)
    return CodecParts(
        TokenParts(weights, books, acoustic, describe_codec("tiny", weights, books, acoustic)),
        DecoderParts(unet, grid_condition, NoiseSchedule.cosine(), 0.5, vae, vocoder),
    )


def replace_parts(parts: CodecParts, **changes: Any) -> CodecParts:
    """Return a codec in which some parts, given by their field names, are replaced."""
    tokens = {name: part for name, part in changes.items() if hasattr(parts.tokens, name)}
    decoder = {name: part for name, part in changes.items() if name not in tokens}
    return CodecParts(replace(parts.tokens, **tokens), replace(parts.decoder, **decoder))


def _codebook(size: int, stack: int, encoder_hash: str) -> Codebook:
    centroids = np.random.default_rng(size).standard_normal((size, WIDTH * stack)).astype(np.float32)
    return Codebook(centroids, np.ones(size, np.int64), CodebookInfo("merged", (), stack, "tiny", encoder_hash))
