"""Training a vocoder: on distances first, with discriminators later."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sctok.audio.mel import log_mel
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import VocoderConfig
from sctok.codec.storage.parts import module_hash
from sctok.training.clips import open_collection
from sctok.training.crops import CropConfig, CropSampler
from sctok.training.optimization import descend
from sctok.training.vocoder import SpectrogramDiscriminator, VocoderTraining, VocoderTrainingConfig

from .trainings import CPU, VAE, write_audio


def tiny_task(folder: Path, **changes: Any) -> VocoderTraining:
    clips, crops = open_collection(write_audio(folder), folder).train, CropConfig(samples=3200)
    settings = {"batch_size": 2, "steps": 30, "warm_up": 2, "adversarial_after": 100, **changes}
    held_out = CropSampler(clips, crops).draw(10**6, 0, 3)
    return VocoderTraining(
        VocoderTrainingConfig(VocoderConfig(16, 1, 2), **settings), CropSampler(clips, crops), held_out, CPU
    )


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_it_learns(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, learning_rate=5e-3)
    before = task.validate(0)
    for step in range(30):
        task.train_step(step)
    after = task.validate(30)
    assert after["mel_distance"] < 0.8 * before["mel_distance"]
    assert after == task.validate(30)


def test_discriminators_begin_after_their_step(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, adversarial_after=2)
    before = weights(task.discriminators)
    losses = [task.train_step(step)["discriminators"] for step in range(2)]
    assert losses == [0.0, 0.0]
    assert all(map(torch.equal, before, weights(task.discriminators)))
    assert task.train_step(2)["discriminators"] > 0
    assert not any(map(torch.equal, before, weights(task.discriminators)))


def test_the_vocoder_step_does_not_change_the_discriminators(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, adversarial_after=0)
    task.discriminator_optimizer.step = lambda *_: None  # type: ignore[assignment, method-assign]
    before = weights(task.discriminators), weights(task.model)
    task.train_step(0)
    assert all(map(torch.equal, before[0], weights(task.discriminators)))
    assert not all(map(torch.equal, before[1], weights(task.model)))


def test_a_vae_encodes_and_decodes_half_of_the_spectrograms(tmp_path: Path) -> None:
    vae = AutoencoderKL(VAE)
    clips, crops = open_collection(write_audio(tmp_path), tmp_path).train, CropConfig(samples=5120)
    config = VocoderTrainingConfig(VocoderConfig(16, 1, 2), batch_size=2, through=module_hash(vae))
    with pytest.raises(ValueError, match=r"through is .* in the configuration, not the given model"):
        VocoderTraining(config, CropSampler(clips, crops), np.zeros((1, 5120), np.float32), CPU)
    task = VocoderTraining(config, CropSampler(clips, crops), np.zeros((1, 5120), np.float32), CPU, through=vae)
    real = torch.randn(2, 5120)
    given, mel = task._input_mel(real), log_mel(real)
    assert torch.equal(given[1], mel[1])
    assert torch.equal(given[:1], vae.decode(vae.encode(mel[:1, None])[0])[:, 0])
    before = [value.clone() for value in vae.state_dict().values()]
    assert task.train_step(0)["mel_distance"] > 0
    assert all(map(torch.equal, before, vae.state_dict().values()))


def test_discriminators_learn_to_tell_noise_from_tones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = tiny_task(tmp_path)
    time = torch.arange(3200) / 16_000
    real = torch.sin(2 * torch.pi * torch.tensor([[200.0], [900.0]]) * time)
    fake = 0.3 * torch.randn(2, 3200)
    losses = []
    for _ in range(15):
        loss = task._discriminator_loss(real, fake)
        gradients = torch.autograd.grad(loss, list(task.discriminators.parameters()))
        descend(task.discriminator_optimizer, gradients, 2e-3, 10.0)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_silence_has_finite_gradients() -> None:
    waves = torch.zeros(1, 1024, requires_grad=True)
    *features, score = SpectrogramDiscriminator(256)(waves)
    assert len(features) == 4
    assert score.shape[:2] == (1, 1)
    score.sum().backward()
    assert waves.grad is not None
    assert bool(waves.grad.isfinite().all())


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"adversarial_after": -1}, {"decay_share": -0.1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        VocoderTrainingConfig(**settings)
