"""What codecs compute in low precision besides the encoder's features, small enough to try on a CPU."""

import torch
from torch import Tensor

from sctok.kernels.probe import Step, filled, forward_step, training_steps

from .acoustic import AcousticConfig, AcousticEncoder
from .grid import GridCondition, GridConfig
from .hifigan import HifiGan, HifiGanConfig
from .tunet import TUNet, TUNetConfig
from .vae import AutoencoderKL, VAEConfig
from .vocoder import IstftVocoder, VocoderConfig

_FEATURES, _CONTEXT, _FRAMES, _TOKENS = 64, 256, 128, 128
_VAE = VAEConfig(32, (1, 2), 1, 8, patch=4)
_GRID = GridConfig(_CONTEXT, 4, _VAE.latent_shape(1024), 16, 4, 1)


def decoder_steps() -> list[Step]:
    """Return the steps that decode a window: T-UNet, the grid of its condition, VAE and both kinds of vocoder."""
    unet, grid = filled(_unet()).eval(), filled(GridCondition(_GRID)).eval()
    vae, mel = filled(AutoencoderKL(_VAE)).eval(), torch.randn(1, _FRAMES, 64)
    hifigan = filled(HifiGan(HifiGanConfig(32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4), (3,), (1,)))).eval()
    return [
        forward_step("T-UNet", unet, *_unet_inputs()),
        forward_step("grid", grid, torch.randn(1, _TOKENS, _CONTEXT)),
        forward_step("VAE", vae.decode, torch.randn(1, *_VAE.latent_shape(_FRAMES))),
        forward_step("vocoder of convolutions (HiFi-GAN)", hifigan, mel),
        forward_step("vocoder of spectra", filled(IstftVocoder(VocoderConfig(64, 1, 2))).eval(), mel),
    ]


def training_codec_steps() -> list[Step]:
    """Return the steps of the parts of a codec that learn: LSTM, T-UNet and grid."""
    acoustic = AcousticEncoder(AcousticConfig(_FEATURES, 64, 2, 32, 64))
    features = torch.randn(2, _TOKENS, 2 * _FEATURES)
    unet = filled(_unet()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, grid, context = _unet_inputs(), filled(GridCondition(_GRID)), torch.randn(1, _TOKENS, _CONTEXT)
    return [
        *training_steps("LSTM", acoustic.encoder, lambda: acoustic.encoder(features)[0]),
        *training_steps("T-UNet", unet, lambda: unet(*inputs)),
        *training_steps("grid", grid, lambda: grid(context)),
    ]


def _unet() -> TUNet:
    return TUNet(TUNetConfig(8, 0, 32, (1, 2), 1, (1,), 32, _CONTEXT))


def _unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return a latent, a timestep and a context."""
    return torch.randn(1, 8, 64, 16), torch.tensor([500]), torch.randn(1, _TOKENS, _CONTEXT)
