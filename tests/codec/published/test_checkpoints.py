"""Published checkpoints: where their tensors go, and which files are rejected."""

import os

import numpy as np
import pytest
import torch

from sctok.codec.published.checkpoints import read_published
from sctok.codec.published.files import find_published

from .standins import SMALL_LAYOUTS, small_checkpoints, write_checkpoints


@pytest.fixture(autouse=True)
def small_layouts(monkeypatch):
    """Replace the published sizes by small ones."""
    monkeypatch.setattr("sctok.codec.published.checkpoints.LAYOUTS", SMALL_LAYOUTS)


@pytest.fixture
def tensors():
    """The tensors of encoder.ckpt and decoder.ckpt."""
    return small_checkpoints()


@pytest.fixture
def read(tmp_path, tensors):
    """Write the tensors and read them as a codec."""

    def read_again(**options):
        folder = write_checkpoints(tmp_path / "published", *tensors)
        return read_published(find_published(str(folder)), **options)

    return read_again


def test_every_tensor_is_loaded(read, tensors):
    encoder, decoder = tensors
    parts = read()
    places = [
        (dict(parts.tokens.encoder.tensors), encoder, "audiomae.model."),
        (parts.tokens.acoustic.state_dict(), encoder, ""),
        (parts.decoder.unet.state_dict(), decoder, "model.diffusion_model."),
        (parts.decoder.vae.state_dict(), decoder, "first_stage_model."),
        (parts.decoder.vocoder.state_dict(), decoder, "first_stage_model.vocoder."),
    ]
    for ours, theirs, prefix in places:
        assert ours
        assert all(torch.equal(value, theirs[prefix + name]) for name, value in ours.items())


def test_schedule_and_scale_are_read_from_the_checkpoint(read, tensors):
    parts = read()
    assert torch.equal(parts.decoder.schedule.alphas_cumprod, tensors[1]["alphas_cumprod"])
    assert parts.decoder.scale_factor == 0.75


def test_token_rate_follows_from_the_shapes(read):
    info = read().info
    assert (info.name, info.token_rate, info.stack_factor) == ("semanticodec-50", 50, 2)
    assert read().tokens.codebooks[0].centroids.shape == (40, 64)


def test_features_use_the_published_steps(read):
    assert read().tokens.encoder.published_steps


def test_unexpected_rate_is_rejected(read):
    with pytest.raises(ValueError, match=r"encoder.ckpt has 50 tokens per second, not 100"):
        read(rate=100)


def test_averaged_weights_can_be_selected(read, tensors):
    weight = tensors[1]["model.diffusion_model.out.2.bias"]
    assert torch.equal(read().decoder.unet.out[2].bias, weight)
    assert torch.equal(read(average=True).decoder.unet.out[2].bias, weight + 1)


def test_all_mismatches_are_in_one_error(read, tensors):
    encoder, decoder = tensors
    del encoder["encoder.weight_ih_l0"]
    encoder["surplus"] = torch.zeros(1)
    decoder["model.diffusion_model.out.2.bias"] = torch.zeros(9)
    decoder["first_stage_model.more"] = torch.zeros(1)
    del decoder["scale_factor"]
    with pytest.raises(ValueError, match="published layout") as caught:
        read()
    for phrase in (
        "encoder.weight_ih_l0 is missing",
        "surplus is unknown",
        "model.diffusion_model.out.2.bias has shape (9,) instead of (4,)",
        "first_stage_model.more is unknown",
        "scale_factor is missing",
    ):
        assert phrase in str(caught.value)


def test_missing_average_is_an_error_only_if_it_is_selected(read, tensors):
    del tensors[1]["model_ema.diffusion_modelout2bias"]
    read()
    with pytest.raises(ValueError, match=r"model.diffusion_model.out.2.bias is missing"):
        read(average=True)


def test_checkpoints_of_a_training_can_be_read(read, tensors):
    encoder, decoder = tensors
    nested = {f"cond_stage_models.0.{name}": value for name, value in encoder.items()}
    unrelated = {"cond_stage_models.1.x": torch.zeros(1), "clap.model.y": torch.zeros(1), "loss.logvar": torch.zeros(1)}
    expected = read().info
    encoder.clear()
    encoder |= {"state_dict": nested | {"cond_stage_models.0.pos_embed.pe": torch.zeros(1)}, "epoch": 3}
    decoder |= {"state_dict": dict(decoder) | unrelated, "global_step": 4}
    assert read().info == expected


def test_older_quantizers_store_a_flag_as_a_vector(read, tensors):
    tensors[0]["quantizer._codebook.initted"] = torch.ones(1)
    assert read().tokens.acoustic.quantizer.codes.shape == (24, 64)


def test_codebook_of_another_width_is_rejected(read, tmp_path):
    read()
    np.save(tmp_path / "wide.npy", np.zeros((5, 96), np.float32))
    files = find_published(str(tmp_path / "published"), codebooks=tmp_path / "wide.npy")
    with pytest.raises(ValueError, match=r"wide.npy has vectors of 96 values.* needs 64"):
        read_published(files)


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("name", ["encoder.ckpt", "decoder.ckpt"])
def test_pickle_with_more_than_tensors_is_rejected(name, read, tmp_path):
    read()
    torch.save({"x": Malicious()}, tmp_path / "published" / name)
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint that loads without running code"):
        read_published(find_published(str(tmp_path / "published")))


UNET_TENSOR = "model.diffusion_model.time_embed.0.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (UNET_TENSOR, lambda t: t * float("nan"), f"{UNET_TENSOR} is not finite"),
        (UNET_TENSOR, lambda t: t.to_sparse(), f"{UNET_TENSOR} is not a plain array of numbers"),
        (UNET_TENSOR, lambda t: t.to(torch.complex64), f"{UNET_TENSOR} is not a plain array of numbers"),
        (UNET_TENSOR, lambda t: t.to("meta"), f"{UNET_TENSOR} is not a plain array of numbers"),
        ("scale_factor", lambda t: t.expand(3), "scale_factor is not a finite number"),
        ("scale_factor", lambda t: t.to_sparse(), "scale_factor is not a finite number"),
        ("alphas_cumprod", lambda t: t * 0, "alphas_cumprod must decrease"),
    ],
)
def test_invalid_tensors_are_reported(read, tensors, name, change, message):
    tensors[1][name] = change(tensors[1][name])
    with pytest.raises(ValueError, match=f"published does not fit the published layout: {message}"):
        read()


def test_flag_of_another_shape_is_reported(read, tensors):
    tensors[0]["quantizer._codebook.initted"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"initted has shape \(5,\) instead of \(\)"):
        read()


def test_entries_without_a_name_are_ignored(read, tensors):
    for each in tensors:
        each[1] = torch.zeros(2)
    assert read().info.token_rate == 50


def test_two_codebooks_of_one_size_are_rejected(tmp_path, tensors):
    folder = write_checkpoints(tmp_path / "published", *tensors)
    for share in (1, 2):
        (folder / f"codebook_{share}_0.npy").write_bytes((folder / "codebook.npy").read_bytes())
    with pytest.raises(ValueError, match=r"has codebooks of 40, 40 rows.* one with --codebooks"):
        read_published(find_published(str(folder)))


def test_message_does_not_suggest_to_run_code(tmp_path, tensors):
    folder = write_checkpoints(tmp_path / "published", *tensors)
    torch.save({"x": os.system}, folder / "encoder.ckpt")
    with pytest.raises(ValueError, match=r"without running code \(Trying to load unsupported GLOBAL \w+.system"):
        read_published(find_published(str(folder)))
