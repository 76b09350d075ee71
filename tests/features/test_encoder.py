from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sctok.audio.filterbank import filterbank
from sctok.audio.windows import span_samples
from sctok.features.encoder import AudioMAE, EncoderConfig, split_patches
from sctok.features.extractor import PADDINGS, FeatureExtractor, padding_of


def test_patch_embedding_is_the_published_convolution(small_weights):
    model = small_weights.build()
    mel = torch.randn(2, 1024, 128)
    convolved = F.conv2d(mel[:, None], model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=16)
    expected = convolved.flatten(2).transpose(1, 2)  # patch t·8 + f
    assert torch.allclose(model.patch_embed(split_patches(mel)), expected, atol=1e-5)


def test_a_window_does_not_depend_on_its_batch(small_weights):
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    waves = np.random.default_rng(0).standard_normal((5, 164_080)).astype(np.float32)
    last = np.array([False, True, False, False, True])
    together = extractor.embed(waves, last)
    for order in ([3], [4, 0], [1, 2, 3]):
        assert np.array_equal(extractor.embed(waves[order], last[order]), together[order])


def test_batches_are_padded_to_one_shape(small_weights):
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    extractor.batch_size = 4
    waves = np.random.default_rng(0).standard_normal((6, 164_080)).astype(np.float32)
    last = np.zeros(6, bool)
    together = extractor.embed(waves, last)
    assert np.array_equal(extractor.embed(waves[4:], last[4:]), together[4:])


def test_wrong_shapes_are_refused(small_weights):
    with pytest.raises(ValueError, match="1024"):
        small_weights.build()(torch.zeros(1, 1000, 128))
    with pytest.raises(ValueError, match="164080"):
        FeatureExtractor(small_weights, torch.device("cpu"), "fp32").embed(
            np.zeros((1, 16), np.float32), np.zeros(1, bool)
        )


@pytest.mark.parametrize("sizes", [(30, 12, 4), (32, 2, 2)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=str(sizes[0] if sizes[1] > 2 else sizes[1])):
        AudioMAE(EncoderConfig(*sizes))


def test_the_extractor_describes_itself(small_weights):
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    stages: list[str] = []

    def stage(name):
        stages.append(name)
        return nullcontext()

    extractor.stage = stage
    extractor.embed(np.zeros((1, 164_080), np.float32), np.ones(1, bool))
    assert stages == ["filterbank", "encoder"]


def cutting(weights):
    return FeatureExtractor(weights, torch.device("cpu"), "fp32", "cut")


@pytest.mark.parametrize("columns", [1, 3, 8, 13, 32, 40])
def test_a_window_without_padding_does_not_depend_on_its_batch(small_weights, columns):
    waves = np.random.default_rng(0).standard_normal((40, span_samples(columns))).astype(np.float32)
    last = np.ones(40, bool)
    extractor = cutting(small_weights)
    together = extractor.embed(waves, last)
    assert together.shape == (40, 8 * columns, 32)
    for order in ([3], [39, 0], list(range(40))[::-1]):
        assert np.array_equal(extractor.embed(waves[order], last[order]), together[order])


def test_without_padding_the_encoder_sees_only_the_patches_of_the_columns(small_weights):
    """Compare with the blocks applied in float64 to those patches and positions of a full window."""
    waves = torch.randn(2, 164_080)
    last = torch.tensor([True, True])
    model, kept = small_weights.build().double(), 8 * 5
    order = torch.arange(kept).expand(2, -1)
    x = model.embed_patches(split_patches(filterbank(waves, last).double()), order)
    seen = []
    for block in model.blocks:
        x = block(x)
        seen.append(model.norm(x)[:, 1:])
    found = cutting(small_weights).embed(waves[:, : span_samples(5)], last)
    assert torch.allclose(found.double(), sum(seen[-3:]) / 3, atol=1e-4)


def test_full_windows_do_not_depend_on_the_padding(small_weights):
    waves, last = torch.randn(2, 164_080), torch.tensor([False, True])
    published = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    assert torch.equal(cutting(small_weights).embed(waves, last), published.embed(waves, last))


def test_the_hash_depends_on_the_padding(small_weights):
    hashes = {
        padding: FeatureExtractor(small_weights, torch.device("cpu"), "fp32", padding).hash for padding in PADDINGS
    }
    assert hashes["keep"] == small_weights.hash
    assert {padding_of(found): found for found in hashes.values()} == hashes


def test_fewer_columns_are_refused_if_padding_is_kept(small_weights):
    with pytest.raises(ValueError, match="padding cut"):
        FeatureExtractor(small_weights, torch.device("cpu"), "fp32").embed(
            np.zeros((1, span_samples(7)), np.float32), np.ones(1, bool)
        )


def test_an_unknown_padding_is_refused(small_weights):
    with pytest.raises(ValueError, match="one of keep, cut, not 'trim'"):
        FeatureExtractor(small_weights, torch.device("cpu"), "fp32", "trim")
