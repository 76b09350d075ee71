"""From noise to latents: DDIM as published, and two solvers that need fewer steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from sctok.codec.models.tunet import PreparedContext, as_many

from .noise_schedule import NoiseSchedule

Sampler = Literal["ddim", "dpm++", "unipc"]
GuidanceForm = Literal["published", "paper"]
Spacing = Literal["published", "trailing"]

SMALLEST_ALPHA = 2.0**-24  # stands for no signal at all in solvers that work with the logarithm of the signal
SOLVER_ORDER = 2

Denoise = Callable[[Tensor, int], Tensor]


class Denoiser(Protocol):
    """What a sampler needs of a T-UNet."""

    def prepare(self, context: Tensor) -> PreparedContext:
        """Return what can be computed once per context."""

    def __call__(self, latent: Tensor, timestep: Tensor, context: PreparedContext, extra: Tensor | None) -> Tensor:
        """Predict v for as many contexts as there are, with the latents repeated if they are fewer."""


@dataclass(frozen=True)
class SamplerConfig:
    """How latents are drawn; the defaults are those of the published code.

    `eta` is DDIM's share of fresh noise at every step, 0…1; the other two samplers add none. `guidance` is s in
    u + s·(c - u), where u and c are v without and with the condition; 1 leaves guidance out. With the form "paper" it
    is w in (1-w)·c + w·u, the paper's Eq. 10 as printed, which is the same with s = 1 - w: what the paper plots as a
    scale of 3 (Figure 6) makes sense as s = 3 alone, not as w = 3.

    DDIM's `spacing` "published" visits 1, 1 + q, 1 + 2q … below the schedule's length N for q = N // steps, which are
    the steps of the published code (31 for `steps=30`, and never the noisiest); where that would visit N itself
    (`steps=300`), which crashes there, the visit is left out. "trailing" visits `steps` evenly spaced steps down from
    N - 1 (Lin et al., 2024), as the other two samplers always do.
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
                raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r:.80}")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} is below 1")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta} is not between 0 and 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance {self.guidance} is not a number")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")

    @property
    def scale(self) -> float:
        """The guidance scale s of u + s·(c - u)."""
        return self.guidance if self.guidance_form == "published" else 1 - self.guidance


@dataclass(frozen=True, eq=False)
class Condition:
    """What a batch of windows is decoded from.

    `context` is (B, L, C), `extra` (B, extra channels, H, W) where the T-UNet takes one. The unconditional forms, of
    the same shapes or with a batch of 1, are needed for guidance.
    """

    context: Tensor
    unconditional: Tensor | None = None
    extra: Tensor | None = None
    unconditional_extra: Tensor | None = None


def visited_steps(config: SamplerConfig, length: int) -> list[int]:
    """Return the steps that sampling visits in a schedule of `length` steps, noisiest first."""
    if config.steps > length:
        raise ValueError(f"steps {config.steps} is above the {length} of the schedule")
    if config.name == "ddim" and config.spacing == "published":
        return [step + 1 for step in range(0, length, length // config.steps) if step + 1 < length][::-1]
    return [round(length - index * length / config.steps) - 1 for index in range(config.steps)]


def window_generators(seed: int, windows: Sequence[int]) -> list[torch.Generator]:
    """Return a CPU generator for each window index; its numbers depend on `seed` and that index alone."""
    states = (np.random.SeedSequence((seed, window)).generate_state(1, np.uint64) for window in windows)
    return [torch.Generator().manual_seed(int(state[0] >> np.uint64(1))) for state in states]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return float32 Gaussian noise (B, …), each row from its own generator."""
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
    """Draw latents float32 `shape` = (B, z, H, W) on the condition's device.

    `generators` (default: of the windows 0…B-1) give the initial noise, unless `noise` is given, and DDIM's fresh
    noise. `progress` is called with 1 after each of `len(visited_steps(…))` steps. Raises ValueError where guidance
    lacks an unconditional form or the schedule has fewer steps than asked for.
    """
    generators = window_generators(config.seed, range(shape[0])) if generators is None else generators
    if len(generators) != shape[0] or len(condition.context) != shape[0]:
        raise ValueError(
            f"{shape[0]} latents need as many generators and contexts, not {len(generators)} and "
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
    """Return the latent at the following step but for its fresh noise, and the deviation of that (Song et al., 2021).

    `alpha` and `following` are ᾱ at both steps; the last one leads to ᾱ_0, not to 1, as published.
    """
    signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
    clean = signal * latent - spread * velocity
    direction = signal * velocity + spread * latent
    fresh = eta * math.sqrt((1 - following) / (1 - alpha) * (1 - alpha / following))
    kept = math.sqrt(max(1 - following - fresh**2, 0.0))
    return math.sqrt(following) * clean + kept * direction, fresh


def guided(model: Denoiser, scale: float, condition: Condition) -> Denoise:
    """Return v under guidance as a function of latents and step; both halves run as one batch."""
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
        latents = latent if extra is None else as_many(latent, extra)
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
    """Return the latent at the end of DPM-Solver++ (Lu et al., 2022) or UniPC (Zhao et al., 2023), both of order 2."""
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
    """Return the diffusers scheduler for a schedule; a last step without signal keeps a trace of it."""
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
