"""Samplers: comparison with the published DDIM and with exact solutions for Gaussian data."""

from dataclasses import replace

import pytest
import torch

from sctok.codec.models.condition import PE_WIDTH, unconditional
from sctok.codec.models.tunet import PreparedContext, repeat_to_batch
from sctok.codec.noise_schedule import NoiseSchedule
from sctok.codec.samplers import Condition, SamplerConfig, sample, visited_steps, window_generators

from .standins import (
    LATENT,
    golden_condition,
    initial_noise,
    published_schedule,
    published_unet,
    relative_error,
)

SCHEDULE = NoiseSchedule.cosine()
DEVIATION = torch.linspace(0.3, 2.0, 64).view(1, 16, 4)
SHAPE = (32, 1, 16, 4)
MEANS = torch.linspace(-1, 1, SHAPE[0]).view(-1, 1, 1, 1)
NOISE = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
ODE = SamplerConfig(eta=0, guidance=1, spacing="trailing")


class Gaussian:
    """The exact v of Gaussian latents. The context contains their means, `DEVIATION` their deviations."""

    def __init__(self, schedule: NoiseSchedule = SCHEDULE) -> None:
        self.schedule = schedule
        self.batches: list[int] = []

    def prepare(self, context):
        return PreparedContext(((context, context),))

    def __call__(self, latent, timestep, context, extra):
        self.batches.append(context.batch)
        latent, timestep = repeat_to_batch(latent, context.pairs[0][0]), repeat_to_batch(timestep, context.pairs[0][0])
        mean = context.pairs[0][0] + (0 if extra is None else extra)
        signal, spread = self.schedule.weights(timestep, latent)
        variance = signal**2 * DEVIATION**2 + spread**2
        clean = mean + signal * DEVIATION**2 / variance * (latent - signal * mean)
        return signal * (latent - signal * clean) / spread - spread * clean


def marginal(step: int, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the deviation of noisy latents at a step."""
    alpha = SCHEDULE.alphas_cumprod[step].double()
    return alpha.sqrt() * means, (alpha * DEVIATION**2 + 1 - alpha).sqrt()


def ode_error(config: SamplerConfig) -> float:
    """Return the root mean square distance of samples from the result of the exact flow for the same noise."""
    found = sample(Gaussian(), SCHEDULE, config, Condition(MEANS), shape=SHAPE, noise=NOISE)
    mean, deviation = marginal(visited_steps(config, 1000)[0], MEANS)
    last_mean, last_deviation = marginal(0, MEANS)
    return float((found - last_mean - last_deviation * (NOISE - mean) / deviation).square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("rate", [25, 50, 100])
def test_ddim_equals_the_published_one(rate, reference, golden):
    context = golden_condition(reference, rate, golden[rate])
    condition = Condition(context, unconditional(context.shape[1], context.shape[2] - PE_WIDTH))
    model, schedule = published_unet(reference, rate), published_schedule(reference)
    config = SamplerConfig(steps=4, eta=0)
    latent = sample(model, schedule, config, condition, shape=LATENT, noise=initial_noise())
    assert relative_error(latent, golden[rate]["ddim4_eta0_cfg2_latent"]) < 2e-5


@pytest.mark.parametrize("spacing", ["published", "trailing"])
def test_ddim_converges_to_the_exact_flow(spacing):
    errors = [ode_error(replace(ODE, steps=steps, spacing=spacing)) for steps in (50, 500)]
    assert errors[1] < 0.004
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize(("name", "gain"), [("dpm++", 2), ("unipc", 10)])
def test_solvers_are_closer_than_ddim_in_ten_steps(name, gain):
    assert ode_error(replace(ODE, name=name, steps=10)) < ode_error(replace(ODE, steps=10)) / gain


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_solvers_converge_to_the_exact_flow(name):
    assert ode_error(replace(ODE, name=name, steps=100)) < 0.002


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_stay_finite_if_the_last_step_has_no_signal(name, steps):
    config = SamplerConfig(name, steps, guidance=1, spacing="trailing")
    assert sample(Gaussian(), SCHEDULE, config, Condition(MEANS), shape=SHAPE).isfinite().all()


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_keeps_the_distribution(eta):
    means = torch.full((512, 1, 1, 1), 0.5)
    config = SamplerConfig(steps=200, eta=eta, guidance=1, spacing="trailing")
    found = sample(Gaussian(), SCHEDULE, config, Condition(means), shape=(512, 1, 16, 4))
    scores = (found - 0.5) / DEVIATION
    assert abs(float(scores.mean())) < 0.02
    assert abs(float(scores.std()) - 1) < 0.02


def test_fresh_noise_changes_the_result():
    with_noise = sample(Gaussian(), SCHEDULE, replace(ODE, eta=1), Condition(MEANS), shape=SHAPE, noise=NOISE)
    assert not torch.allclose(with_noise, sample(Gaussian(), SCHEDULE, ODE, Condition(MEANS), shape=SHAPE, noise=NOISE))


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_guidance_extrapolates_the_condition(name):
    """v is linear in the mean here, so that guidance with scale s equals sampling with the mean u + s (c - u)."""
    config = replace(ODE, name=name, steps=5, guidance=2.5)
    apart = torch.full((1, 1, 1, 1), -0.5)
    guided = sample(Gaussian(), SCHEDULE, config, Condition(MEANS, apart), shape=SHAPE, noise=NOISE)
    moved = Condition(apart + 2.5 * (MEANS - apart))
    plain = sample(Gaussian(), SCHEDULE, replace(config, guidance=1), moved, shape=SHAPE, noise=NOISE)
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)


def test_guidance_applies_to_the_extra_channels():
    config = replace(ODE, steps=5, guidance=2.5)
    zeros, extra = torch.zeros_like(MEANS), torch.ones(SHAPE)
    condition = Condition(zeros, zeros[:1], extra, 0 * extra[:1])
    guided = sample(Gaussian(), SCHEDULE, config, condition, shape=SHAPE, noise=NOISE)
    moved = Condition(zeros + 2.5)
    plain = sample(Gaussian(), SCHEDULE, replace(config, guidance=1), moved, shape=SHAPE, noise=NOISE)
    torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)


def test_paper_guidance_equals_published_guidance_with_one_minus_its_scale():
    assert SamplerConfig(guidance=-1.0, guidance_form="paper").scale == SamplerConfig(guidance=2.0).scale


@pytest.mark.parametrize(("form", "scale"), [("published", 1.0), ("paper", 0.0)])
def test_guidance_is_skipped_if_it_changes_nothing(form, scale):
    model = Gaussian()
    config = replace(ODE, steps=1, guidance=scale, guidance_form=form)
    sample(model, SCHEDULE, config, Condition(MEANS, MEANS), shape=SHAPE)
    assert model.batches == [SHAPE[0]]


def test_guidance_runs_as_one_batch():
    model = Gaussian()
    sample(model, SCHEDULE, replace(ODE, steps=1, guidance=2), Condition(MEANS, MEANS[:1]), shape=SHAPE)
    assert model.batches == [2 * SHAPE[0]]


def test_window_does_not_depend_on_its_batch():
    config = replace(ODE, steps=5, eta=1, seed=3)
    whole = sample(Gaussian(), SCHEDULE, config, Condition(MEANS), shape=SHAPE)
    generators = window_generators(3, [6, 5])
    part = sample(Gaussian(), SCHEDULE, config, Condition(MEANS[[6, 5]]), shape=(2, *SHAPE[1:]), generators=generators)
    torch.testing.assert_close(part, whole[[6, 5]])


def test_seeds_and_windows_have_different_noise():
    generators = [*window_generators(0, [0, 1]), *window_generators(1, [0, 1])]
    assert len({float(torch.randn((), generator=generator)) for generator in generators}) == 4


@pytest.mark.parametrize(
    ("steps", "first", "last", "count"),
    [(50, 981, 1, 50), (10, 901, 1, 10), (4, 751, 1, 4), (30, 991, 1, 31), (300, 997, 1, 333), (1000, 999, 1, 999)],
)
def test_published_steps(steps, first, last, count):
    visited = visited_steps(SamplerConfig(steps=steps), 1000)
    assert (visited[0], visited[-1], len(visited)) == (first, last, count)


@pytest.mark.parametrize("steps", range(1, 1001, 37))
def test_visited_steps_are_in_the_schedule(steps):
    visited = visited_steps(SamplerConfig(steps=steps), 1000)
    assert visited[0] <= 999
    assert visited[-1] == 1


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
@pytest.mark.parametrize("steps", [1, 3, 7, 30, 300, 999, 1000])
def test_solvers_report_the_visited_steps(name, steps):
    config, ticks = SamplerConfig(name, steps, guidance=1), []
    sample(Gaussian(), SCHEDULE, config, Condition(MEANS[:1]), shape=(1, *SHAPE[1:]), progress=ticks.append)
    assert sum(ticks) == len(visited_steps(config, 1000)) == steps


@pytest.mark.parametrize(
    "change",
    [{"name": "euler"}, {"steps": 0}, {"eta": 1.5}, {"eta": -0.1}, {"guidance": float("nan")}, {"seed": -1},
     {"guidance_form": "other"}, {"spacing": "leading"}],
)  # fmt: skip
def test_invalid_settings_are_rejected(change):
    with pytest.raises(ValueError, match=r".+"):
        replace(ODE, **change)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "50"), ("steps", 2.5), ("steps", True), ("seed", None), ("seed", 0.5), ("eta", "1"), ("guidance", None)],
)
def test_settings_of_wrong_types_are_reported(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be (an integer|a number), not {value!r}"):
        replace(ODE, **{name: value})


def test_more_steps_than_in_the_schedule_are_rejected():
    with pytest.raises(ValueError, match="1001"):
        visited_steps(SamplerConfig(steps=1001), 1000)


def test_guidance_without_an_unconditional_form_is_rejected():
    with pytest.raises(ValueError, match="unconditional"):
        sample(Gaussian(), SCHEDULE, replace(ODE, guidance=2), Condition(MEANS), shape=SHAPE)
