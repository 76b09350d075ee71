"""Training a small vocoder: on spectral distances first, then also against discriminators of complex spectrograms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sctok.audio.mel import hann_window, log_mel
from sctok.audio.spectral_distances import mel_distance, stft_distance
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.codec.storage.parts import arrays_of, module_hash, save_part
from sctok.runtime.cuda_graphs import captured_on_gpus
from sctok.runtime.distributed import ALONE, Group

from .crops import CropSampler
from .loop import TrainingTask
from .optimization import check_training, descend, warm_up_and_decay

Result = TypeVar("Result")
Gradients = tuple[Tensor, ...]

DISCRIMINATOR_WINDOWS = (256, 512, 1024)
COMPRESSION = 0.3  # exponent of the magnitudes in the discriminators' input


@dataclass(frozen=True)
class VocoderTrainingConfig:
    """Settings that determine what a vocoder learns.

    From step `adversarial_after` on, hinge and feature-matching losses of three discriminators are added to the
    distances. initial: hash of the vocoder to begin with, None for random weights. through: hash of a VAE that encodes
    and decodes the spectrograms of half of each batch, so that the vocoder trains on what it will be given.
    """

    model: VocoderConfig = field(default_factory=VocoderConfig)
    batch_size: int = 8
    steps: int = 3400
    learning_rate: float = 5e-4
    warm_up: int = 200
    decay_share: float = 0.3
    adversarial_after: int = 2500
    adversarial_weight: float = 0.2
    matching_weight: float = 0.5
    gradient_clip: float = 10.0
    seed: int = 0
    initial: str | None = None
    through: str | None = None

    def __post_init__(self) -> None:
        if self.through and self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size} has no half for the VAE: use 2 or more")
        weights = ("learning_rate", "warm_up", "adversarial_after", "adversarial_weight", "matching_weight")
        check_training(self, positive=("batch_size", "steps"), not_negative=weights)


class VocoderTraining(TrainingTask):
    """The task of training a vocoder."""

    main_loss = "mel_distance"

    def __init__(
        self,
        config: VocoderTrainingConfig,
        crops: CropSampler,
        held_out: NDArray[np.float32],
        device: torch.device,
        initial: IstftVocoder | None = None,
        through: AutoencoderKL | None = None,
        group: Group = ALONE,
    ) -> None:
        for name, given in (("initial", initial), ("through", through)):
            if (module_hash(given) if given else None) != getattr(config, name):
                raise ValueError(f"{name} is {getattr(config, name)} in the configuration, not the given model")
        if initial and initial.config != config.model:
            raise ValueError(f"the initial vocoder has the sizes {initial.config}, not {config.model}")
        self.config, self.crops, self.held_out, self.device, self.group = config, crops, held_out, device, group
        self.through = through.to(device).eval().requires_grad_(False) if through else None
        torch.manual_seed(config.seed)
        self.model = IstftVocoder(config.model).to(device)
        if initial:
            self.model.load_state_dict(initial.state_dict())
        self.discriminators = nn.ModuleList(SpectrogramDiscriminator(size) for size in DISCRIMINATOR_WINDOWS).to(device)
        self.optimizer, self.discriminator_optimizer = (
            torch.optim.AdamW(module.parameters(), betas=(0.8, 0.99), weight_decay=0.01)
            for module in (self.model, self.discriminators)
        )
        self._captured: dict[Callable[[Tensor], Any], Callable[[Tensor], Any]] = {}
        self.modules = {"vocoder": self.model, "discriminators": self.discriminators}
        self.optimizers = {"vocoder": self.optimizer, "discriminators": self.discriminator_optimizer}

    def train_step(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        config, size, discriminator_loss = self.config, self.config.batch_size, 0.0
        real = torch.from_numpy(self.crops.draw(step, self.group.rank * size, size)).to(self.device)
        rate = config.learning_rate * warm_up_and_decay(step, config.steps, config.warm_up, config.decay_share)
        adversarial = step >= config.adversarial_after
        if adversarial:
            self._captured.pop(self._distance_gradients, None)  # frees its memory
            loss, gradients = self._run(self._discriminator_gradients, real)
            discriminator_loss = loss.item()
            descend(self.discriminator_optimizer, gradients, rate, config.gradient_clip, self.group)
        function = self._adversarial_gradients if adversarial else self._distance_gradients
        losses, gradients = self._run(function, real)
        descend(self.optimizer, gradients, rate, config.gradient_clip, self.group)
        return {name: loss.item() for name, loss in losses.items()} | {"discriminators": discriminator_loss}

    def _run(self, function: Callable[[Tensor], Result], real: Tensor) -> Result:
        if function not in self._captured:
            self._captured[function] = captured_on_gpus(function, [real])
        return self._captured[function](real)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        totals = np.zeros(2)
        for start in range(0, len(self.held_out), self.config.batch_size):
            real = torch.from_numpy(self.held_out[start : start + self.config.batch_size]).to(self.device)
            fake = self.model(log_mel(real))
            totals += [mel_distance(fake, real).sum().item(), stft_distance(fake, real).sum().item()]
        mel, stft = totals / len(self.held_out)
        return {"mel_distance": float(mel), "stft_distance": float(stft)}

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the trained model and its provenance. Raises DiskFullError."""
        save_part(path, "istft", arrays_of(self.model), self.model.config, metadata=provenance)

    def _distance_gradients(self, real: Tensor, adversarial: bool = False) -> tuple[dict[str, Tensor], Gradients]:
        """Return the distances, and the gradients of the vocoder's parameters."""
        fake = self.model(self._input_mel(real))
        mel, stft = mel_distance(fake, real).mean(), stft_distance(fake, real).mean()
        loss = mel + 0.3 * stft
        if adversarial:
            hinge, matching = self._generator_losses(real, fake)
            loss = loss + self.config.adversarial_weight * hinge + self.config.matching_weight * matching
        distances = {"mel_distance": mel.detach(), "stft_distance": stft.detach()}
        return distances, torch.autograd.grad(loss, list(self.model.parameters()))

    def _adversarial_gradients(self, real: Tensor) -> tuple[dict[str, Tensor], Gradients]:
        """Return the same with the losses of the discriminators added to the distances."""
        return self._distance_gradients(real, adversarial=True)

    @torch.no_grad()
    def _input_mel(self, real: Tensor) -> Tensor:
        """Return the spectrograms that the vocoder is given."""
        mel = log_mel(real)
        if self.through is None:
            return mel
        half = len(mel) // 2
        return torch.cat((self.through.decode(self.through.encode(mel[:half, None])[0])[:, 0], mel[half:]))

    def _discriminator_gradients(self, real: Tensor) -> tuple[Tensor, Gradients]:
        """Return the hinge loss of the discriminators and the gradients of their parameters."""
        with torch.no_grad():
            fake = self.model(self._input_mel(real))
        loss = self._discriminator_loss(real, fake)
        return loss.detach(), torch.autograd.grad(loss, list(self.discriminators.parameters()))

    def _discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        losses = []
        for discriminator in cast(list[SpectrogramDiscriminator], list(self.discriminators)):
            scores = [discriminator(wave)[-1] for wave in (real, fake)]
            losses.append(F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean())
        return torch.stack(losses).mean()

    def _generator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vocoder's hinge loss and the distance of the discriminators' hidden features."""
        adversarial, matching = [], []
        for discriminator in cast(list[SpectrogramDiscriminator], list(self.discriminators)):
            with torch.no_grad():
                theirs = discriminator(real)
            ours = discriminator(fake)
            adversarial.append(-ours[-1].mean())
            pairs = zip(ours[:-1], theirs[:-1], strict=True)
            matching.append(torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in pairs]).mean())
        return torch.stack(adversarial).mean(), torch.stack(matching).mean()


class SpectrogramDiscriminator(nn.Module):
    """Scores waveforms by their complex spectrogram with compressed magnitudes (after DAC, Kumar et al., 2023)."""

    def __init__(self, window: int, width: int = 16) -> None:
        super().__init__()
        self.window = window
        widths = (2, width, 2 * width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4)) for a, b in pairwise(widths))
        self.score = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, waves: Tensor) -> list[Tensor]:
        """Return hidden features and, last, scores of waves (B, n), each (B, channels, time, frequency)."""
        hop = self.window // 4
        spectrum = torch.stft(
            waves, self.window, hop, self.window, hann_window(self.window, waves.device), return_complex=True
        )
        parts = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        power = parts.square().sum(dim=1, keepdim=True)
        x = parts * (power + 1e-9) ** ((COMPRESSION - 1) / 2)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return [*features, self.score(x)]
