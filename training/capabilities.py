"""Small computations of every kind that training uses, to test low precision on a CPU."""

import torch

from sctok.audio.windows import MEL_BINS, WINDOW_FRAMES, WINDOW_PATCHES
from sctok.codec.capabilities import CONTEXT, GRID, TOKENS, probe_unet, probe_unet_inputs
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.grid import GridCondition
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.runtime.low_precision import Step, filled, training_steps

from .masked_autoencoder import MaskedAutoencoder

_FEATURES = 64


def pretraining_steps() -> list[Step]:
    """Return the training steps of a masked autoencoder."""
    model = filled(MaskedAutoencoder(AudioMAE(EncoderConfig(128, 3, 2)), 64, 1, 2))
    mel, order = torch.randn(1, WINDOW_FRAMES, MEL_BINS), torch.randperm(WINDOW_PATCHES)[None, :256]
    return training_steps("the masked autoencoder's linear layers and attention", model, lambda: model(mel, order, 128))


def training_codec_steps() -> list[Step]:
    """Return the training steps of the trained parts of a codec: LSTM, T-UNet and grid."""
    acoustic = AcousticEncoder(AcousticConfig(_FEATURES, 64, 2, 32, 64))
    features = torch.randn(2, TOKENS, 2 * _FEATURES)
    unet = filled(probe_unet()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, grid, context = probe_unet_inputs(), filled(GridCondition(GRID)), torch.randn(1, TOKENS, CONTEXT)
    return [
        *training_steps("LSTM", acoustic.encoder, lambda: acoustic.encoder(features)[0]),
        *training_steps("T-UNet", unet, lambda: unet(*inputs)),
        *training_steps("grid", grid, lambda: grid(context)),
    ]
