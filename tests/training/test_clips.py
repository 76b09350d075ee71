"""Collections and their random crops: reproducible, mixed by domain, and robust to damaged files."""

import json
import tarfile

import numpy as np
import pytest
import soundfile

from sctok.audio.errors import AudioError
from sctok.training.clips import Clip, open_collection, split_clips
from sctok.training.crops import PEAK, CropConfig, CropSampler, validation_crops

RATE = 16_000
SHORT = CropConfig(samples=4000)


def tone(seconds=1.0, hertz=300.0, level=0.3, rate=RATE):
    return level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Two inputs, a and b, of three tones each."""
    for name, hertz in (("a", 300), ("b", 2000)):
        (tmp_path / name).mkdir()
        for index in range(3):
            soundfile.write(tmp_path / name / f"{index}.wav", tone(1 + index, hertz), RATE)
    return tmp_path


def indexed(folder, *names, **options):
    return open_collection([str(folder / name) for name in names], folder / "run", **options).train


def sampler(clips, skipped=lambda path, reason: None, **settings):
    return CropSampler(clips, CropConfig(**{"samples": 4000, **settings}), skipped)


def test_clips_have_group_and_duration(folder):
    clips = indexed(folder, "a", "b")
    assert [(clip.key, clip.group, clip.seconds) for clip in clips][2:4] == [("0/2", "0", 3.0), ("1/0", "1", 1.0)]
    assert indexed(folder, "a", "b") == clips


def test_the_folder_of_another_collection_is_refused(folder):
    indexed(folder, "a")
    with pytest.raises(ValueError, match="choose another --name"):
        indexed(folder, "b")


def test_domains_in_a_manifest_or_tar_are_groups(folder):
    rows = [{"path": "a/0.wav", "domain": "speech"}, {"path": "b/0.wav", "domain": "music"}]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "x.json").write_text(json.dumps({"domain": "general"}))
    with tarfile.open(folder / "x.tar", "w") as tar:
        tar.add(folder / "a" / "1.wav", "x.wav")
        tar.add(folder / "x.json", "x.json")
    assert {clip.group for clip in indexed(folder, "list.jsonl", "x.tar")} == {"speech", "music", "general"}


def test_damaged_files_are_reported_and_skipped(folder):
    (folder / "a" / "broken.wav").write_text("not audio")
    (folder / "a" / "empty.flac").touch()
    skipped = {}
    clips = indexed(folder, "a", skipped=lambda path, reason: skipped.update({path.rsplit("/", 1)[1]: reason}))
    assert len(clips) == 3
    assert skipped.keys() == {"broken.wav", "empty.flac"}
    assert skipped["empty.flac"] == "is empty (0 bytes)"


def test_a_folder_with_only_damaged_files_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.wav").write_text("not audio")
    with pytest.raises(ValueError, match="no readable audio in"):
        indexed(tmp_path, "a")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        indexed(tmp_path, "nowhere")


def test_a_duration_missing_in_the_header_is_measured(folder):
    data = bytearray((folder / "a" / "0.wav").read_bytes())
    soundfile.write(folder / "a" / "3.flac", tone(1.5), RATE)
    data = bytearray((folder / "a" / "3.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (folder / "a" / "3.flac").write_bytes(data)
    assert indexed(folder, "a")[-1].seconds == 1.5


def test_crops_do_not_depend_on_earlier_draws_or_batch_sizes(folder):
    clips = indexed(folder, "a", "b")
    whole = sampler(clips, packed=0.5, level="random").draw(7, 0, 6)
    other = sampler(clips, packed=0.5, level="random")
    other.draw(6, 3, 3)  # reads step 7 ahead
    parts = [other.draw(7, 0, 3), other.draw(7, 3, 3)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, other.draw(8, 0, 6))
    assert not np.array_equal(whole, sampler(clips, packed=0.5, level="random", seed=1).draw(7, 0, 6))


def test_each_crop_is_read_once(folder, monkeypatch):
    read = []

    class Counting(CropSampler):
        def _crop(self, rng):
            read.append(1)
            return super()._crop(rng)

    crops = Counting(indexed(folder, "a"), SHORT)
    for step in range(4):
        for part in range(2):
            crops.draw(step, 3 * part, 3)
    crops._pool.shutdown()
    assert len(read) == 5 * 6  # four steps and the one ahead


def test_peaks_are_normalized(folder):
    crops = sampler(indexed(folder, "a", "b")).draw(0, 0, 8)
    np.testing.assert_allclose(np.abs(crops).max(axis=1), PEAK, rtol=1e-5)
    assert np.abs(crops.mean(axis=1)).max() < 1e-5


def test_random_levels_span_their_range(folder):
    peaks = np.abs(sampler(indexed(folder, "a"), level="random").draw(0, 0, 64)).max(axis=1)
    assert 0.06 < peaks.min() < 0.2
    assert 0.6 < peaks.max() < 1.01


@pytest.mark.parametrize(("balance", "share"), [(0.0, 1 / 2), (0.5, 1 / (1 + 15**0.5)), (1.0, 1 / 16)])
def test_domains_are_mixed_by_their_hours(folder, balance, share):
    soundfile.write(folder / "b" / "3.wav", tone(6 * 15 - 6, 2000), RATE)  # six seconds each before
    crops = sampler(indexed(folder, "a", "b"), samples=1600, balance=balance).draw(0, 0, 300)
    low = np.abs(np.fft.rfft(crops, axis=1)).argmax(axis=1) < 100  # 10 Hz a bin
    assert low.mean() == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize(("packed", "filled"), [(0.0, RATE), (1.0, RATE * 5)])
def test_packed_crops_have_no_silence(folder, packed, filled):
    (folder / "a" / "1.wav").unlink()
    (folder / "a" / "2.wav").unlink()
    crop = sampler(indexed(folder, "a"), samples=RATE * 5, packed=packed).draw(0, 0, 1)[0]
    assert np.abs(crop[filled - 100 : filled]).max() > 0.1
    assert not crop[filled:].any()


def test_very_short_clips_fill_packed_crops(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "x.wav", tone(0.03), RATE)
    clips = indexed(tmp_path, "a")
    single, packed = (sampler(clips, packed=share).draw(0, 0, 1)[0] for share in (0.0, 1.0))
    assert np.count_nonzero(single) <= 480
    assert np.count_nonzero(packed) > 3900


def test_files_damaged_inside_are_reported_once_and_replaced(folder):
    samples = tone(1).astype(np.float32)
    samples[::100] = np.nan
    soundfile.write(folder / "a" / "nan.wav", samples, RATE, subtype="FLOAT")
    skipped = []
    crops = sampler(indexed(folder, "a"), skipped=lambda path, reason: skipped.append((path, reason)))
    drawn = crops.draw(0, 0, 64)
    assert bool(np.isfinite(drawn).all())
    assert (np.abs(drawn).max(axis=1) > 0.4).all()
    [(path, reason)] = skipped
    assert path.endswith("nan.wav")
    assert "not a finite value" in reason


def test_silence_is_drawn_again(folder):
    soundfile.write(folder / "a" / "silence.wav", np.zeros(RATE * 100), RATE)
    drawn = sampler(indexed(folder, "a")).draw(0, 0, 32)
    assert (np.abs(drawn).max(axis=1) > 0.4).all()


def test_validation_refuses_a_collection_of_silence(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "silence.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match=r"none of 1 clips can be used for validation: .*begins with silence"):
        validation_crops(indexed(tmp_path, "a"), SHORT, 4)


def test_stereo_is_mixed_down(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "x.wav", np.stack([tone(1), -tone(1) + tone(1, 1000)], axis=1), RATE)
    spectrum = np.abs(np.fft.rfft(sampler(indexed(tmp_path, "a")).draw(0, 0, 1)[0]))
    assert spectrum.argmax() == 250  # 1000 Hz, 4 Hz a bin


def test_a_hash_of_the_key_chooses_the_held_out_clips(folder):
    [clip] = indexed(folder, "a")[:1]
    clips = [Clip(str(number), "0", clip.item, 1.0) for number in range(2000)]
    split = split_clips(clips)
    assert len(split.train) + len(split.held_out) == 2000
    assert 20 < len(split.held_out) < 65
    single = split_clips(clips[:1])
    assert single.train == single.held_out == clips[:1]


def test_validation_crops_are_reproducible_and_normalized(folder):
    crops = validation_crops(indexed(folder, "a", "b"), CropConfig(samples=40_000), 4)
    assert crops.shape == (4, 40_000)
    assert np.abs(crops).max(axis=1) == pytest.approx(PEAK)
    assert np.array_equal(crops, validation_crops(indexed(folder, "a", "b"), CropConfig(samples=40_000), 4))


def test_validation_falls_back_to_other_clips(folder):
    clips = indexed(folder, "a")
    (folder / "a" / "0.wav").write_text("not audio")
    assert len(validation_crops(clips[:1], SHORT, 4, otherwise=clips)) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"samples": 100}, "100"), ({"packed": 2.0}, "2.0"), ({"balance": -1.0}, "-1.0"), ({"level": "loud"}, "loud")],
)
def test_impossible_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        CropConfig(**settings)
