"""Training an AudioMAE encoder by masked autoencoding."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.audio.windows import WINDOW_PATCHES
from sctok.features.checkpoints import EncoderWeights, save_weights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.runtime.devices import Use
from sctok.runtime.distributed import ALONE, Group
from sctok.runtime.read_ahead import ReadAhead

from .filterbanks import FilterbankCache, WindowSampler, cut_windows, validation_windows
from .loop import ValidationReport
from .masked_autoencoder import POSITION_PARTS, MaskedAutoencoder
from .optimization import MixedPrecisionTask, check_training, warm_up_and_decay

AHEAD = 8  # batches drawn ahead for a GPU
PRETRAINING = Use("pretraining an encoder", "sctok.training.masked_autoencoder:pretraining_steps")


@dataclass(frozen=True)
class EncoderTrainingConfig:
    """Settings that determine what an encoder learns; the default sizes are those of the bundled mini encoder.

    predicted: masked patches that a step predicts; validation predicts all of them. initial: hash of the encoder to
    begin with, None for random weights. The decoder always begins with random weights. decoder_steps: steps at the
    start that train only the decoder, so that its early gradients do not spoil such an encoder.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 3
    decoder_heads: int = 4
    mask_ratio: float = 0.8
    predicted: int = 128
    steps: int = 6000
    batch_size: int = 16
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 300
    decay_share: float = 0.3
    gradient_clip: float = 1.0
    balance: float = 0.5
    validation_windows: int = 128
    validate_every: int = 250
    precision: str = "fp32"
    seed: int = 0
    initial: str | None = None
    decoder_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask ratio {self.mask_ratio} is not between 0 and 1")
        counts = ("steps", "batch_size", "predicted", "validate_every", "validation_windows")
        check_training(self, positive=counts, not_negative=("learning_rate", "weight_decay", "warmup_steps"))
        for name in ("width", "decoder_width"):
            if getattr(self, name) % POSITION_PARTS:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of {POSITION_PARTS}, which positions need"
                )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width {self.decoder_width} is not a multiple of decoder_heads {self.decoder_heads}"
            )
        _ = self.encoder  # checks its own sizes

    @property
    def encoder(self) -> EncoderConfig:
        """Sizes of the encoder."""
        return EncoderConfig(self.width, self.depth, self.heads)

    @property
    def visible(self) -> int:
        """Number of the 512 patches that the encoder sees."""
        return round(WINDOW_PATCHES * (1 - self.mask_ratio))

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, linear decay to zero over the last share.

        The rate warms up again when the encoder begins to learn.
        """
        since = step - self.decoder_steps if step >= self.decoder_steps else step
        warm_up = warm_up_and_decay(since, self.steps, self.warmup_steps, 0.0)
        return self.learning_rate * min(warm_up, warm_up_and_decay(step, self.steps, 0, self.decay_share))


class EncoderTraining(MixedPrecisionTask):
    """The task of training an encoder: to predict masked patches of filterbanks.

    Windows and masks of a step depend only on the seed and the step. With several ranks, each takes its part of one
    batch that all ranks share.
    """

    main_loss = "loss"

    def __init__(
        self,
        config: EncoderTrainingConfig,
        cache: FilterbankCache,
        device: torch.device,
        initial: EncoderWeights | None = None,
        group: Group = ALONE,
    ) -> None:
        if (initial.hash if initial else None) != config.initial:
            raise ValueError(f"the configuration begins with the encoder {config.initial}, not with the given one")
        if initial and initial.config != config.encoder:
            raise ValueError(f"the encoder {initial.name} has the sizes {initial.config}, not {config.encoder}")
        super().__init__(config.precision, device, PRETRAINING, group)
        self.config = config
        torch.manual_seed(config.seed)
        encoder = AudioMAE(config.encoder)
        self.model = MaskedAutoencoder(encoder, config.decoder_width, config.decoder_depth, config.decoder_heads)
        if initial:
            encoder.load_state_dict(initial.tensors)
        self.model.to(device)
        self.optimizer = _optimizer(self.model, config)
        self.sampler = WindowSampler(cache.collection.train, config.balance)
        # A step on a GPU ends before a thread has drawn the windows of the next one.
        self._batches = ReadAhead(self._draw, ahead=1 if device.type == "cpu" else AHEAD)
        self._frames = _near(cache, device)
        self.held_out = validation_windows(cache, config.validation_windows)
        self.modules = {"model": self.model}
        self.optimizers = {"model": self.optimizer}

    def train_step(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        self.model.train()
        frames, levels, order = self._batches.take(step)
        mel = cut_windows(self._frames, *(each.to(self._frames.device) for each in (frames, levels))).to(self.device)
        self.model.encoder.requires_grad_(step >= self.config.decoder_steps)
        loss = self._loss(mel, order.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.descend_scaled(self.optimizer, self.model, self.config.rate_at(step), self.config.gradient_clip)
        return {"loss": float(loss.detach())}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """See TrainingTask. The masks are the same at every step."""
        self.model.eval()
        total = 0.0
        for start in range(0, len(self.held_out), self.config.batch_size):
            mel = torch.from_numpy(self.held_out[start : start + self.config.batch_size]).to(self.device)
            order = _random_order(len(mel), self.config.seed, start).to(self.device)
            total += float(self._loss(mel, order)) * len(mel)
        return {"loss": total / len(self.held_out)}

    def curve_row(self, report: ValidationReport) -> dict[str, Any]:
        """See TrainingTask."""
        return {
            "step": report.step,
            "train_loss": round(report.losses.get("loss", math.nan), 5),
            "validation_loss": round(report.metrics["loss"], 5),
            "learning_rate": self.config.rate_at(report.step - 1),
            "windows_per_second": round(report.steps_per_second * self.config.batch_size * self.group.world, 2),
            "hours": report.hours,
        }

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the trained model and its provenance. Raises DiskFullError."""
        save_weights(path, self.model.encoder, provenance)

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames and levels of this rank's windows, and their visible and predicted patches in order."""
        config, count = self.config, self.config.batch_size * self.group.world
        seen = _random_order(count, config.seed + 1, step)[:, : config.visible + config.predicted]
        drawn = *self.sampler.draw(np.random.default_rng((config.seed, step)), count), seen
        frames, levels, order = (each[self.group.rank * config.batch_size :][: config.batch_size] for each in drawn)
        return frames, levels, order

    def _loss(self, mel: Tensor, order: Tensor) -> Tensor:
        with self.autocast():
            return self.model(mel, order, self.config.visible)


def _near(cache: FilterbankCache, device: torch.device) -> Tensor:
    """Return the frames of a cache, on the GPU if they leave half of its memory free."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch warns of a read-only memory map
        frames = torch.from_numpy(cache.frames)
    if device.type == "cuda" and 2 * frames.nbytes < torch.cuda.mem_get_info(device)[0]:
        return frames.to(device)
    return frames


def _random_order(batch: int, seed: int, step: int) -> Tensor:
    """Return an independent random order of the 512 patches for each window, int64 (batch, 512)."""
    rng = np.random.default_rng((seed, step, batch))
    return torch.from_numpy(rng.random((batch, WINDOW_PATCHES)).argsort(axis=1))


def _optimizer(model: MaskedAutoencoder, config: EncoderTrainingConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices only, without position embeddings and tokens."""
    decayed = [
        p for name, p in model.named_parameters() if p.ndim >= 2 and "pos_embed" not in name and "token" not in name
    ]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
