"""Training a codec: acoustic encoder, quantizer, T-UNet and grid together, with all other parts frozen."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctok.audio.filterbank import filterbank
from sctok.audio.mel import log_mel
from sctok.audio.windows import WINDOW_SAMPLES, WINDOW_SPAN
from sctok.codec.decoding import PROBE_CONTEXT, PROBE_GRID, PROBE_TOKENS, probe_unet, probe_unet_inputs
from sctok.codec.models.acoustic import AcousticConfig, AcousticEncoder
from sctok.codec.models.condition import PE_WIDTH, Order, build_condition, mark_out, unconditional
from sctok.codec.models.grid import GridCondition, GridConfig
from sctok.codec.models.tunet import TUNet, TUNetConfig
from sctok.codec.models.vae import AutoencoderKL, sample_posterior
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.features.encoder import AudioMAE
from sctok.formats.codebooks import Codebook
from sctok.formats.stacking import stack_factor, stack_patches
from sctok.kernels.assign import nearest_centroid, prepare_centroids
from sctok.runtime.cuda_graphs import captured_on_gpus
from sctok.runtime.devices import Use
from sctok.runtime.distributed import ALONE, Group
from sctok.runtime.low_precision import Step, filled, training_steps

from .crops import CropSampler
from .optimization import MixedPrecisionTask, check_training, warm_up_and_decay

Losses = dict[str, Tensor]

CODEC_TRAINING = Use("training a codec", "sctok.training.codec:training_codec_steps")

# Purposes of random draws, which seed them, so that the draws of one step differ from each other.
_LATENT, _NOISE, _TIME, _CODEBOOK, _DROPOUT = range(5)


@dataclass(frozen=True)
class CodecTrainingConfig:
    """Settings that determine what a codec learns; the defaults follow section IV of the paper.

    condition_dropout: chance that a whole batch is trained without its condition, for guidance. accumulate: batches
    whose gradients are averaged for one step. scale_batches: batches on which the scale of the latent is measured.
    estimate_weight: weight of the squared error of the grid's estimate of the latent; 0 without a grid. cycle_steps:
    steps after which the crops repeat, 0 for new crops at every step; the output of the frozen parts for repeated crops
    is kept in memory, about 0.9 MB per crop with the mini encoder.
    """

    token_rate: int
    acoustic: AcousticConfig
    unet: TUNetConfig
    grid: GridConfig | None = None
    order: Order = "published"
    batch_size: int = 24
    accumulate: int = 1
    steps: int = 500_000
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warm_up: int = 5000
    decay_share: float = 0.0
    gradient_clip: float = 1.0
    condition_dropout: float = 0.1
    ema_decay: float = 0.9999
    estimate_weight: float = 0.0
    scale_batches: int = 1
    cycle_steps: int = 0
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        stack_factor(self.token_rate)
        counts = ("batch_size", "accumulate", "steps", "scale_batches", "gradient_clip")
        weights = ("learning_rate", "weight_decay", "warm_up", "estimate_weight", "cycle_steps")
        check_training(self, positive=counts, not_negative=weights)
        for name in ("condition_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must lie between 0 and 1")
        given = self.grid.channels if self.grid else 0
        if given != self.unet.extra_channels:
            raise ValueError(f"the T-UNet takes {self.unet.extra_channels} extra channels, the grid gives {given}")
        if self.estimate_weight and not self.grid:
            raise ValueError("estimate_weight needs a grid: set it to 0, or add a [grid] section")


@dataclass(frozen=True)
class FrozenParts:
    """The parts of a codec that its training does not change."""

    encoder: AudioMAE
    codebooks: Sequence[Codebook]
    vae: AutoencoderKL


@dataclass(frozen=True)
class Batch:
    """Input of the trained parts: latent (B, z, H, W), features and their centroids (B, L, F), padded (B, L)."""

    latent: Tensor
    features: Tensor
    semantic: Tensor
    padded: Tensor


class TrainedParts(nn.Module):
    """The parts of a codec that its training changes, and the scale of the latent."""

    scale_factor: Tensor

    def __init__(self, config: CodecTrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.acoustic = AcousticEncoder(config.acoustic)
        self.unet = TUNet(config.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.grid = GridCondition(config.grid) if config.grid else None
        self.register_buffer("scale_factor", torch.tensor(0.0))

    def condition(self, batch: Batch, dropped: bool) -> tuple[Tensor, Tensor]:
        """Return the context (B, L, C) and the commitment loss (); both are constant if the condition is dropped."""
        if dropped:
            width = self.config.unet.context_width - PE_WIDTH
            context = unconditional(batch.features.shape[1], width).to(batch.features.device)
            return context.expand(len(batch.features), -1, -1), torch.zeros((), device=context.device)
        found = self.acoustic(batch.features, batch.semantic, batch.padded)
        return build_condition(found.vectors, batch.semantic, batch.padded, order=self.config.order), found.commit_loss

    def denoise(self, noisy: Tensor, timestep: Tensor, context: Tensor, target: Tensor, latent: Tensor) -> Losses:
        """Return the reconstruction loss (paper Eq. 8, on v) and, with a grid, the loss of its estimate, each ()."""
        extra = self.grid(context) if self.grid is not None else None
        predicted = self.unet(noisy, timestep, context, extra)
        losses = {"reconstruction": (predicted.float() - target).square().mean()}
        if self.grid is not None and extra is not None:
            losses["estimate"] = (self.grid.estimate(extra).float() - latent).square().mean()
        return losses

    def losses(self, batch: Batch, noise: Tensor, timestep: Tensor, schedule: NoiseSchedule, dropped: bool) -> Losses:
        """Return the losses of `denoise` and the commitment loss (paper Eq. 4), each ()."""
        context, commitment = self.condition(batch, dropped)
        noisy = schedule.add_noise(batch.latent, noise, timestep)
        target = schedule.velocity(batch.latent, noise, timestep)
        return self.denoise(noisy, timestep, context, target, batch.latent) | {"commitment": commitment}

    def denoising_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `denoise` uses."""
        return [*self.unet.parameters(), *(self.grid.parameters() if self.grid is not None else ())]


class CodecTraining(MixedPrecisionTask):
    """The task of training a codec.

    The crops, noise and choices of a step depend only on the seed and the step, whatever the ranks and accumulation:
    two processes train as one process does on the doubled batch. `listen` returns further metrics of a validation.
    """

    def __init__(
        self,
        config: CodecTrainingConfig,
        frozen: FrozenParts,
        crops: CropSampler,
        held_out: NDArray[np.float32],
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        super().__init__(config.precision, device, CODEC_TRAINING, group)
        self.config, self.crops = config, crops
        self.schedule = NoiseSchedule.cosine()
        self.stack = stack_factor(config.token_rate)
        self.encoder = frozen.encoder.to(device).eval().requires_grad_(False)
        self.vae = frozen.vae.to(device).eval().requires_grad_(False)
        self.centroids = [torch.from_numpy(book.centroids).to(device) for book in frozen.codebooks]
        self._prepared = [prepare_centroids(each) for each in self.centroids]
        torch.manual_seed(config.seed)
        self.model = TrainedParts(config).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.average.acoustic.encoder.flatten_parameters()  # copies are not flat, as cuDNN needs them
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._updates, updates = torch.tensor(0), nn.Module()  # of the averages
        updates.register_buffer("count", self._updates)
        self.held_out = held_out
        self._denoise: Callable[..., tuple[Losses, Tensor]] | None = None
        self._validation: list[Batch] | None = None
        self._batches: dict[tuple[int, int], Batch] = {}
        self.listen: Callable[[int], dict[str, float]] = lambda step: {}
        self.modules = {"model": self.model, "average": self.average, "updates": updates}
        self.optimizers = {"model": self.optimizer}

    def train_step(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        if float(self.model.scale_factor) == 0:
            self._measure_scale()
        self.model.train()
        self._clear_gradients()
        parts = [self._backward(step, part) for part in range(self.config.accumulate)]
        self._descend(step)
        self._update_averages()
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def _clear_gradients(self) -> None:
        self.model.acoustic.zero_grad(set_to_none=True)
        torch._foreach_zero_(self._kept_gradients())

    def _kept_gradients(self) -> list[Tensor]:
        """Return the gradients of the denoising parameters. They keep their memory: a captured graph adds to them."""
        parameters = self.model.denoising_parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _backward(self, step: int, part: int) -> dict[str, float]:
        config, size = self.config, self.config.batch_size
        # Part p of all ranks precedes part p + 1 of any rank, as in one process with the batches of all ranks.
        first = (part * self.group.world + self.group.rank) * size
        batch = self._batch(step % config.cycle_steps if config.cycle_steps else step, first)
        noise = self._noise((step, first), batch.latent.shape)
        timestep = self._timesteps(step, first).to(self.device)
        dropped = self._draw(step, _DROPOUT) < config.condition_dropout
        with self.autocast():
            context, commitment = self.model.condition(batch, dropped)
        noisy = self.schedule.add_noise(batch.latent, noise, timestep)
        target = self.schedule.velocity(batch.latent, noise, timestep)
        scale = self.scaler.scale(torch.full((), 1 / config.accumulate, device=self.device))
        tensors = (noisy, timestep, context.detach(), target, batch.latent, scale)
        if self._denoise is None:
            self._denoise = captured_on_gpus(self._denoising_gradients, tensors)
            self._clear_gradients()  # the capture ran the function
        losses, gradient = self._denoise(*tensors)
        if context.requires_grad:
            torch.autograd.backward([context, commitment], [gradient.to(context.dtype), scale])
        return {name: loss.item() for name, loss in {**losses, "commitment": commitment}.items()}

    def _denoising_gradients(
        self, noisy: Tensor, timestep: Tensor, context: Tensor, target: Tensor, latent: Tensor, scale: Tensor
    ) -> tuple[Losses, Tensor]:
        """Add to the gradients of the denoising parameters; return the losses and the context's gradient."""
        context = context.detach().requires_grad_()
        with self.autocast():
            losses = self.model.denoise(noisy, timestep, context, target, latent)
        total = losses["reconstruction"]
        if "estimate" in losses:
            total = total + self.config.estimate_weight * losses["estimate"]
        gradient, *others = torch.autograd.grad(total * scale, [context, *self.model.denoising_parameters()])
        torch._foreach_add_(self._kept_gradients(), others)
        return {name: loss.detach() for name, loss in losses.items()}, gradient

    def _batch(self, step: int, first: int) -> Batch:
        found = self._batches.get((step, first))
        if found is None:
            crops = self.crops.draw(step, first, self.config.batch_size)
            found = self.prepare(crops, (step, first), self._draw(step, _CODEBOOK))
            if self.config.cycle_steps:
                self._batches[step, first] = found
        return found

    def _descend(self, step: int) -> None:
        config = self.config
        rate = config.learning_rate * warm_up_and_decay(step, config.steps, config.warm_up, config.decay_share)
        self.descend_scaled(self.optimizer, self.model, rate, config.gradient_clip)

    @torch.no_grad()
    def _update_averages(self) -> None:
        """Update the moving averages of all trained parameters; buffers (codes, scale) are copied."""
        self._updates += 1
        count = int(self._updates)
        decay = min(self.config.ema_decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for buffer, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(current)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """See TrainingTask."""
        if self._validation is None:
            size = self.config.batch_size
            waves = [self.held_out[i : i + size] for i in range(0, len(self.held_out), size)]
            self._validation = [self.prepare(wave, (-1 - i, 0), 0.0) for i, wave in enumerate(waves)]
        self.average.eval()
        totals: dict[str, float] = {}
        for index, batch in enumerate(self._validation):
            noise = self._noise((-1 - index, 1), batch.latent.shape)
            timestep = torch.linspace(0, len(self.schedule) - 1, len(batch.latent)).long().to(self.device)
            for name, loss in self.average.losses(batch, noise, timestep, self.schedule, dropped=False).items():
                totals[name] = totals.get(name, 0.0) + loss.item() * len(batch.latent) / len(self.held_out)
        return totals | {"codes_used": self._codes_used()} | self.listen(step)

    def _codes_used(self) -> float:
        assert self._validation is not None
        found = [self.average.acoustic(b.features, b.semantic, b.padded).indices[~b.padded] for b in self._validation]
        return float(len(torch.cat(found).unique()))

    @torch.no_grad()
    def prepare(self, waves: NDArray[np.float32], draw: tuple[int, int], codebook: float) -> Batch:
        """Return the batch of crops (B, 163,840).

        draw: step and first row, which seed the noise of the posterior. codebook: picks a codebook, in [0, 1).
        """
        audio = torch.from_numpy(waves).to(self.device)
        moments = self.vae.encode(log_mel(audio)[:, None])
        latent = sample_posterior(*moments, self._noise(draw, moments[0].shape, _LATENT))
        scale = float(self.model.scale_factor) or 1.0
        spans = nn.functional.pad(audio, (0, WINDOW_SPAN - WINDOW_SAMPLES))
        mel = filterbank(spans, torch.ones(len(audio), dtype=torch.bool, device=self.device))
        features = stack_patches(self.encoder(mel), self.stack)
        chosen = int(codebook * len(self.centroids))
        labels = nearest_centroid(features.reshape(-1, features.shape[-1]), self._prepared[chosen]).labels
        semantic = self.centroids[chosen][labels].view_as(features)
        return Batch(latent * scale, features, semantic, mark_out(mel, features.shape[1]))

    def _measure_scale(self) -> None:
        """Set the scale to 1 / standard deviation of the latents of the first batches of all ranks."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        size = self.config.batch_size
        for part in range(self.config.scale_batches):
            first = (part * self.group.world + self.group.rank) * size
            latent = self.prepare(self.crops.draw(0, first, size), (0, first), 0.0).latent.double()
            sums += torch.stack([latent.new_tensor(latent.numel()), latent.sum(), latent.square().sum()])
        self.group.sum_(sums)
        count, total, squares = sums.tolist()
        self.model.scale_factor.fill_((squares / count - (total / count) ** 2) ** -0.5)

    def _draw(self, step: int, purpose: int) -> float:
        return float(np.random.default_rng((self.config.seed, purpose, step)).random())

    def _noise(self, draw: tuple[int, int], shape: Sequence[int], purpose: int = _NOISE) -> Tensor:
        """Return standard normal noise of a shape; row i depends only on the seed and (step, first + i)."""
        step, first = draw
        noise, generator = torch.empty(shape, device=self.device), torch.Generator(self.device)
        for i, row in enumerate(noise):
            row.normal_(generator=generator.manual_seed(_seed(self.config.seed, purpose, step, first + i)))
        return noise

    def _timesteps(self, step: int, first: int) -> Tensor:
        """Return timesteps, int64 (batch,); timestep i depends only on the seed and (step, first + i)."""
        timesteps, generator = torch.empty(self.config.batch_size, dtype=torch.long), torch.Generator()
        for i, row in enumerate(timesteps):
            row.random_(
                0, len(self.schedule), generator=generator.manual_seed(_seed(self.config.seed, _TIME, step, first + i))
            )
        return timesteps


def _seed(*numbers: int) -> int:
    words = [number & 0xFFFFFFFF for number in numbers]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_codec_steps() -> list[Step]:
    """Return small training steps of LSTM, T-UNet and grid, to test low precision on a CPU."""
    acoustic = AcousticEncoder(AcousticConfig(64, 64, 2, 32, 64))
    features = torch.randn(2, PROBE_TOKENS, 2 * 64)
    unet = filled(probe_unet()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, grid, context = (
        probe_unet_inputs(),
        filled(GridCondition(PROBE_GRID)),
        torch.randn(1, PROBE_TOKENS, PROBE_CONTEXT),
    )
    return [
        *training_steps("LSTM", acoustic.encoder, lambda: acoustic.encoder(features)[0]),
        *training_steps("T-UNet", unet, lambda: unet(*inputs)),
        *training_steps("grid", grid, lambda: grid(context)),
    ]
