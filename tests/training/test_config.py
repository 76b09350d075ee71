"""Configuration files: the numbers of the paper and of the bundled codec, and refused mistakes."""

from pathlib import Path
from typing import Any

import pytest

from sctok.codec.models.acoustic import AcousticConfig
from sctok.codec.models.grid import GridConfig
from sctok.codec.models.tunet import TUNetConfig
from sctok.codec.models.vae import VAEConfig
from sctok.training.codec import CodecTrainingConfig
from sctok.training.config import PartsConfig, config_names, read_plan
from sctok.training.crops import CropConfig

CONTEXT = {100: 1728, 50: 3264, 25: 6336}
MINI_VAE = VAEConfig(channels=32, res_blocks=1, latent_channels=16, patch=2)


def written(folder: Path, text: str) -> Path:
    (folder / "x.toml").write_text(f"token_rate = 50\n{text}\n")
    return folder / "x.toml"


def test_the_bundled_configurations() -> None:
    assert config_names() == ["mini", "paper-100", "paper-25", "paper-50"]


@pytest.mark.parametrize("rate", CONTEXT)
def test_the_numbers_of_the_paper(rate: int) -> None:
    plan = read_plan(f"paper-{rate}")
    config = plan.complete(768, VAEConfig(), "fp32")
    assert config == CodecTrainingConfig(
        token_rate=rate,
        acoustic=AcousticConfig.published(rate),
        unet=TUNetConfig(context_width=CONTEXT[rate]),
        steps=500_000,
        batch_size=24,
        learning_rate=1e-4,
        warm_up=5000,
        condition_dropout=0.1,
        ema_decay=0.9999,
    )
    assert plan.parts == PartsConfig("base", (4096, 8192, 16384, 32768))
    assert plan.crops == CropConfig()


def test_the_numbers_of_the_bundled_codec() -> None:
    plan = read_plan("mini")
    config = plan.complete(192, MINI_VAE, "fp32")
    grid = GridConfig(640, 2, (16, 128, 8), hidden=96, features=32, blocks=3)
    assert config == CodecTrainingConfig(
        token_rate=50,
        acoustic=AcousticConfig(384, 128, 2, 64, decay=0.98, restart_threshold=0.03, init="rows", padding_counts=False),
        unet=TUNetConfig(16, 48, 32, (1, 2, 2), 1, (1, 2), 32, 640),
        grid=grid,
        batch_size=8,
        steps=3000,
        learning_rate=8e-4,
        warm_up=200,
        decay_share=0.3,
        ema_decay=0.998,
        estimate_weight=1.0,
        scale_batches=4,
        cycle_steps=560,
    )
    assert plan.crops == CropConfig(packed=0.8, level="random")


def test_given_settings_replace_those_of_the_file() -> None:
    plan = read_plan("mini", {"steps": 7, "seed": 3}, {"encoder": "x.safetensors", "codebooks": ["a.npy", "8"]})
    assert plan.complete(192, MINI_VAE, "fp32").steps == 7
    assert plan.crops.seed == 3
    assert plan.parts.codebooks == ("a.npy", "8")
    assert plan.parts.vae == "mini"


def test_a_size_that_contradicts_the_parts_is_refused(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, "[unet]\ncontext_width = 1728"))
    with pytest.raises(ValueError, match=r"\[unet\] context_width = 1728, but the other parts require 3264"):
        plan.complete(768, VAEConfig(), "fp32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "learning_rat = 1.0",
            r"unknown learning_rat; sections: acoustic, .* \(allowed: token_rate, order, batch_size",
        ),
        ("[unet]\nchannels = 3", r"\[unet\] unknown channels \(allowed: latent_channels"),
        ("[decoder]\nwidth = 3", "unknown decoder; sections"),
        ("steps = 1.5", "steps = 1.5 is not a whole number"),
        ("steps = true", "steps = True is not a whole number"),
        ("learning_rate = '1e-4'", "learning_rate = '1e-4' is not a number"),
        ("order = 'mine'", "order = 'mine' is not one of published, paper"),
        ("precision = 'fp8'", "precision 'fp8' is not one of auto"),
        ("[acoustic]\nhidden = 'wide'", r"\[acoustic\] hidden = 'wide' is not a whole number"),
        ("[acoustic]\npadding_counts = 1", r"\[acoustic\] padding_counts = 1 is not true or false"),
        ("[unet]\nmultipliers = [1, 'two']", r"\[unet\] multipliers = .* is not a list, each element a whole number"),
        ("[crops]\nsamples = 16000", r"\[crops\] samples = 16000, but .* windows of 163840"),
        ("[crops]\npacked = 2.0", "packed 2.0"),
        ("[run]\nreaders = 0", "readers 0 is not positive"),
        ("run = 3", "run = 3 is not a section"),
        ("steps = ", "is not TOML"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.toml.*{message}"):
        read_plan(written(tmp_path, text))


def test_an_invalid_token_rate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("token_rate = 30")
    with pytest.raises(ValueError, match="token rate 30"):
        read_plan(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("steps = 30")
    with pytest.raises(ValueError, match="token_rate is missing"):
        read_plan(tmp_path / "x.toml")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="paper-12 is neither a file nor one of mini, paper-100"):
        read_plan("paper-12")


@pytest.mark.parametrize("settings", [{"steps": 0}, {"learning_rate": -1.0}, {"decay_share": 2.0}])
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        read_plan("mini", settings).complete(192, MINI_VAE, "fp32")
