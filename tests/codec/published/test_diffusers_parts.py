"""Loading the VAE and the vocoder of AudioLDM 2 from diffusers folders."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.published.diffusers_parts import load_diffusers_vae, load_diffusers_vocoder

VOCODER_FILE = "model.safetensors"
VAE_FILE = "diffusion_pytorch_model.safetensors"
SMALL_VAE = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
AUDIOLDM2_VAE = {**SMALL_VAE, "block_out_channels": (128, 256, 512), "layers_per_block": 2, "latent_channels": 8}

SMALL_VOCODER = {
    "architectures": ["SpeechT5HifiGan"],
    "model_in_dim": 64,
    "sampling_rate": 16000,
    "upsample_initial_channel": 32,
    "upsample_rates": [5, 4, 4, 2],
    "upsample_kernel_sizes": [16, 8, 8, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
}


def foreign_vae(sizes):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(in_channels=1, out_channels=1, scaling_factor=0.41, **sizes).eval()
    for name, value in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(value, mean=float("norm" in name and "weight" in name), std=0.2)
    return model


@pytest.fixture(scope="module")
def saved_vae(tmp_path_factory):
    """The folder of a pipeline with a small VAE of diffusers."""
    folder = tmp_path_factory.mktemp("pipeline")
    foreign_vae(SMALL_VAE).save_pretrained(folder / "vae")
    return folder


def change_settings(folder, **changes):
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: v for name, v in settings.items() if v != "absent"}))


@pytest.fixture
def vae_folder(saved_vae, tmp_path):
    """A copy of the folder of the small VAE, which tests can damage."""
    folder = tmp_path / "vae"
    folder.mkdir()
    for path in (saved_vae / "vae").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def assert_same(model, foreign, frames):
    mel = torch.randn(2, 1, frames, 64)
    with torch.no_grad():
        mean, log_variance = model.encode(mel)
        expected = foreign.encode(mel).latent_dist
        torch.testing.assert_close(mean, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_variance, expected.logvar, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(mean), foreign.decode(mean).sample, atol=1e-5, rtol=1e-5)


def test_vae_equals_that_of_diffusers(saved_vae):
    model, scale = load_diffusers_vae(saved_vae)
    assert scale == 0.41
    assert_same(model, foreign_vae(SMALL_VAE), 32)


@pytest.mark.slow
def test_vae_of_audioldm2(tmp_path):
    foreign = foreign_vae({**AUDIOLDM2_VAE, "norm_num_groups": 32})
    foreign.save_pretrained(tmp_path)
    assert_same(load_diffusers_vae(tmp_path)[0], foreign, 64)


def test_folder_of_the_vae_itself_and_older_files(vae_folder):
    tensors = load_file(vae_folder / VAE_FILE)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {
        name.replace(part := next((p for p in old if p in name), "-"), old.get(part, "-")): v
        for name, v in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    torch.save(renamed, vae_folder / "diffusion_pytorch_model.bin")
    (vae_folder / VAE_FILE).unlink()
    assert_same(load_diffusers_vae(vae_folder)[0], foreign_vae(SMALL_VAE), 16)


def test_half_precision_vae_is_read_as_float32(vae_folder):
    save_file({name: value.half() for name, value in load_file(vae_folder / VAE_FILE).items()}, vae_folder / VAE_FILE)
    assert {value.dtype for value in load_diffusers_vae(vae_folder)[0].state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("in_channels", 3),
        ("out_channels", "absent"),
        ("act_fn", "gelu"),
        ("up_block_types", ["UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"]),
        ("block_out_channels", [16, 24]),
        ("block_out_channels", 16),
        ("latent_channels", 0),
        ("norm_num_groups", 8),
        ("shift_factor", 0.1),
        ("use_quant_conv", False),
        ("mid_block_add_attention", False),
        ("scaling_factor", "absent"),
        ("scaling_factor", 0),
    ],
)
def test_unsupported_setting_of_a_vae_is_reported(name, value, vae_folder):
    change_settings(vae_folder, **{name: value})
    with pytest.raises(ValueError, match=rf"config\.json.*{name}"):
        load_diffusers_vae(vae_folder)


def test_all_unsupported_settings_are_reported(vae_folder):
    change_settings(vae_folder, in_channels=3, act_fn="gelu")
    with pytest.raises(ValueError, match=r"in_channels 3.*act_fn 'gelu'"):
        load_diffusers_vae(vae_folder)


def test_all_mismatched_tensors_of_a_vae_are_listed(vae_folder):
    tensors = load_file(vae_folder / VAE_FILE)
    del tensors["encoder.mid_block.attentions.0.to_q.bias"]
    tensors["decoder.up_blocks.0.resnets.0.conv1.weight"] = torch.zeros(3)
    tensors["decoder.surprise"] = torch.zeros(1)
    save_file(tensors, vae_folder / VAE_FILE)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_diffusers_vae(vae_folder)
    for part in (
        "encoder.mid_block.attentions.0.to_q.bias is missing",
        "decoder.up_blocks.0.resnets.0.conv1.weight has shape (3,) instead of (32, 32, 3, 3)",
        "decoder.surprise is unknown",
    ):
        assert part in str(caught.value)


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(Malicious(), 2), pickle.dumps([1], 2)])
def test_invalid_or_malicious_weights_are_rejected(content, vae_folder):
    (vae_folder / VAE_FILE).unlink()
    (vae_folder / "diffusion_pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin"):
        load_diffusers_vae(vae_folder)


def test_truncated_safetensors_are_rejected(vae_folder):
    data = (vae_folder / VAE_FILE).read_bytes()
    (vae_folder / VAE_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors"):
        load_diffusers_vae(vae_folder)


def test_missing_weights_are_reported_with_possible_names(vae_folder):
    (vae_folder / VAE_FILE).unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors, diffusion_pytorch_model\.bin"):
        load_diffusers_vae(vae_folder)


def test_other_folders_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"vae/config\.json"):
        load_diffusers_vae(tmp_path)


def test_unknown_source_is_rejected():
    with pytest.raises(ValueError, match="neither a folder nor a hub repository"):
        load_diffusers_vae("no/such/folder")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty, offline Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def put_in_cache(cache, repository, folder):
    revision = "0123456789abcdef0123456789abcdef01234567"
    stored = cache / f"models--{repository.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(revision)
    (stored / "snapshots").mkdir()
    (stored / "snapshots" / revision).symlink_to(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_hub_name_is_read_from_the_cache(kind, vae_folder, hub_cache):
    if kind == "bin":
        torch.save(load_file(vae_folder / VAE_FILE), vae_folder / "diffusion_pytorch_model.bin")
        (vae_folder / VAE_FILE).unlink()
    put_in_cache(hub_cache, "cvssp/audioldm2", vae_folder.parent)
    assert load_diffusers_vae("cvssp/audioldm2")[1] == 0.41


def test_without_network_the_message_says_what_to_do(hub_cache):
    with pytest.raises(ValueError, match=r"cannot fetch vae/.*give the folder") as caught:
        load_diffusers_vae("cvssp/audioldm2")
    assert "\n" not in str(caught.value)


def our_vocoder():
    torch.manual_seed(0)
    return HifiGan(HifiGanConfig(32, (5, 4, 4, 2), (16, 8, 8, 4), (3, 5), (1, 3))).eval()


def save_vocoder(folder, tensors):
    folder.mkdir(exist_ok=True)
    renamed = {name.replace("ups.", "upsampler."): value for name, value in tensors.items()}
    save_file(renamed | {"mean": torch.zeros(64), "scale": torch.ones(64)}, folder / VOCODER_FILE)
    (folder / "config.json").write_text(json.dumps(SMALL_VOCODER))


@pytest.fixture
def vocoder_folder(tmp_path):
    """The folder of a small vocoder of transformers in a pipeline."""
    save_vocoder(tmp_path / "vocoder", our_vocoder().state_dict())
    return tmp_path / "vocoder"


def assert_vocoder(loaded):
    mel = torch.randn(2, 12, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(mel), our_vocoder()(mel), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("of_pipeline", [True, False])
def test_vocoder_equals_ours_with_the_same_weights(of_pipeline, vocoder_folder):
    assert_vocoder(load_diffusers_vocoder(vocoder_folder.parent if of_pipeline else vocoder_folder))


@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norms_are_folded(norm, tmp_path):
    model = our_vocoder()
    for module in list(model.modules()):
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            norm(module)
    save_vocoder(tmp_path, model.state_dict())
    assert "conv_pre.weight" not in load_file(tmp_path / VOCODER_FILE)
    assert_vocoder(load_diffusers_vocoder(tmp_path))


def test_mean_and_scale_are_ignored_without_normalization(vocoder_folder):
    tensors = load_file(vocoder_folder / VOCODER_FILE)
    save_file(tensors | {"mean": torch.full((64,), 7.0)}, vocoder_folder / VOCODER_FILE)
    assert_vocoder(load_diffusers_vocoder(vocoder_folder))


def test_identity_normalization_is_accepted(vocoder_folder):
    change_settings(vocoder_folder, normalize_before=True)
    assert_vocoder(load_diffusers_vocoder(vocoder_folder))


def test_normalization_is_rejected(vocoder_folder):
    change_settings(vocoder_folder, normalize_before=True)
    tensors = load_file(vocoder_folder / VOCODER_FILE)
    save_file(tensors | {"scale": torch.full((64,), 2.0)}, vocoder_folder / VOCODER_FILE)
    with pytest.raises(ValueError, match=r"config\.json.*normalize_before"):
        load_diffusers_vocoder(vocoder_folder)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("architectures", ["UnivNetModel"], "architectures"),
        ("model_in_dim", "absent", "model_in_dim 80"),
        ("sampling_rate", 24000, "sampling_rate"),
        ("leaky_relu_slope", 0.2, "leaky_relu_slope"),
        ("upsample_initial_channel", 0, "upsample_initial_channel"),
        ("upsample_rates", [5, 4, 4, 4], "upsample_rates"),
        ("upsample_rates", 160, "upsample_rates"),
        ("upsample_kernel_sizes", [16, 8, 8], "kernels"),
        ("resblock_dilation_sizes", [[1, 3], [1, 5]], "resblock_dilation_sizes"),
        ("resblock_dilation_sizes", [[1, 3]], "resblock_dilation_sizes"),
        ("resblock_dilation_sizes", None, "resblock_dilation_sizes"),
    ],
)
def test_unsupported_setting_of_a_vocoder_is_reported(name, value, match, vocoder_folder):
    change_settings(vocoder_folder, **{name: value})
    with pytest.raises(ValueError, match=rf"config\.json.*{match}"):
        load_diffusers_vocoder(vocoder_folder)


def test_all_mismatched_tensors_of_a_vocoder_are_listed(vocoder_folder):
    tensors = load_file(vocoder_folder / VOCODER_FILE)
    tensors["upsampler.9.bias"] = tensors.pop("upsampler.0.bias")
    tensors["conv_post.weight"] = torch.zeros(2)
    save_file(tensors, vocoder_folder / VOCODER_FILE)
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_diffusers_vocoder(vocoder_folder)
    for part in ("upsampler.0.bias is missing", "conv_post.weight has shape (2,)", "upsampler.9.bias is unknown"):
        assert part in str(caught.value)


def test_vocoder_of_a_hub_name_is_read_from_the_cache(vocoder_folder, hub_cache):
    put_in_cache(hub_cache, "cvssp/audioldm2", vocoder_folder.parent)
    assert_vocoder(load_diffusers_vocoder("cvssp/audioldm2"))


@pytest.mark.parametrize("source", ["/nope", "./nope", "../nope"])
def test_missing_path_is_not_looked_up_on_the_hub(source: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a hub repository"):
        load_diffusers_vae(source)
