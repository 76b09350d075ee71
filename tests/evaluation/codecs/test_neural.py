"""Neural codecs, with tiny untrained models saved in the published formats."""

import json

import numpy as np
import pytest
import torch

from sctok.evaluation.codecs.registry import CodecUnavailable, open_codec

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

RATE = 16_000
WAVE = (0.3 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
HUBERT = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [8] * 7,
}
DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_size": 64, "n_codebooks": 4, "codebook_dim": 4}


def small_encodec(**more):
    return transformers.EncodecModel(
        transformers.EncodecConfig(num_filters=2, hidden_size=16, codebook_dim=16, codebook_size=1024, **more)
    )


def small_dac():
    return transformers.DacModel(transformers.DacConfig(**DAC))


def small_mimi():
    config = transformers.MimiConfig(
        num_filters=2,
        hidden_size=16,
        codebook_size=32,
        num_quantizers=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        upsample_groups=16,
    )
    return transformers.MimiModel(config)


def small_xcodec():
    acoustic = {**DAC, "model_type": "dac", "hidden_size": 8}
    acoustic |= {"downsampling_ratios": [8, 5, 4, 2], "upsampling_ratios": [8, 5, 4, 2]}
    config = transformers.XcodecConfig(
        codebook_size=64, acoustic_model_config=acoustic, semantic_model_config=HUBERT, target_bandwidths=[0.5, 1, 1.5]
    )
    return transformers.XcodecModel(config)


# family: model, value, codebooks, sample rate, samples per code, bits per code
MODELS = {
    "encodec": (small_encodec, "1.5", 2, 24_000, 320, 10),
    "dac": (small_dac, "3", 3, 16_000, 512, 6),
    "mimi": (small_mimi, "2", 2, 24_000, 1920, 5),
    "xcodec": (small_xcodec, "0.5", 1, 16_000, 320, 6),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder with a small model for each family."""
    found = {}
    for family, (make, *_) in MODELS.items():
        torch.manual_seed(0)
        found[family] = tmp_path_factory.mktemp(family)
        make().save_pretrained(found[family])
    return found


@pytest.mark.parametrize("family", MODELS)
def test_models_of_transformers_encode_and_decode(folders, family):
    _, value, books, rate, hop, bits = MODELS[family]
    codec = open_codec(f"{family}:{value},weights={folders[family]},name={family}", device="cpu")
    first, second = codec.roundtrip(WAVE, RATE), codec.roundtrip(WAVE, RATE)
    assert first.sample_rate == rate
    assert len(first.samples) == pytest.approx(len(WAVE) * rate / RATE, abs=hop)
    np.testing.assert_array_equal(first.samples, second.samples)
    frames = len(WAVE) * rate / RATE / hop
    assert first.tokens % books == 0
    assert first.tokens / books == pytest.approx(frames, abs=1.01)
    assert first.bytes == -(-first.tokens * bits // 8)


def test_encodec_at_48_khz_gets_two_channels_and_its_scales_count(tmp_path):
    torch.manual_seed(0)
    more = {"audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01, "sampling_rate": 48_000}
    small_encodec(**more, norm_type="time_group_norm", use_causal_conv=False).save_pretrained(tmp_path)
    coded = open_codec(f"encodec:3,weights={tmp_path},name=e", device="cpu").roundtrip(WAVE, RATE)
    chunks = 2  # of one second, overlapping by 1 %
    assert coded.bytes == -(-coded.tokens * 10 // 8) + 4 * chunks
    assert len(coded.samples) >= 48_000


def test_snac_encodes_and_decodes(tmp_path):
    snac = pytest.importorskip("snac", reason="the package snac is not installed")
    config = {
        "sampling_rate": 24_000,
        "encoder_dim": 4,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 32,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "codebook_size": 64,
        "vq_strides": [4, 2, 1],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    torch.save(snac.SNAC(**config).state_dict(), tmp_path / "pytorch_model.bin")
    codec = open_codec(f"snac,weights={tmp_path}", device="cpu")
    first, second = codec.roundtrip(WAVE, RATE), codec.roundtrip(WAVE, RATE)
    frames = -(-24_000 // (512 * 4))
    assert (first.tokens, first.bytes) == (frames * 7, -(-frames * 7 * 6 // 8))
    np.testing.assert_array_equal(first.samples, second.samples)


def test_a_model_of_another_type_is_rejected(folders):
    with pytest.raises(ValueError, match="holds a model of type dac, not encodec"):
        open_codec(f"encodec:1.5,weights={folders['dac']}")


def test_a_value_that_the_model_does_not_support_is_rejected(folders):
    with pytest.raises(ValueError, match=r"does not have 5, only 1\.5, 3, 6, 12, 24"):
        open_codec(f"encodec:5,weights={folders['encodec']}")


@pytest.mark.parametrize("weights", ["/nowhere", "nowhere"])
def test_missing_weights_are_named_without_network_access(weights):
    with pytest.raises(CodecUnavailable, match=f"{weights} is neither a folder nor a repository"):
        open_codec(f"mimi:8,weights={weights}")


def test_a_folder_without_weights_says_how_to_fetch_them(tmp_path):
    with pytest.raises(CodecUnavailable, match="hf download"):
        open_codec(f"dac:2,weights={tmp_path}")


def test_missing_tensors_are_rejected(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folders["dac"] / "config.json").read_bytes())
    tensors = load_file(folders["dac"] / "model.safetensors")
    tensors.pop("decoder.conv1.bias")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks decoder\.conv1\.bias"):
        open_codec(f"dac:2,weights={tmp_path}")
