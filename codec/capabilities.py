"""Small computations of every kind that decoders use, to test low precision on a CPU."""

import torch
from torch import Tensor

from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.runtime.low_precision import Step, filled, forward_step

_FRAMES, TOKENS, CONTEXT = 128, 128, 256
_VAE = VAEConfig(32, (1, 2), 1, 8, patch=4)
GRID = GridConfig(CONTEXT, 4, _VAE.latent_shape(1024), 16, 4, 1)


def decoder_steps() -> list[Step]:
    """Return the steps of decoding: T-UNet, grid condition, VAE and both kinds of vocoder."""
    unet, grid = filled(probe_unet()).eval(), filled(GridCondition(GRID)).eval()
    vae, mel = filled(AutoencoderKL(_VAE)).eval(), torch.randn(1, _FRAMES, 64)
    hifigan = filled(HifiGan(HifiGanConfig(32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4), (3,), (1,)))).eval()
    return [
        forward_step("T-UNet", unet, *probe_unet_inputs()),
        forward_step("grid", grid, torch.randn(1, TOKENS, CONTEXT)),
        forward_step("VAE", vae.decode, torch.randn(1, *_VAE.latent_shape(_FRAMES))),
        forward_step("HiFi-GAN vocoder", hifigan, mel),
        forward_step("iSTFT vocoder", filled(IstftVocoder(VocoderConfig(64, 1, 2))).eval(), mel),
    ]


def probe_unet() -> TUNet:
    """Return a small T-UNet."""
    return TUNet(TUNetConfig(8, 0, 32, (1, 2), 1, (1,), 32, CONTEXT))


def probe_unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, a timestep and a context for the small T-UNet."""
    return torch.randn(1, 8, 64, 16), torch.tensor([500]), torch.randn(1, TOKENS, CONTEXT)
