"""Representations and tokens of clips by log-mel, encoder and codec systems."""

import numpy as np
import pytest
import soundfile
import torch
from tests.codec.tiny import CODEBOOK_SIZES, tiny_parts

from sctok.audio.inputs.sources import AudioItem
from sctok.codec.codec import Codec
from sctok.codec.storage.codec_folder import save_codec
from sctok.evaluation.probe.features import (
    EncoderSystem,
    MelSystem,
    audio_grid,
    embed_clips,
    load_codec_system,
    name_filter,
)
from sctok.evaluation.probe.labels import LabelledClip
from sctok.evaluation.probe.token_stability import add_noise, mp3_and_back, sound_changes, token_stability
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.formats.stacking import stack_patches
from sctok.kernels.reference import nearest_centroid_reference

CPU = torch.device("cpu")


def sound(samples, seed=0):
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def clip(path, label="a"):
    return LabelledClip(AudioItem(path.stem, str(path), suffix=path.suffix), label, path.stem)


@pytest.fixture(scope="module")
def extractor(small_weights):
    return FeatureExtractor(small_weights, CPU, "fp32")


@pytest.fixture(scope="module")
def books(extractor):
    """Return a codebook for each token rate."""
    rows = np.random.default_rng(0).standard_normal((3, 20, 32 * 4)).astype(np.float32)
    return [
        Codebook(
            rows[i, :, : 32 * stack], np.ones(20, np.int64), CodebookInfo("merged", (), stack, "small", extractor.hash)
        )
        for i, stack in enumerate((1, 2, 4))
    ]


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs") / "tiny"
    save_codec(folder, tiny_parts())
    return folder


@pytest.mark.parametrize("samples", [100, 2_560, 30_000, 163_840, 170_000])
def test_tokens_are_the_nearest_centroids_of_the_features_with_audio(extractor, books, samples):
    found = EncoderSystem(extractor, books).encode(sound(samples))
    columns = -(-samples // 2560)
    for book in books:
        stack = book.metadata.stack_factor
        steps = -(-columns // 2) if stack == 4 else columns
        name = f"small/merged-20-r{100 // stack}"
        features = found.vectors[f"small/features-r{100 // stack}"]
        assert features.values.shape == (steps, 8 if stack == 1 else 4, 32 * stack)
        assert features.seconds == (0.32 if stack == 4 else 0.16)
        flat = torch.from_numpy(features.values.reshape(-1, 32 * stack))
        labels, _ = nearest_centroid_reference(flat, torch.from_numpy(book.centroids))
        np.testing.assert_array_equal(found.tokens[name].reshape(-1), labels.numpy())
        np.testing.assert_array_equal(found.vectors[name].values, book.centroids[found.tokens[name]])


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_the_grid_separates_columns_and_rows(stack):
    """Each patch holds its column and row. A step has the patches of one column, or of two at stack factor 4."""
    column, row = np.divmod(np.arange(2 * 512), 8)
    patches = np.stack([column, row], axis=-1).reshape(2, 512, 2)
    found = audio_grid(stack_patches(patches, stack), 70 * 2560, stack)
    assert len(found) == (35 if stack == 4 else 70)
    for step, rows in enumerate(found):
        assert set(rows[:, 0::2].reshape(-1)) == ({2 * step, 2 * step + 1} if stack == 4 else {step})
        assert (np.diff(rows[:, 1]) > 0).all()


def test_random_vectors_of_tokens_are_reproducible(extractor, books):
    one, two = (EncoderSystem(extractor, books[:1]).encode(sound(9_000)) for _ in range(2))
    name = "small/merged-20-r100/embedding"
    np.testing.assert_array_equal(one.vectors[name].values, two.vectors[name].values)
    assert len(np.unique(one.vectors[name].values.reshape(-1, 256), axis=0)) == len(
        np.unique(one.tokens["small/merged-20-r100"])
    )


def test_a_codebook_of_another_encoder_is_rejected(extractor):
    book = Codebook(np.ones((2, 32), np.float32), np.ones(2, np.int64), CodebookInfo("merged", (), 1, "else", "beef"))
    with pytest.raises(ValueError, match=r"codebook of 2 centroids was made with the encoder else \(beef\)"):
        EncoderSystem(extractor, [book])


def test_tokens_of_a_codec_equal_its_encoding(codec_folder):
    samples = sound(200_000)
    expected = Codec.load(codec_folder, "cpu", "fp32").encode(samples, 16_000).tokens
    system = load_codec_system(codec_folder, "cpu", "fp32")
    found = system.encode(samples)
    streams = [found.tokens[f"codec tiny/{name}"].reshape(-1) for name in ("semantic", "acoustic")]
    common = min(len(streams[0]), len(expected))
    assert abs(len(streams[0]) - len(expected)) <= 4  # the tokens of the last step may be missing
    np.testing.assert_array_equal(np.stack(streams, axis=-1)[:common], expected[:common])
    both = found.vectors["codec tiny/semantic+acoustic"].values
    parts = [found.vectors[f"codec tiny/{name}"].values for name in ("semantic", "acoustic")]
    np.testing.assert_array_equal(both, np.concatenate(parts, axis=-1))
    assert system.streams["codec tiny/semantic"].size == max(CODEBOOK_SIZES)
    assert system.streams["codec tiny/semantic"].per_second == 12.5


def test_log_mel_frames_last_ten_milliseconds():
    found = MelSystem().encode(sound(1_601)).vectors["log-mel"]
    assert found.values.shape == (11, 1, 128)
    assert found.seconds == 0.01


@pytest.mark.parametrize(("pooling", "width"), [("mean", 32), ("rows", 256)])
def test_clips_are_pooled_over_time(extractor, tmp_path, pooling, width):
    samples = sound(40_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    found = embed_clips([clip(tmp_path / "a.wav")], [MelSystem(), EncoderSystem(extractor)], pooling=pooling)
    values = EncoderSystem(extractor).encode(samples).vectors["small/features-r100"].values
    expected = values.mean(0).mean(0) if pooling == "mean" else values.mean(0).reshape(-1)
    assert found.vectors["small/features-r100"].shape == (1, width)
    np.testing.assert_allclose(found.vectors["small/features-r100"][0], expected, rtol=1e-5, atol=1e-6)
    mel = MelSystem().encode(samples).vectors["log-mel"].values[:, 0]
    np.testing.assert_allclose(
        found.vectors["log-mel with deviation"][0], np.concatenate([mel.mean(0), mel.std(0)]), rtol=1e-5
    )


def test_unreadable_clips_are_named_and_skipped(tmp_path):
    for name in ("a", "c"):
        soundfile.write(tmp_path / f"{name}.wav", sound(3_000), 16_000)
    (tmp_path / "b.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 16_000, subtype="FLOAT")
    clips = [clip(tmp_path / f"{name}.wav") for name in ("a", "b", "nan", "gone", "c")]
    found = embed_clips(clips, [MelSystem()])
    assert [each.item.key for each in found.clips] == ["a", "c"]
    assert found.vectors["log-mel"].shape == (2, 128)
    assert [each.source for each in found.failed] == ["b", "nan", "gone"]
    assert all(each.reason for each in found.failed)


def test_only_the_start_of_a_long_clip_is_used(tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(48_000), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", sound(48_000)[:16_000], 16_000, subtype="FLOAT")
    found = embed_clips([clip(tmp_path / "a.wav"), clip(tmp_path / "b.wav")], [MelSystem()], seconds=1.0)
    np.testing.assert_array_equal(*found.vectors["log-mel"])
    assert found.seconds == 2.0


def test_representations_are_selected_by_patterns():
    assert name_filter([])("mini/features-r100")
    assert name_filter(["log*", "*/features*"])("mini/features-r100")
    assert not name_filter(["log*"])("mini/features-r100")


class Counting:
    """A system that returns each sample, in multiples of 0.0001, as a token."""

    streams = {"counts": None}  # noqa: RUF012

    def encode(self, samples):
        from sctok.evaluation.probe.features import EncodedClip

        return EncodedClip({}, {"counts": np.round(samples * 1e4).astype(np.int64)[:, None]})


def test_unchanged_tokens_are_counted_position_by_position():
    clips = [np.array([0.1, 0.1, 0.2, 0.3], np.float32), np.array([0.5, 0.6], np.float32), np.ones(1, np.float32)]
    changes = {"same": lambda samples: samples, "shift": lambda samples: samples[1:]}
    same, shift = token_stability(clips, [Counting()], 0, lambda seed: changes)
    assert (same.unchanged, same.standard_error, same.clips, same.tokens) == (1.0, 0.0, 2, 6)
    assert (shift.change, shift.stream, shift.unchanged, shift.tokens) == ("shift", "counts", 0.25, 4)


def test_sound_changes_match_their_description():
    samples = sound(20_000)
    changes = sound_changes(seed=1)
    np.testing.assert_array_equal(changes["shift"](samples), samples[1:])
    np.testing.assert_allclose(20 * np.log10(np.std(changes["gain"](samples)) / np.std(samples)), -6, atol=1e-3)
    noise = add_noise(samples, 1) - samples
    assert 20 * np.log10(np.std(samples) / np.std(noise)) == pytest.approx(30, abs=0.1)
    np.testing.assert_array_equal(changes["noise"](samples), add_noise(samples, 1))
    assert not np.array_equal(add_noise(samples, 2), add_noise(samples, 1))


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="this libsndfile cannot write MP3")
@pytest.mark.parametrize("length", [40_000, 700])
def test_mp3_is_aligned_with_the_original(length):
    samples = np.sin(np.cumsum(np.linspace(0.02, 0.4, length))).astype(np.float32) * 0.3
    back = mp3_and_back(samples)
    assert len(back) == length
    assert np.corrcoef(samples, back)[0, 1] > 0.99
    assert not np.array_equal(samples, back)
