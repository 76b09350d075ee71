"""A codec of the published sizes with random weights, for benchmarks that do not depend on weights."""

from typing import TypeVar

import numpy as np
import torch
from torch import nn

from sctok.codec.codec_parts import CodecInfo, CodecParts, DecoderParts, TokenParts
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.features.checkpoints import EncoderWeights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.formats.stacking import stack_factor

Module = TypeVar("Module", bound=nn.Module)

NAME = "stand-in"
SCALE_FACTOR = 0.5
DEVIATION = 0.02  # of weights that are initialised to zero, which would make the sound silent


def stand_in(rate: int, rows: int, small: bool = False) -> CodecParts:
    """Return a codec of the published sizes of a token rate, with a semantic codebook of `rows` random rows.

    small: use small sizes, to try a script. Memory: 2, 4 or 8 GB at 100, 50 or 25 tokens per second.
    """
    torch.manual_seed(0)
    stack = stack_factor(rate)
    encoder = EncoderConfig(32, 3, 2) if small else EncoderConfig()
    width = encoder.width * stack
    acoustic = AcousticConfig(width, layers=1, codebook_size=64) if small else AcousticConfig.published(rate)
    unet = TUNetConfig(
        model_channels=8 if small else 64, head_width=8 if small else 32, context_width=2 * width + PE_WIDTH
    )
    weights = EncoderWeights(NAME, encoder, dict(_ready(AudioMAE(encoder)).state_dict()), {})
    centroids = np.random.default_rng(0).standard_normal((rows, width), np.float32)
    book = CodebookInfo("merged", (), stack, NAME, weights.hash)
    tokens = TokenParts(
        encoder=weights,
        codebooks=(Codebook(centroids, np.zeros(rows, np.int64), book),),
        acoustic=_ready(AcousticEncoder(acoustic)),
        info=CodecInfo(f"{NAME}-{rate}", rate, stack, token_hash="0" * 16),
    )
    decoder = DecoderParts(
        unet=_ready(TUNet(unet)),
        grid=None,
        schedule=NoiseSchedule.cosine(),
        scale_factor=SCALE_FACTOR,
        vae=_ready(AutoencoderKL(VAEConfig(channels=8 if small else 128))),
        vocoder=_ready(HifiGan(HifiGanConfig(initial=32 if small else 1024))),
    )
    return CodecParts(tokens, decoder)


def _ready(module: Module) -> Module:
    for value in module.parameters():
        if not value.any():
            nn.init.normal_(value, std=DEVIATION)
    return module.eval().requires_grad_(False)
