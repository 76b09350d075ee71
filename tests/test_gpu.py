"""Results on a CUDA device agree with those on a CPU. Skipped if there is no CUDA device."""

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from sctok import Codec, KMeans
from sctok.audio.spectral_distances import mel_distance
from sctok.audio.windows import span_samples
from sctok.codec.samplers import SamplerConfig
from sctok.features.checkpoints import load_weights
from sctok.features.extractor import FeatureExtractor
from sctok.kernels.assign import nearest_centroid
from tests.training.trainings import make_task, write_audio

CLIPS = ["speech", "music", "general"]


@pytest.fixture(scope="module")
def waves(samples_folder):
    """Ten seconds of a bundled clip of each domain, 16 kHz."""
    paths = [sorted((samples_folder / domain).iterdir())[0] for domain in CLIPS]
    return [soundfile.read(path, dtype="float32")[0][:160_000] for path in paths]


@pytest.fixture(scope="module")
def features():
    """20,000 vectors around 500 centres, float16 like features."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(500, 192))
    noise = generator.normal(size=(20_000, 192))
    return (centres[generator.integers(500, size=20_000)] + 0.7 * noise).astype(np.float16)


def test_labels_do_not_depend_on_the_device(features):
    points, centroids = torch.from_numpy(features), torch.from_numpy(features[:3000]).float()
    here = nearest_centroid(points, centroids, runner_up=True)
    there = nearest_centroid(points.cuda(), centroids.cuda(), runner_up=True)
    assert torch.equal(here.labels, there.labels.cpu())
    assert torch.equal(here.distances, there.distances.cpu())
    assert here.second_labels is not None
    assert there.second_labels is not None
    assert torch.equal(here.second_labels, there.second_labels.cpu())


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
def test_kmeans_is_as_good_and_reproducible(features, algorithm):
    wide = features.astype(np.float32)
    settings = {"n_clusters": 500, "random_state": 0, "algorithm": algorithm, "max_iter": 25}
    here = KMeans(**settings, device="cpu").fit(wide)
    first, second = (KMeans(**settings, device="cuda").fit(wide) for _ in range(2))
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_)
    assert np.array_equal(first.labels_, second.labels_)
    assert np.array_equal(first.labels_, first.predict(wide))
    assert first.inertia_ == pytest.approx(here.inertia_, rel=0.02)


@pytest.fixture(scope="module")
def windows(waves):
    """The clips as windows, each the last of its file."""
    padded = np.zeros((3, 164_080), np.float32)
    for window, wave in zip(padded, waves, strict=True):
        window[: len(wave)] = wave
    return padded, np.ones(3, bool)


def test_encoder_features_agree(windows):
    weights = load_weights("mini")
    here = FeatureExtractor(weights, torch.device("cpu"), "fp32").embed(*windows)
    there = FeatureExtractor(weights, torch.device("cuda"), "fp32").embed(*windows)
    np.testing.assert_allclose(there, here, atol=2e-4 * np.abs(here).max())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_do_not_depend_on_the_batch(windows, precision):
    extractor = FeatureExtractor(load_weights("mini"), torch.device("cuda"), precision)
    together = extractor.embed(*windows)
    alone = [extractor.embed(windows[0][i : i + 1], windows[1][i : i + 1]) for i in range(3)]
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("columns", [1, 8, 40])
def test_features_without_padding_do_not_depend_on_the_batch(windows, precision, columns):
    extractor = FeatureExtractor(load_weights("mini"), torch.device("cuda"), precision, "cut")
    waves, last = np.ascontiguousarray(windows[0][:, : span_samples(columns)]), windows[1]
    together = extractor.embed(waves, last)
    alone = [extractor.embed(waves[i : i + 1], last[i : i + 1]) for i in range(3)]
    assert np.array_equal(together, np.concatenate(alone))
    published = FeatureExtractor(load_weights("mini"), torch.device("cuda"), precision)
    assert np.array_equal(extractor.embed(*windows), published.embed(*windows))


def test_codec_tokens_and_sound_agree(waves):
    here = Codec.load("mini", device="cpu", precision="fp32")
    there = Codec.load("mini", device="cuda", precision="fp32")
    sampler = SamplerConfig(steps=8, eta=0.0)
    for wave in waves:
        expected, found = here.encode(wave, 16_000), there.encode(wave, 16_000)
        assert np.mean(expected.tokens != found.tokens) < 0.01
        one, other = here.decode(expected, sampler), there.decode(expected, sampler)
        assert one.shape == other.shape
        assert mel_distance(torch.from_numpy(one)[None], torch.from_numpy(other)[None]) < 0.1


def flat_gradient(task):
    """Return copies of all gradients of a training in one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in task.model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("kind", ["codec", "grid", "vocoder"])
def test_replayed_training_steps_equal_ordinary_steps(kind, tmp_path, monkeypatch):
    inputs = write_audio(tmp_path)
    replaying, plain = (make_task(kind, inputs, tmp_path / name, torch.device("cuda")) for name in "ab")
    found = [replaying.train_step(0)]
    gradient = flat_gradient(replaying)
    found += [replaying.train_step(step) for step in range(1, 5)]
    for module in ("codec", "vocoder"):
        monkeypatch.setattr(f"sctok.training.{module}.captured_on_gpus", lambda function, tensors: function)
    for step in range(5):
        assert found[step] == pytest.approx(plain.train_step(step), rel=5e-3, abs=1e-5)
        if step == 0:
            expected = flat_gradient(plain)
            assert float((gradient - expected).norm()) < 1e-2 * float(expected.norm())


def test_a_codec_loaded_only_for_encoding_encodes(waves):
    with torch.inference_mode():
        codec = Codec.load("mini", device="cuda")
        assert codec.encode(waves[0], 16_000).tokens.any()
