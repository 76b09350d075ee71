"""Training a small VAE on log-mel spectrograms."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.mel import log_mel
from sctok.codec.models.vae import AutoencoderKL, VAEConfig, sample_posterior
from sctok.codec.storage.parts import arrays_of, module_hash, save_part
from sctok.runtime.distributed import ALONE, Group

from .crops import CropSampler
from .loop import TrainingTask
from .optimization import check_training, descend, warm_up_and_decay

MINI = VAEConfig(channels=32, res_blocks=1, latent_channels=16, patch=2)


@dataclass(frozen=True)
class VAETrainingConfig:
    """Settings that determine what a VAE learns: mean |mel error| + kl_weight · KL per latent value.

    decoder_of: hash of a VAE of which only the decoder is trained further, None to begin with random weights.
    """

    model: VAEConfig = MINI
    batch_size: int = 4
    steps: int = 1100
    learning_rate: float = 1e-3
    warm_up: int = 100
    decay_share: float = 0.3
    kl_weight: float = 0.01
    gradient_clip: float = 1.0
    seed: int = 0
    decoder_of: str | None = None

    def __post_init__(self) -> None:
        check_training(self, positive=("batch_size", "steps"), not_negative=("learning_rate", "warm_up", "kl_weight"))


class VAETraining(TrainingTask):
    """The task of training a VAE."""

    main_loss = "mel_error"

    def __init__(
        self,
        config: VAETrainingConfig,
        crops: CropSampler,
        held_out: NDArray[np.float32],
        device: torch.device,
        initial: AutoencoderKL | None = None,
        group: Group = ALONE,
    ) -> None:
        if (module_hash(initial) if initial else None) != config.decoder_of:
            raise ValueError(f"the configuration trains the decoder of the VAE {config.decoder_of}, not of this one")
        self.config, self.crops, self.held_out, self.device, self.group = config, crops, held_out, device, group
        torch.manual_seed(config.seed)
        self.model = AutoencoderKL(config.model).to(device)
        if initial:
            self.model.load_state_dict(initial.state_dict())
            self.model.encoder.requires_grad_(False)
            self.model.quant_conv.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
        self.modules = {"vae": self.model}
        self.optimizers = {"vae": self.optimizer}

    def train_step(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        config = self.config
        first = self.group.rank * config.batch_size
        waves = torch.from_numpy(self.crops.draw(step, first, config.batch_size))
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        reconstruction, divergence = self._losses(waves, noise, first)
        rate = config.learning_rate * warm_up_and_decay(step, config.steps, config.warm_up, config.decay_share)
        loss = reconstruction + config.kl_weight * divergence
        gradients = torch.autograd.grad(loss, [p for p in self.model.parameters() if p.requires_grad])
        descend(self.optimizer, gradients, rate, config.gradient_clip, self.group)
        return {"mel_error": reconstruction.item(), "kl": divergence.item()}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        noise = torch.Generator().manual_seed(self.config.seed)
        size = self.config.batch_size
        batches = [torch.from_numpy(self.held_out[i : i + size]) for i in range(0, len(self.held_out), size)]
        losses = [[loss.item() for loss in self._losses(batch, noise)] for batch in batches]
        weights = np.array([len(batch) for batch in batches]) / len(self.held_out)
        error, divergence = weights @ np.array(losses)
        return {"mel_error": float(error), "kl": float(divergence)}

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the trained model and its provenance. Raises DiskFullError."""
        save_part(path, "vae", arrays_of(self.model), self.model.config, metadata=provenance)

    def _losses(self, waves: Tensor, generator: torch.Generator, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return the mel error and the KL divergence, each (), of waves that are row `first` of the batch onwards."""
        mel = log_mel(waves.to(self.device))[:, None]
        mean, log_variance = self.model.encode(mel)
        noise = torch.randn((first + len(mean), *mean.shape[1:]), generator=generator)[first:].to(self.device)
        decoded = self.model.decode(sample_posterior(mean, log_variance, noise))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return (decoded - mel).abs().mean(), divergence
