"""Noise schedules and v-prediction."""

import numpy as np
import pytest
import torch

from sctok.codec.noise_schedule import NoiseSchedule


def test_cosine_is_that_of_the_stand_in_checkpoints(reference):
    expected = torch.as_tensor(reference.cosine_schedule()["alphas_cumprod"], dtype=torch.float32)
    torch.testing.assert_close(NoiseSchedule.cosine().alphas_cumprod, expected, rtol=1e-6, atol=1e-9)


def test_cosine_ends_without_signal():
    assert NoiseSchedule.cosine().alphas_cumprod[-1] == 0


def test_clipped_cosine_keeps_a_trace_of_signal():
    assert 0 < NoiseSchedule.cosine(zero_terminal=False).alphas_cumprod[-1] < 1e-8


def test_linear_by_hand():
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 3) ** 2
    expected = [1 - betas[0], (1 - betas[0]) * (1 - betas[1]), (1 - betas[0]) * (1 - betas[1]) * (1 - betas[2])]
    np.testing.assert_allclose(NoiseSchedule.linear(3).alphas_cumprod, expected, rtol=1e-6)


def test_a_checkpoint_decides():
    alphas = torch.tensor([0.9, 0.5, 0.1])
    read = NoiseSchedule.from_buffers({"alphas_cumprod": alphas, "betas": torch.zeros(3)})
    assert torch.equal(read.alphas_cumprod, alphas)


def test_buffers_are_read_back():
    schedule = NoiseSchedule.cosine(20)
    assert torch.equal(NoiseSchedule.from_buffers(schedule.buffers()).alphas_cumprod, schedule.alphas_cumprod)


def test_noise_and_velocity_by_hand():
    schedule = NoiseSchedule(torch.tensor([0.64, 0.0]))
    latent, noise, steps = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(schedule.add_noise(latent, noise, steps), torch.tensor([[2.0], [2.0]]))
    torch.testing.assert_close(schedule.velocity(latent, noise, steps), torch.tensor([[1.0], [-1.0]]))


def test_velocity_splits_into_latent_and_noise():
    schedule, steps = NoiseSchedule.cosine(), torch.tensor([0, 500, 999])
    latent, noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1).chunk(2)
    noisy, velocity = schedule.add_noise(latent, noise, steps), schedule.velocity(latent, noise, steps)
    torch.testing.assert_close(schedule.split(noisy, velocity, steps), (latent, noise))


@pytest.mark.parametrize(
    "alphas",
    [
        torch.tensor([0.5, 0.9]),
        torch.tensor([1.5, 0.9]),
        torch.tensor([0.9, torch.nan]),
        torch.tensor([0.9, 0.5], dtype=torch.float64),
        torch.tensor([0.9]),
    ],
)
def test_bad_schedules_are_refused(alphas):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule(alphas)
