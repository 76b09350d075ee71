import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from sctok.features.checkpoints import HUB_MODELS, load_weights, save_weights
from sctok.features.encoder import EncoderConfig
from sctok.formats.describe import describe_file


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An offline Hugging Face cache in the folder layout that the hub's client writes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def put_in_cache(cache, repository, filename, write):
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    write(folder / "snapshots" / revision / filename)


def timm_tensors(width=64):
    torch.manual_seed(0)
    from sctok.features.encoder import AudioMAE

    return {key: value.clone() for key, value in AudioMAE(EncoderConfig(width, 3, 1)).state_dict().items()}


def test_own_format_round_trip(small_weights, tmp_path):
    path = tmp_path / "encoder-small.safetensors"
    save_weights(path, small_weights.build(), {"note": "x"})
    loaded = load_weights(path)
    assert loaded.config == small_weights.config
    assert loaded.metadata["note"] == "x"
    assert describe_file(path)["hash"] == loaded.hash
    for key, value in small_weights.tensors.items():
        assert torch.equal(loaded.tensors[key], value.half().float())


def test_bundled_encoder_is_small_and_of_the_published_shape():
    weights = load_weights("mini")
    assert weights.config == EncoderConfig(192, 12, 3)
    assert sum(tensor.numel() for tensor in weights.tensors.values()) * 2 < 15e6


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_hub_name_is_read_from_the_local_cache(filename, hub_cache):
    tensors = timm_tensors()
    write = (
        (lambda path: save_file(tensors, path))
        if filename.endswith("safetensors")
        else (lambda path: torch.save(tensors, path))
    )
    put_in_cache(hub_cache, HUB_MODELS["base"].repository, filename, write)
    assert load_weights("base").config == EncoderConfig(64, 3, 1)


def test_without_network_the_message_says_what_to_do(hub_cache):
    with pytest.raises(ValueError, match=r"cannot be reached.*--encoder PATH") as caught:
        load_weights("base")
    assert "\n" not in str(caught.value)


def test_timm_names_the_last_norm_differently(tmp_path):
    tensors = {
        key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: v for key, v in timm_tensors().items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_weights(tmp_path / "model.safetensors").config.depth == 3


def test_all_missing_and_misshapen_tensors_are_named(tmp_path):
    tensors = timm_tensors()
    del tensors["blocks.1.attn.proj.bias"]
    tensors["pos_embed"] = torch.zeros(1, 197, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.proj\.bias is missing.*pos_embed has shape \(1, 197, 64\)"):
        load_weights(tmp_path / "model.safetensors")


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(Malicious(), 2), pickle.dumps({"a": 1}, 2)])
def test_other_files_are_refused_without_running_them(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_weights(tmp_path / "x.pth")


def test_truncated_checkpoint(tmp_path):
    save_file(timm_tensors(), tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_weights(tmp_path / "model.safetensors")


def test_unknown_name():
    with pytest.raises(ValueError, match="mini, base"):
        load_weights("huge")
