from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sctok.features.encoder import AudioMAE, EncoderConfig, split_patches
from sctok.features.extractor import FeatureExtractor


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


def test_batches_are_filled_to_one_shape(small_weights):
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


def test_the_extractor_says_what_it_does(small_weights):
    extractor = FeatureExtractor(small_weights, torch.device("cpu"), "fp32")
    stages: list[str] = []

    def stage(name):
        stages.append(name)
        return nullcontext()

    extractor.stage = stage
    extractor.embed(np.zeros((1, 164_080), np.float32), np.ones(1, bool))
    assert stages == ["filterbank", "encoder"]
