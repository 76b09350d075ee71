"""Trainings of an encoder, a small VAE and a small vocoder, from a collection of audio to a file."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder
from sctok.features.checkpoints import EncoderWeights
from sctok.runtime.distributed import ALONE, Group

from .clips import Clip, Collection, Skipped
from .crops import CropConfig, CropSampler, validation_crops
from .encoder import EncoderTraining, EncoderTrainingConfig
from .filterbanks import FilterbankCache
from .loop import Progress, TrainingLength, TrainingRun
from .vae import VAETraining, VAETrainingConfig
from .vocoder import VocoderTraining, VocoderTrainingConfig

VAE_CROPS = CropConfig(packed=0.8, level="random")
VOCODER_CROPS = CropConfig(samples=20_480, packed=0.9, level="random")  # 128 frames, a multiple for all VAEs
VOCODER_VALIDATION = CropConfig(samples=48_000)
VALIDATION_CROPS = 32
ENCODER_CHECKPOINT_SECONDS = 120.0


class PartRun:
    """A training of one part in one folder; it resumes from the folder's checkpoint.

    Raises:
        ValueError: the checkpoint has other settings.
    """

    def __init__(
        self,
        task: EncoderTraining | VAETraining | VocoderTraining,
        folder: Path,
        hours_of_audio: float,
        length: TrainingLength,
        **settings: Any,
    ) -> None:
        self.task, self.length, self.hours_of_audio = task, length, hours_of_audio
        ranks = {"ranks": task.group.world} if task.group.world > 1 else {}
        self.run = TrainingRun(task, folder, {**asdict(task.config), **settings, **ranks}, task.group)

    def train(self, progress: Progress = lambda report: None) -> int:
        """Train up to the last step; see `TrainingRun.run`."""
        return self.run.run(self.length, progress)

    def save(self, path: Path) -> None:
        """Write the trained model and its provenance. Raises DiskFullError."""
        self.task.save(path, self.run.provenance(self.hours_of_audio))


def encoder_run(
    config: EncoderTrainingConfig,
    cache: FilterbankCache,
    folder: Path,
    device: torch.device,
    initial: EncoderWeights | None = None,
    group: Group = ALONE,
) -> PartRun:
    """Prepare the training of an encoder, or resume it. `initial` is the encoder to begin with."""
    task = EncoderTraining(config, cache, device, initial, group)
    length = TrainingLength(config.steps, config.validate_every, ENCODER_CHECKPOINT_SECONDS)
    return PartRun(task, folder, cache.hours, length)


def vae_run(
    config: VAETrainingConfig,
    collection: Collection[Clip],
    folder: Path,
    device: torch.device,
    skipped: Skipped = lambda path, reason: None,
    initial: AutoencoderKL | None = None,
    group: Group = ALONE,
) -> PartRun:
    """Prepare the training of a VAE, or resume it. `initial` is the VAE whose decoder is trained further."""
    drawn = replace(VAE_CROPS, seed=config.seed)
    crops = CropSampler(collection.train, drawn, skipped)
    held_out = validation_crops(collection.held_out, drawn, VALIDATION_CROPS, otherwise=collection.train)
    task = VAETraining(config, crops, held_out, device, initial, group)
    return PartRun(task, folder, collection.hours, TrainingLength(config.steps), crops=asdict(drawn))


def vocoder_run(
    config: VocoderTrainingConfig,
    collection: Collection[Clip],
    folder: Path,
    device: torch.device,
    skipped: Skipped = lambda path, reason: None,
    initial: IstftVocoder | None = None,
    through: AutoencoderKL | None = None,
    group: Group = ALONE,
) -> PartRun:
    """Prepare the training of a vocoder, or resume it.

    initial: the vocoder to begin with. through: see `VocoderTrainingConfig`.
    """
    drawn = replace(VOCODER_CROPS, seed=config.seed)
    crops = CropSampler(collection.train, drawn, skipped)
    held_out = validation_crops(collection.held_out, VOCODER_VALIDATION, VALIDATION_CROPS, otherwise=collection.train)
    task = VocoderTraining(config, crops, held_out, device, initial, through, group)
    return PartRun(task, folder, collection.hours, TrainingLength(config.steps), crops=asdict(drawn))
