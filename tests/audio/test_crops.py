"""Crops from the middle of files."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sctok.audio.crops import read_crop
from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, list_audio

RATE = 16_000


def noise(samples=RATE * 3, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write(folder, name, samples, rate=RATE, **options):
    path = folder / name
    soundfile.write(path, samples, rate, **options)
    return AudioItem(path.stem, str(path), suffix=path.suffix)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_crop_equals_the_samples_of_the_file(tmp_path, name):
    item = write(tmp_path, name, noise(), subtype="PCM_16")
    piece = read_crop(item, 1.25, 8000)
    assert piece.dtype == np.float32
    np.testing.assert_allclose(piece, noise()[20_000:28_000], atol=1e-4)


def test_formats_without_seeking_give_the_same_crop(tmp_path, monkeypatch):
    item = write(tmp_path, "a.wav", noise(), subtype="FLOAT")
    monkeypatch.setattr("sctok.audio.crops.has_seekable_sound", lambda file: False)
    np.testing.assert_array_equal(read_crop(item, 1.25, 8000), noise()[20_000:28_000])


def test_flac_of_unstated_length(tmp_path):
    item = write(tmp_path, "a.flac", noise(), subtype="PCM_16")
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the upper four of the 36 bits that count the samples
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    np.testing.assert_allclose(read_crop(item, 1.25, 8000), noise()[20_000:28_000], atol=1e-4)


def test_another_sample_rate(tmp_path):
    time = np.arange(44_100 * 2) / 44_100
    item = write(tmp_path, "a.wav", np.sin(2 * np.pi * 300 * time) * 0.5, 44_100)
    piece = read_crop(item, 0.5, 8000)
    expected = np.sin(2 * np.pi * 300 * (0.5 + np.arange(8000) / RATE)) * 0.5
    assert len(piece) == 8000
    np.testing.assert_allclose(piece[100:-100], expected[100:-100], atol=2e-3)  # apart from the ends of the filter


def test_stereo_is_mixed_down(tmp_path):
    left, right = noise(seed=1), noise(seed=2)
    item = write(tmp_path, "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_crop(item, 1, 100), (left + right)[RATE : RATE + 100] / 2, atol=1e-6)


def test_fewer_samples_at_the_end_and_none_after_it(tmp_path):
    item = write(tmp_path, "a.wav", noise(1000))
    assert len(read_crop(item, 0.05, 800)) == 200
    assert len(read_crop(item, 1.0, 800)) == 0


def test_a_stretch_of_a_file(tmp_path):
    whole = write(tmp_path, "a.wav", noise(), subtype="FLOAT")
    item = dataclasses.replace(whole, start=1.0, seconds=0.5)
    np.testing.assert_array_equal(read_crop(item, 0.25, 100), noise()[20_000:20_100])
    np.testing.assert_array_equal(read_crop(item, 0.25, RATE), noise()[20_000:24_000])
    assert len(read_crop(item, 0.75, 100)) == 0


def test_a_crop_of_a_tar_member(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, noise(), RATE, format="FLAC")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.flac")
        info.size = len(file.getvalue())
        tar.addfile(info, io.BytesIO(file.getvalue()))
    [item] = list_audio([tmp_path / "x.tar"])
    np.testing.assert_allclose(read_crop(item, 1.0, 500), noise()[RATE : RATE + 500], atol=1e-4)


def test_nan_is_refused_with_its_position(tmp_path):
    samples = noise()
    samples[20_000] = np.nan
    item = write(tmp_path, "a.wav", samples, subtype="FLOAT")
    assert len(read_crop(item, 0, RATE)) == RATE
    with pytest.raises(AudioError, match="sample 20000"):
        read_crop(item, 1, RATE)


def test_files_that_are_not_audio_are_refused(tmp_path):
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read from 0\.50 s on"):
        read_crop(AudioItem("a", str(tmp_path / "a.wav"), suffix=".wav"), 0.5, 100)


def test_a_crop_from_a_later_link(tmp_path):
    item = write(tmp_path, "a.ogg", noise())
    data = Path(item.path).read_bytes()
    Path(item.path).write_bytes(data + data)
    whole = read_audio(item.path)
    start = len(whole) // 2 + 1_600
    np.testing.assert_array_equal(read_crop(item, start / RATE, 800), whole[start : start + 800])
