"""The parts of a codec: those that make tokens, those that decode them, and the check that they fit each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sctok.codec.models.acoustic import AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH, Order
from sctok.codec.models.grid import GridCondition
from sctok.codec.models.tunet import TUNet
from sctok.codec.models.vae import AutoencoderKL
from sctok.features.checkpoints import EncoderWeights
from sctok.formats.codebooks import Codebook

from .noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class CodecInfo:
    """The name, the token rate and the origin of a codec.

    token_hash: hash of everything except the codebook that determines the tokens; empty until the codec is saved.
    order:
    order of the vectors in the context of the T-UNet. provenance: JSON values about the origin of the codec.
    """

    name: str
    token_rate: int
    stack_factor: int
    token_hash: str = ""
    order: Order = "published"
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TokenParts:
    """The parts that make tokens. Modules are on the CPU in evaluation mode."""

    encoder: EncoderWeights
    codebooks: Sequence[Codebook]
    acoustic: AcousticEncoder
    info: CodecInfo


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """The parts that decode tokens. Modules are on the CPU in evaluation mode.

    scale_factor: factor by which the latents of the VAE are multiplied for the T-UNet.
    """

    unet: TUNet
    grid: GridCondition | None
    schedule: NoiseSchedule
    scale_factor: float
    vae: AutoencoderKL
    vocoder: nn.Module


@dataclass(frozen=True, eq=False)
class CodecParts:
    """All parts of a codec. Raises ValueError with every mismatch if they do not fit each other."""

    tokens: TokenParts
    decoder: DecoderParts

    def __post_init__(self) -> None:
        problems = list(_mismatches(self))
        if problems:
            raise ValueError(f"the parts of the codec {self.info.name} do not fit each other: {'; '.join(problems)}")

    @property
    def info(self) -> CodecInfo:
        """The description of the codec."""
        return self.tokens.info


def _mismatches(parts: CodecParts) -> Iterator[str]:
    tokens, decoder = parts.tokens, parts.decoder
    acoustic, width = tokens.acoustic.config, tokens.encoder.config.width * tokens.info.stack_factor
    context = acoustic.feature_width + acoustic.quantizer.dim + PE_WIDTH
    unet, grid = decoder.unet.config, decoder.grid.config if decoder.grid else None
    for name, found, needed in (
        ("acoustic encoder's features", acoustic.feature_width, width),
        ("T-UNet's context", unet.context_width, context),
        ("grid's context", grid.context_width if grid else context, context),
        ("T-UNet's latent", unet.latent_channels, decoder.vae.config.latent_channels),
        ("T-UNet's extra channels", unet.extra_channels, grid.channels if grid else 0),
    ):
        if found != needed:
            yield f"the {name} has width {found}, not {needed}"
    if not 0 < decoder.scale_factor < float("inf"):
        yield f"the scale factor is {decoder.scale_factor}"
