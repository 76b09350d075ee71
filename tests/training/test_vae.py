"""Training a VAE: its loss, its validation, and its learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sctok.audio.mel import log_mel
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.storage.parts import module_hash
from sctok.training.clips import open_collection
from sctok.training.crops import CropConfig, CropSampler
from sctok.training.vae import MINI, VAETraining, VAETrainingConfig

from .trainings import CPU, VAE, make_task, write_audio


def tiny_task(folder: Path, initial: AutoencoderKL | None = None, **changes: Any) -> VAETraining:
    clips, crops = open_collection(write_audio(folder), folder).train, CropConfig(samples=5_120)
    config = VAETrainingConfig(VAE, **{"batch_size": 2, "steps": 20, "warm_up": 2, **changes})
    held_out = CropSampler(clips, crops).draw(10**6, 0, 3)
    return VAETraining(config, CropSampler(clips, crops), held_out, CPU, initial)


def test_it_learns(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, learning_rate=5e-3, kl_weight=1e-4)
    before = task.validate(0)
    for step in range(20):
        task.train_step(step)
    assert task.validate(20)["mel_error"] < 0.8 * before["mel_error"]


def test_the_divergence_equals_that_of_normal_distributions(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    waves = torch.from_numpy(task.held_out)
    with torch.no_grad():
        mean, log_variance = task.model.encode(log_mel(waves)[:, None])
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    assert task.validate(0)["kl"] == pytest.approx(float(expected), rel=1e-4)


def test_validation_is_reproducible(tmp_path: Path) -> None:
    task = make_task("vae", write_audio(tmp_path), tmp_path)
    assert task.validate(0) == task.validate(0)


def test_validation_weighs_every_crop_equally(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    whole = task.validate(0)["kl"]
    parts = []
    for crop in task.held_out:
        task.held_out = crop[None]
        parts.append(task.validate(0)["kl"])
        task.held_out = tiny_task(tmp_path).held_out
    assert whole == pytest.approx(np.mean(parts), rel=1e-5)


def test_the_bundled_sizes() -> None:
    assert MINI.latent_shape(1024) == (16, 128, 8)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"steps": 0}, {"kl_weight": -1.0}, {"decay_share": 2.0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        VAETrainingConfig(**settings)


def test_training_only_the_decoder_keeps_the_latents(tmp_path: Path) -> None:
    first = AutoencoderKL(VAE)
    task = tiny_task(tmp_path, first, decoder_of=module_hash(first), learning_rate=1e-2)
    task.train_step(0)
    moved = {
        name.split(".")[0]
        for name, value in task.model.state_dict().items()
        if not torch.equal(value, first.state_dict()[name])
    }
    assert moved == {"decoder", "post_quant_conv"}


def test_the_decoder_of_another_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not of this one"):
        tiny_task(tmp_path, AutoencoderKL(VAE), decoder_of="0" * 16)
