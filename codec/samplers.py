"""Samplers that turn noise into latents: the published DDIM, and DPM-Solver++ and UniPC, which need fewer steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from sctok.codec.models.tunet import PreparedContext, repeat_to_batch

from .noise_schedule import NoiseSchedule

Sampler = Literal["ddim", "dpm++", "unipc"]
GuidanceForm = Literal["published", "paper"]
Spacing = Literal["published", "trailing"]

SMALLEST_ALPHA = 2.0**-24  # replaces 0 in the solvers, which take the logarithm of the signal
SOLVER_ORDER = 2

Denoise = Callable[[Tensor, int], Tensor]


class Denoiser(Protocol):
    """The part of a T-UNet's interface that samplers use."""

    def prepare(self, context: Tensor) -> PreparedContext:
        """Precompute everything that depends only on the context."""

    def __call__(self, latent: Tensor, timestep: Tensor, context: PreparedContext, extra: Tensor | None) -> Tensor:
        """Predict v for each context. If there are fewer latents than contexts, the latents are repeated."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler. The defaults are those of the published code.

    eta: share of fresh noise that DDIM adds at every step, 0 to 1; the other samplers add none. guidance: scale s in
    u + s·(c - u), where u and c are v without and with the condition; 1 disables guidance. guidance_form: "published",
    or "paper" for (1-w)·c + w·u, Eq. 10 of the paper as printed, which equals the published form with s = 1 - w. The
    scale of 3 in the paper's Figure 6 is only plausible as s = 3.

    spacing: steps that DDIM visits; the other samplers are always trailing. "published" visits 1, 1 + q, 1 + 2q, …
    below the length N of the schedule, with q = N // steps. As in the published code, that is 31 visits for `steps=30`,
    and never the noisiest step. A visit of N itself, with which the published code crashes (`steps=300`), is left out.
    "trailing" visits `steps` evenly spaced steps down from N - 1 (Lin et al., 2024).
    """

    name: Sampler = "ddim"
    steps: int = 50
    eta: float = 1.0
    guidance: float = 2.0
    guidance_form: GuidanceForm = "published"
    spacing: Spacing = "published"
    seed: int = 0

    def __post_init__(self) -> None:
        for value, choices in ((self.name, Sampler), (self.guidance_form, GuidanceForm), (self.spacing, Spacing)):
            if value not in get_args(choices):
                raise ValueError(f"{value!r} is not one of {', '.join(get_args(choices))}")
        for name, whole in (("steps", True), ("seed", True), ("eta", False), ("guidance", False)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise ValueError(f"{name} must be {'an integer' if whole else 'a number'}, not {value!r:.80}")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} is below 1")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta} is not between 0 and 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance {self.guidance} is not finite")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")

    @property
    def scale(self) -> float:
        """The guidance scale s of u + s·(c - u)."""
        return self.guidance if self.guidance_form == "published" else 1 - self.guidance


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of a batch of windows.

    context is (B, L, C), extra (B, extra channels, H, W) if the T-UNet takes extra channels. Guidance needs the
    unconditional forms, with a batch of B or 1.
    """

    context: Tensor
    unconditional: Tensor | None = None
    extra: Tensor | None = None
    unconditional_extra: Tensor | None = None


def visited_steps(config: SamplerConfig, length: int) -> list[int]:
    """Return the steps of a schedule of `length` steps that sampling visits, noisiest first."""
    if config.steps > length:
        raise ValueError(f"steps {config.steps} is more than the {length} steps of the schedule")
    if config.name == "ddim" and config.spacing == "published":
        return [step + 1 for step in range(0, length, length // config.steps) if step + 1 < length][::-1]
    return [round(length - index * length / config.steps) - 1 for index in range(config.steps)]


def window_generators(seed: int, windows: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator for each window index. Its numbers depend only on the seed and the index."""
    states = (np.random.SeedSequence((seed, window)).generate_state(1, np.uint64) for window in windows)
    return [torch.Generator().manual_seed(int(state[0] >> np.uint64(1))) for state in states]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw float32 Gaussian noise (B, …), each row from its own generator."""
    return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators]).to(device)


@torch.inference_mode()
def sample(
    model: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    condition: Condition,
    *,
    shape: Sequence[int],
    generators: Sequence[torch.Generator] | None = None,
    noise: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Sample latents.

    Args:
        model: the T-UNet.
        schedule: noise schedule that the T-UNet was trained with.
        config: settings of the sampler.
        condition: condition of the B latents, on the device of the computation.
        shape: (B, z, H, W).
        generators: B generators of the initial noise and of DDIM's fresh noise; by default those of the windows 0…B-1.
        noise: initial noise; by default drawn from the generators.
        progress: called with 1 after each of the `len(visited_steps(…))` steps.

    Returns:
        Latents, float32 of the given shape.

    Raises:
        ValueError: guidance lacks an unconditional form, or the schedule has fewer steps than `config`.
    """
    generators = window_generators(config.seed, range(shape[0])) if generators is None else generators
    if len(generators) != shape[0] or len(condition.context) != shape[0]:
        raise ValueError(
            f"{shape[0]} latents need {shape[0]} generators and contexts, not {len(generators)} and "
            f"{len(condition.context)}"
        )
    device = condition.context.device
    latent = draw_noise(generators, shape, device) if noise is None else noise.to(device)
    denoise = guided(model, config.scale, condition)
    steps = visited_steps(config, len(schedule))
    if config.name != "ddim":
        return _solve(denoise, schedule, config, steps, latent, progress)
    alphas = schedule.alphas_cumprod.double().tolist()
    for step, following in zip(steps, [*steps[1:], 0], strict=True):
        velocity = denoise(latent, step)
        latent, fresh = _ddim_step(latent, velocity, alphas[step], alphas[following], config.eta)
        if fresh:
            latent = latent + fresh * draw_noise(generators, shape, device)
        if progress is not None:
            progress(1)
    return latent


def _ddim_step(latent: Tensor, velocity: Tensor, alpha: float, following: float, eta: float) -> tuple[Tensor, float]:
    """Return the latent at the following step without fresh noise, and the deviation of that noise (Song et al., 2021).

    alpha, following: ᾱ at this and at the following step. As published, the last step leads to ᾱ_0, not to 1.
    """
    signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
    clean = signal * latent - spread * velocity
    direction = signal * velocity + spread * latent
    fresh = eta * math.sqrt((1 - following) / (1 - alpha) * (1 - alpha / following))
    remaining = math.sqrt(max(1 - following - fresh**2, 0.0))
    return math.sqrt(following) * clean + remaining * direction, fresh


def guided(model: Denoiser, scale: float, condition: Condition) -> Denoise:
    """Return a function that predicts v with guidance. Both halves of the guidance run as one batch."""
    batch = len(condition.context)
    context, extra = model.prepare(condition.context), condition.extra
    if scale != 1:
        if condition.unconditional is None or (extra is not None and condition.unconditional_extra is None):
            raise ValueError(f"guidance of scale {scale} needs an unconditional condition")
        unconditional = model.prepare(condition.unconditional)
        context = (unconditional.expand(batch) if unconditional.batch < batch else unconditional).join(context)
        if extra is not None and condition.unconditional_extra is not None:
            extra = torch.cat((condition.unconditional_extra.expand_as(extra), extra))

    def denoise(latent: Tensor, step: int) -> Tensor:
        latents = latent if extra is None else repeat_to_batch(latent, extra)
        steps = torch.full((len(latents),), step, dtype=torch.int64, device=latent.device)
        velocity = model(latents, steps, context, extra).float()
        if scale == 1:
            return velocity
        without, with_condition = velocity.chunk(2)
        return torch.lerp(without, with_condition, scale)

    return denoise


def _solve(
    denoise: Denoise,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    steps: list[int],
    latent: Tensor,
    progress: Callable[[int], object] | None,
) -> Tensor:
    """Sample with DPM-Solver++ (Lu et al., 2022) or UniPC (Zhao et al., 2023), both of order 2."""
    scheduler = _solver(config.name, schedule)
    scheduler.set_timesteps(len(steps), device=latent.device)
    if scheduler.timesteps.tolist() != steps:
        raise ValueError(f"diffusers visits {scheduler.timesteps.tolist()}, not {steps}")
    for timestep, step in zip(scheduler.timesteps, steps, strict=True):
        latent = scheduler.step(denoise(latent, step), timestep, latent).prev_sample
        if progress is not None:
            progress(1)
    return latent


def _solver(name: Sampler, schedule: NoiseSchedule) -> Any:
    """Return the diffusers scheduler for a schedule. A step without signal gets `SMALLEST_ALPHA` of it."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    alphas = schedule.alphas_cumprod.double().clamp(min=SMALLEST_ALPHA)
    betas = 1 - alphas / torch.cat((alphas.new_ones(1), alphas[:-1]))
    scheduler = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    return scheduler(
        num_train_timesteps=len(schedule),
        trained_betas=betas.numpy(),
        prediction_type="v_prediction",
        solver_order=SOLVER_ORDER,
        timestep_spacing="trailing",
    )
