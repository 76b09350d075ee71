"""Trainings of a small VAE and a small vocoder, from a collection of audio to a file."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder
from sctok.codec.storage.parts import arrays_of, save_part

from .clips import Collection, CropConfig, CropSampler, Skipped
from .loop import TrainingLength, TrainingRun
from .vae import VAETraining, VAETrainingConfig
from .vocoder import VocoderTraining, VocoderTrainingConfig

VAE_CROPS = CropConfig(packed=0.8, level="random")
VOCODER_CROPS = CropConfig(samples=20_480, packed=0.9, level="random")  # 128 frames, which all VAEs divide
VOCODER_VALIDATION = CropConfig(samples=48_000)
VALIDATION_CROPS = 32
VALIDATE_EVERY = 250


class PartRun:
    """One training of a VAE or a vocoder in one folder, which goes on where it stopped."""

    def __init__(
        self,
        config: VAETrainingConfig | VocoderTrainingConfig,
        collection: Collection,
        folder: Path,
        device: torch.device,
        skipped: Skipped = lambda path, reason: None,
        initial: nn.Module | None = None,
        through: AutoencoderKL | None = None,
    ) -> None:
        """Set the training up, or continue from its checkpoint. Raises ValueError where that is of another training.

        initial: the VAE whose decoder is trained on, or the vocoder to begin with. through: as in
        `VocoderTrainingConfig`.
        """
        self.config, self.collection = config, collection
        self.task: VAETraining | VocoderTraining
        if isinstance(config, VAETrainingConfig):
            drawn = CropConfig(**{**asdict(VAE_CROPS), "seed": config.seed})
            crops, held = CropSampler(collection.train, drawn, skipped), collection.validation(drawn, VALIDATION_CROPS)
            assert initial is None or isinstance(initial, AutoencoderKL)
            self.task = VAETraining(config, crops, held, device, initial)
        else:
            drawn = CropConfig(**{**asdict(VOCODER_CROPS), "seed": config.seed})
            crops = CropSampler(collection.train, drawn, skipped)
            held = collection.validation(VOCODER_VALIDATION, VALIDATION_CROPS)
            assert initial is None or isinstance(initial, IstftVocoder)
            self.task = VocoderTraining(config, crops, held, device, initial, through)
        self.run = TrainingRun(self.task, folder, {**asdict(config), "crops": asdict(drawn)})

    def train(self, progress: Callable[[dict[str, Any]], None], validate_every: int = VALIDATE_EVERY) -> int:
        """Train to the last step, as `TrainingRun.run`."""
        return self.run.run(TrainingLength(self.config.steps, validate_every), progress)

    def save(self, path: Path) -> None:
        """Write the trained module with what made it. Raises DiskFullError."""
        provenance = {
            "trained": self.run.settings,
            "steps": self.run.step,
            "hours_of_audio": round(self.collection.hours, 2),
            "hours_of_training": round(self.run.seconds / 3600, 3),
        }
        model, kind = self.task.model, "vae" if isinstance(self.task, VAETraining) else "istft"
        save_part(path, kind, arrays_of(model), model.config, metadata=provenance)
