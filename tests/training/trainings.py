"""Small trainings for tests: seconds of audio, tiny models, and a name for each kind of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.grid import GridConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, VAEConfig
from sctok.codec.models.vocoder import VocoderConfig
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.runtime.distributed import ALONE, Group
from sctok.training.clips import open_collection
from sctok.training.codec import CodecTraining, CodecTrainingConfig, FrozenParts
from sctok.training.crops import CropConfig, CropSampler, validation_crops
from sctok.training.encoder import EncoderTraining, EncoderTrainingConfig
from sctok.training.filterbanks import build_filterbank_cache
from sctok.training.loop import TrainingTask
from sctok.training.masked_autoencoder import MaskedAutoencoder
from sctok.training.vae import VAETraining, VAETrainingConfig
from sctok.training.vocoder import VocoderTraining, VocoderTrainingConfig

CPU = torch.device("cpu")
ENCODER = EncoderConfig(16, 3, 2)
STACK = 4
VAE = VAEConfig(channels=8, multipliers=(1, 1), res_blocks=1, latent_channels=2, patch=8)
ACOUSTIC = AcousticConfig(16 * STACK, hidden=8, layers=1, acoustic_width=8, codebook_size=16)
CONTEXT = 16 * STACK + 8 + 192
GRID = GridConfig(CONTEXT, STACK, VAE.latent_shape(1024), hidden=16, features=2, blocks=1)
UNET = TUNetConfig(2, 0, 8, (1, 2), 1, (1,), 8, CONTEXT)
UNET_AND_GRID = TUNetConfig(2, GRID.channels, 8, (1, 2), 1, (1,), 8, CONTEXT)

# The same as a configuration file.
CONFIG = """
token_rate = 25
steps = 4
batch_size = 2
learning_rate = 1e-3
warm_up = 2
ema_decay = 0.9

[acoustic]
hidden = 8
layers = 1
acoustic_width = 8
codebook_size = 16

[unet]
model_channels = 8
multipliers = [1, 2]
res_blocks = 1
attention_levels = [1]
head_width = 8

[parts]
encoder = "encoder.safetensors"
codebooks = [8, 12]

[run]
validate_every = 1
validation_windows = 2
listen_every = 2
listen_windows = 1
listen_steps = 2
readers = 1
"""


def write_audio(folder: Path, clips: int = 4, seconds: float = 2.0) -> list[str]:
    """Write two inputs of noisy tones and return their paths."""
    rng = np.random.default_rng(0)
    for name, hertz in (("a", 300), ("b", 1500)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(clips):
            time = np.arange(int(seconds * 16_000)) / 16_000
            wave = 0.3 * np.sin(2 * np.pi * hertz * (index + 1) * time) + 0.02 * rng.standard_normal(len(time))
            soundfile.write(folder / name / f"{index}.wav", wave, 16_000)
    return [str(folder / "a"), str(folder / "b")]


def encoder() -> AudioMAE:
    """Return an untrained encoder."""
    torch.manual_seed(0)
    return MaskedAutoencoder(AudioMAE(ENCODER), 16, 1, 1).encoder.eval()


def codebook(k: int = 8, seed: int = 0, encoder_hash: str = "t" * 16, stack: int = STACK) -> Codebook:
    """Return a codebook of random centroids for the encoder."""
    centroids = np.random.default_rng(seed).standard_normal((k, 16 * stack)).astype(np.float32)
    return Codebook(centroids, np.ones(k, np.int64), CodebookInfo("merged", (), stack, "tiny", encoder_hash))


def codec_config(**changes: Any) -> CodecTrainingConfig:
    """Return a tiny configuration like that of the paper: no grid, constant learning rate."""
    settings: dict[str, Any] = {"batch_size": 2, "steps": 6, "learning_rate": 1e-3, "warm_up": 2, "ema_decay": 0.9}
    return CodecTrainingConfig(25, **{"acoustic": ACOUSTIC, "unet": UNET, **settings, **changes})


def codec_task(
    inputs: list[str],
    folder: Path,
    group: Group = ALONE,
    crops: dict[str, Any] | None = None,
    device: torch.device = CPU,
    **changes: Any,
) -> CodecTraining:
    """Return the task of a tiny codec training."""
    torch.manual_seed(1)
    frozen = FrozenParts(encoder(), [codebook(seed=seed) for seed in range(4)], AutoencoderKL(VAE))
    collection = open_collection(inputs, folder)
    drawn = CropConfig(**(crops or {"packed": 0.5}))
    held_out = validation_crops(collection.held_out, drawn, 3)
    return CodecTraining(codec_config(**changes), frozen, CropSampler(collection.train, drawn), held_out, device, group)


def encoder_config(**changes: Any) -> EncoderTrainingConfig:
    """Return a tiny configuration of an encoder training."""
    settings: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2}
    settings |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 1}
    settings |= {"batch_size": 2, "steps": 6, "validate_every": 2, "validation_windows": 2, "warmup_steps": 2}
    return EncoderTrainingConfig(**{**settings, **changes})


def encoder_task(
    inputs: list[str], folder: Path, group: Group = ALONE, device: torch.device = CPU, **changes: Any
) -> EncoderTraining:
    """Return the task of a tiny encoder training; only its decoder learns in the first two steps."""
    cache = build_filterbank_cache(inputs, folder / "filterbanks", workers=0, device=device, group=group)
    return EncoderTraining(encoder_config(**{"decoder_steps": 2, **changes}), cache, device, group=group)


def vae_task(
    inputs: list[str], folder: Path, group: Group = ALONE, device: torch.device = CPU, **changes: Any
) -> VAETraining:
    """Return the task of a tiny VAE training."""
    clips, crops = open_collection(inputs, folder).train, CropConfig(samples=20_480)
    config = VAETrainingConfig(**{"model": VAE, "batch_size": 2, "steps": 6, **changes})
    return VAETraining(config, CropSampler(clips, crops), validation_crops(clips, crops, 3), device, group=group)


def vocoder_task(
    inputs: list[str], folder: Path, group: Group = ALONE, device: torch.device = CPU, **changes: Any
) -> VocoderTraining:
    """Return the task of a tiny vocoder training, whose discriminators are used from the third step on."""
    clips, crops = open_collection(inputs, folder).train, CropConfig(samples=4800)
    settings = {"model": VocoderConfig(8, 1, 2), "batch_size": 2, "steps": 6, "adversarial_after": 2, **changes}
    held_out = validation_crops(clips, crops, 3)
    return VocoderTraining(VocoderTrainingConfig(**settings), CropSampler(clips, crops), held_out, device, group=group)


GRID_CHANGES: dict[str, Any] = {
    "acoustic": AcousticConfig(
        16 * STACK, 8, 1, 8, 16, decay=0.9, restart_threshold=0.05, init="rows", padding_counts=False
    ),
    "grid": GRID,
    "unet": UNET_AND_GRID,
    "estimate_weight": 1.0,
    "accumulate": 2,
    "decay_share": 0.5,
}
# Configurations that are trained on two ranks and on one.
RANKED = {"paper": {"learning_rate": 1e-4}, "grid": {"learning_rate": 1e-4, "scale_batches": 2, **GRID_CHANGES}}


def _grid_task(inputs: list[str], folder: Path, device: torch.device = CPU) -> CodecTraining:
    return codec_task(inputs, folder, device=device, cycle_steps=3, **GRID_CHANGES)


def make_task(kind: str, inputs: list[str], folder: Path, device: torch.device = CPU) -> TrainingTask:
    """Return a small task: an encoder, a VAE, a vocoder, the codec of the paper, or one with the bundled grid."""
    makers: dict[str, Callable[..., TrainingTask]] = {
        "encoder": encoder_task,
        "vae": vae_task,
        "vocoder": vocoder_task,
        "codec": codec_task,
        "grid": _grid_task,
    }
    return makers[kind](inputs, folder, device=device)


def state_of(task: TrainingTask) -> dict[str, torch.Tensor]:
    """Return copies of all tensors of a task's modules."""
    return {f"{n}/{key}": value.clone() for n, m in task.modules.items() for key, value in m.state_dict().items()}
