"""Checkpoints in the published layout, small enough for tests."""

from pathlib import Path

import numpy as np
import torch

from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH
from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.published.checkpoints import Layout
from sctok.features.encoder import AudioMAE, EncoderConfig

WIDTH = 32
BUFFERS = ("betas", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_mean_coef1", "logvar")


def small_layout(rate: int) -> Layout:
    """Return small sizes with the structure of the published ones."""
    features = WIDTH * (100 // rate)
    return Layout(
        EncoderConfig(WIDTH, 3, 2),
        AcousticConfig(features, hidden=8, layers=1, codebook_size=24),
        TUNetConfig(4, 0, 8, (1, 2), 1, (1,), 8, 2 * features + PE_WIDTH),
        VAEConfig(8, (1, 2), 1, 4, patch=4),
        HifiGanConfig(32, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4), (3,), (1,)),
    )


SMALL_LAYOUTS = {rate: small_layout(rate) for rate in (100, 50)}


def small_checkpoints(rate: int = 50) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the tensors of encoder.ckpt and decoder.ckpt, with all names of the published files."""
    torch.manual_seed(rate)
    layout = small_layout(rate)
    encoder = _below("audiomae.model.", AudioMAE(layout.encoder)) | _below("", AcousticEncoder(layout.acoustic))
    encoder |= {"audiomae.model.mask_token": torch.zeros(1, 1, 4), "audiomae.model.decoder_embed.bias": torch.zeros(4)}
    decoder = _below("model.diffusion_model.", TUNet(layout.unet))
    decoder |= {f"model_ema.{name.removeprefix('model.').replace('.', '')}": v + 1 for name, v in decoder.items()}
    decoder |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    decoder |= _below("first_stage_model.", AutoencoderKL(layout.vae))
    decoder |= _below("first_stage_model.vocoder.", HifiGan(layout.vocoder))
    decoder |= {name: torch.rand(1000) for name in BUFFERS}
    decoder |= {"alphas_cumprod": torch.linspace(0.99, 0.0, 1000), "scale_factor": torch.tensor(0.75)}
    return encoder, decoder


def write_checkpoints(
    folder: Path, encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor], rate: int = 50
) -> Path:
    """Write both checkpoints and a codebook to a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(encoder, folder / "encoder.ckpt")
    torch.save(decoder, folder / "decoder.ckpt")
    generator = np.random.default_rng(0)
    np.save(folder / "codebook.npy", generator.standard_normal((40, WIDTH * (100 // rate))).astype(np.float32))
    return folder


def _below(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: value.detach().clone() for name, value in module.state_dict().items()}
