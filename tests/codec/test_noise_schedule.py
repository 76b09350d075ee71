"""Noise schedules and v-prediction."""

import pytest
import torch

from sctok.codec.noise_schedule import NoiseSchedule


def test_cosine_schedule_equals_the_one_in_published_checkpoints(reference):
    expected = torch.as_tensor(reference.cosine_schedule()["alphas_cumprod"], dtype=torch.float32)
    torch.testing.assert_close(NoiseSchedule.cosine().alphas_cumprod, expected, rtol=1e-6, atol=1e-9)


def test_cosine_schedule_ends_without_signal():
    assert NoiseSchedule.cosine().alphas_cumprod[-1] == 0


def test_schedule_is_read_from_a_checkpoint():
    alphas = torch.tensor([0.9, 0.5, 0.1])
    read = NoiseSchedule.from_buffers({"alphas_cumprod": alphas, "betas": torch.zeros(3)})
    assert torch.equal(read.alphas_cumprod, alphas)


def test_buffers_round_trip():
    schedule = NoiseSchedule.cosine(20)
    assert torch.equal(NoiseSchedule.from_buffers(schedule.buffers()).alphas_cumprod, schedule.alphas_cumprod)


def test_noise_and_velocity_by_hand():
    schedule = NoiseSchedule(torch.tensor([0.64, 0.0]))
    latent, noise, steps = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1])
    torch.testing.assert_close(schedule.add_noise(latent, noise, steps), torch.tensor([[2.0], [2.0]]))
    torch.testing.assert_close(schedule.velocity(latent, noise, steps), torch.tensor([[1.0], [-1.0]]))


def test_latent_and_noise_follow_from_the_velocity():
    schedule, steps = NoiseSchedule.cosine(), torch.tensor([0, 500, 999])
    latent, noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1).chunk(2)
    noisy, velocity = schedule.add_noise(latent, noise, steps), schedule.velocity(latent, noise, steps)
    signal, spread = schedule.weights(steps, noisy)
    torch.testing.assert_close(signal * noisy - spread * velocity, latent)
    torch.testing.assert_close(signal * velocity + spread * noisy, noise)


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
def test_invalid_schedules_are_rejected(alphas):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule(alphas)
