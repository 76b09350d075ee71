"""Reading audio: formats, rates, channels, and every kind of broken file."""

import io
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from sctok.audio.decoding import decode, ffmpeg
from sctok.audio.decoding.decode import read_audio, stream_audio
from sctok.audio.errors import AudioError

RATE = 16_000

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not on the PATH")


def tone(seconds: float = 0.5, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal((len(time), channels))
    return (0.3 * np.sin(2 * np.pi * 440 * time)[:, None] + 0.01 * noise).astype(np.float32)


def encode_with_ffmpeg(source: Path, target: Path, *options: str) -> Path:
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", "-i", str(source), *options, f"file:{target}"]
    subprocess.run(command, check=True)
    return target


def error_of(source: decode.Source, **options: object) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 0)]
)
def test_wav_sample_formats_keep_their_precision(tmp_path: Path, subtype: str, step: float) -> None:
    wave = tone()
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype=subtype)
    read = read_audio(tmp_path / "a.wav")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wave[:, 0], rtol=0, atol=step)


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".flac", {}, 1e-4),
        (".ogg", {}, 0.05),
        (".opus", {"format": "OGG", "subtype": "OPUS"}, 0.1),
        (".mp3", {}, 0.05),
        (".aiff", {}, 1e-4),
        (".rf64", {"format": "RF64"}, 1e-4),
        (".w64", {}, 1e-4),
        (".caf", {}, 1e-4),
    ],
)
def test_formats_of_libsndfile(tmp_path: Path, suffix: str, options: dict[str, str], tolerance: float) -> None:
    wave = tone()
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, wave, RATE, **options)
    read = read_audio(path)
    assert len(read) == len(wave)
    np.testing.assert_allclose(read[1000:-1000], wave[1000:-1000, 0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_path_bytes_and_open_file_agree(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(rate=44_100, channels=2), 44_100)
    expected = read_audio(path)
    np.testing.assert_array_equal(read_audio(str(path)), expected)
    np.testing.assert_array_equal(read_audio(path.read_bytes(), name="a"), expected)
    file = path.open("rb")
    np.testing.assert_array_equal(read_audio(file), expected)
    assert file.closed


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_result_does_not_depend_on_the_block_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
    soundfile.write(path, tone(0.4, 48_000, 3 if suffix == ".wav" else 2), 48_000, **options)
    expected = read_audio(path)
    for block in (1, 997, 20_000, 10**7):
        if block > 1 or suffix == ".wav":
            blocks = list(stream_audio(path, block_samples=block))
            assert all(len(part) for part in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("rate", [8_000, 11_025, 15_999, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 1_001, 20_011])
def test_resampled_length_is_the_ceiling(tmp_path: Path, rate: int, samples: int) -> None:
    wave = tone(1.0, 20_011)[:samples, 0]
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    read = read_audio(tmp_path / "a.wav")
    assert len(read) == -(-samples * RATE // rate)
    reference = soxr.resample(wave, rate, RATE, quality="HQ")
    shared = min(len(read), len(reference))
    np.testing.assert_allclose(read[:shared], reference[:shared], rtol=0, atol=1e-6)


def test_192_khz_tone_survives_resampling(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5, 192_000), 192_000, subtype="PCM_24")
    read = read_audio(tmp_path / "a.wav")
    assert np.abs(np.fft.rfft(read)).argmax() == 220


def test_twelve_channels_are_averaged_or_one_is_chosen(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (5_000, 12)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), wave.mean(axis=1), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=0), wave[:, 0])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=11), wave[:, 11])
    assert "no channel 12: it has 12" in error_of(tmp_path / "a.wav", channel=12)


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channel=-1"):
        read_audio(tmp_path / "a.wav", channel=-1)
    with pytest.raises(ValueError, match="block_samples=0"):
        next(stream_audio(tmp_path / "a.wav", block_samples=0))


@pytest.mark.parametrize("name", ["-v quiet.wav", "ein Lied – 東京.wav", "a b.wav", "100%d.wav"])
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / name, tone(), RATE)
    assert len(read_audio(name)) == 8_000


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e30, "1e+30")])
@pytest.mark.parametrize("position", [0, 70_001])
def test_sample_that_is_not_finite_is_located(tmp_path: Path, value: float, text: str, position: int) -> None:
    wave = tone(1.0, 96_000)
    wave[position] = value
    soundfile.write(tmp_path / "a.wav", wave, 96_000, subtype="FLOAT")
    message = error_of(tmp_path / "a.wav")
    assert f"a.wav: sample {position} " in message
    assert f"is {text}," in message


def test_nan_in_one_channel_is_found_in_the_mix_and_ignored_if_another_channel_is_chosen(tmp_path: Path) -> None:
    wave = tone(channels=2)
    wave[77, 1] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    assert "sample 77 " in error_of(tmp_path / "a.wav")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=0), wave[:, 0])


def test_zero_length_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert error_of(tmp_path / "a.wav") == f"{tmp_path / 'a.wav'}: is empty (0 bytes)"


@pytest.mark.parametrize("suffix", [".wav", ".aiff"])
def test_header_without_samples(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a{suffix}", np.empty(0, np.float32), RATE)
    assert f"a{suffix}: holds no samples" in error_of(tmp_path / f"a{suffix}")


def test_text_named_wav(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("not audio\n" * 100)
    assert "libsndfile: Format not recognised" in error_of(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".opus", ".mp3"])
def test_text_named_after_other_formats(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("not audio\n" * 100)
    assert "libsndfile: Format not recognised" in error_of(tmp_path / f"a{suffix}")


def test_truncated_wav_states_both_lengths(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(channels=2), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:-1002])
    message = error_of(tmp_path / "a.wav")
    assert "a.wav: is truncated: header promises 8000 samples, file holds 7749" in message
    assert "is truncated" in error_of(data[:-4], name="bytes.wav")


@pytest.mark.parametrize("container", ["RF64", "AIFF"])
def test_truncated_rf64_and_aiff(container: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(), RATE, format=container, subtype="PCM_16")
    assert "promises 8000 samples, file holds 7500" in error_of(file.getvalue()[:-1000], name="a")


def test_truncated_adpcm_is_counted_in_blocks() -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(2.0), RATE, format="WAV", subtype="IMA_ADPCM")
    assert "blocks" in error_of(file.getvalue()[:8_000], name="a.wav")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFEFFE, 0x80000000])
def test_wav_written_through_a_pipe_is_read_to_its_end(size: int) -> None:
    file = io.BytesIO()
    wave = tone(channels=3)
    soundfile.write(file, wave, RATE, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    assert len(read_audio(bytes(data), name="a.wav")) == len(wave)


def test_truncated_flac(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tone(4.0), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    message = error_of(tmp_path / "a.flac")
    assert "a.flac: is " in message
    assert "truncated" in message
    assert "64000" in message


def test_damaged_flac_is_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(4.0), RATE, format="FLAC")
    data = bytearray(file.getvalue())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    assert "damaged or truncated" in error_of(bytes(data), name="a.flac")


def test_flac_of_unstated_length_is_read_to_its_end() -> None:
    file = io.BytesIO()
    wave = tone(4.0)
    soundfile.write(file, wave, RATE, format="FLAC")
    data = bytearray(file.getvalue())
    data[21] &= 0xF0  # the 36-bit sample count of STREAMINFO
    data[22:26] = bytes(4)
    read = np.concatenate(list(stream_audio(bytes(data), name="a.flac", block_samples=10_000)))
    np.testing.assert_allclose(read, wave[:, 0], rtol=0, atol=1e-4)


def test_truncated_mp3_with_a_length_header() -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(4.0), RATE, format="MP3")
    data = file.getvalue()
    assert "is truncated: header promises 64000" in error_of(data[: len(data) // 2], name="a.mp3")


@needs_ffmpeg
def test_mp3_without_a_length_header_is_read_to_its_end(tmp_path: Path) -> None:
    wave = tone(20.0, 48_000)
    wave[48_000:] = 0  # a loud start makes the guess from the first frame far too short
    wave[:48_000] = np.random.default_rng(0).uniform(-0.5, 0.5, (48_000, 1))
    soundfile.write(tmp_path / "a.wav", wave, 48_000)
    path = encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / "a.mp3", "-q:a", "2", "-write_xing", "0")
    expected = read_audio(path)
    assert len(expected) >= 20 * RATE
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path, block_samples=999))), expected)
    np.testing.assert_array_equal(read_audio(path.read_bytes(), name="a.mp3"), expected)


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    assert error_of(tmp_path / "a.wav") == f"{tmp_path / 'a.wav'}: no such file"
    assert error_of(tmp_path) == f"{tmp_path}: is a folder"
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in error_of(tmp_path / "pipe.wav")


def test_unreadable_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "a.wav: permission denied" in error_of(tmp_path / "a.wav")


def test_read_error_of_the_device_is_reported() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 20_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    file = io.BytesIO()
    soundfile.write(file, tone(4.0), RATE, format="WAV")
    assert error_of(Failing(file.getvalue()), name="a.wav") == "a.wav: Input/output error"


@pytest.mark.parametrize("rate", [10, 20_000_000])
def test_absurd_sample_rate(rate: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(), rate, format="WAV")
    assert f"sample rate of {rate} Hz" in error_of(file.getvalue(), name="a.wav")


def test_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(AudioError("a\nb.wav", "is bad")))
    assert str(error) == "a b.wav: is bad"


@needs_ffmpeg
@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".mka", "flac"), (".mp4", "aac"), (".wma", "wmav2")])
def test_other_containers_through_ffmpeg(tmp_path: Path, suffix: str, codec: str) -> None:
    wave = tone(1.0, 44_100, 2)
    soundfile.write(tmp_path / "a.wav", wave, 44_100)
    path = encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / f"-i a{suffix}", "-c:a", codec)
    read = read_audio(path)
    assert abs(len(read) - RATE) < 2_000
    assert np.abs(np.fft.rfft(read[:RATE], RATE)).argmax() == 440
    np.testing.assert_array_equal(read_audio(path.read_bytes(), name=path.name), read)
    np.testing.assert_array_equal(read_audio(path, channel=1), read_audio(path, channel=1))
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path, block_samples=777))), read)


@needs_ffmpeg
def test_lossless_through_ffmpeg_equals_soundfile(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, 44_100, 2), 44_100)
    path = encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / "a.mka", "-c:a", "pcm_s16le")
    np.testing.assert_array_equal(read_audio(path), read_audio(tmp_path / "a.wav"))


@needs_ffmpeg
def test_relative_name_that_looks_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / "-y.m4a")
    monkeypatch.chdir(tmp_path)
    assert len(read_audio("-y.m4a")) >= 8_000


@needs_ffmpeg
def test_unknown_suffix_falls_back_to_ffmpeg(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / "a.m4a")
    (tmp_path / "a.m4a").rename(tmp_path / "audio")
    assert len(read_audio(tmp_path / "audio")) >= 8_000


@needs_ffmpeg
def test_the_message_of_ffmpeg_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_text("not audio\n" * 100)
    message = error_of(tmp_path / "a.m4a")
    assert "a.m4a: ffmpeg cannot decode it: " in message
    assert "Invalid data" in message


@needs_ffmpeg
def test_message_of_ffmpeg_is_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a b.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A \0\0\0\0M4A isom" + struct.pack(">I4s", 8, b"free"))
    message = error_of(path)
    assert message.count(str(path)) == 1
    assert "Invalid data found when processing input" in message
    assert "0x" not in message
    assert error_of(path) == message
    inside = error_of(path.read_bytes(), name="s.tar:a.m4a")
    with (tmp_path / "other").open("wb"):  # takes the descriptor that the copy for ffmpeg had
        assert error_of(path.read_bytes(), name="s.tar:a.m4a") == inside


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".m4a", ".mka"])
def test_truncated_container_of_ffmpeg(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(5.0), RATE)
    path = encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / f"a{suffix}", "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[:-8_000])
    assert f"a{suffix}: " in error_of(path)


def test_missing_ffmpeg_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.m4a").write_bytes(bytes(100))
    (tmp_path / "a.xyz").write_bytes(bytes(100))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs ffmpeg, which is not on the PATH" in error_of(tmp_path / "a.m4a")
    assert "ffmpeg" in error_of(tmp_path / "a.xyz")


@needs_ffmpeg
def test_abandoned_stream_ends_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(30.0), RATE)
    path = encode_with_ffmpeg(tmp_path / "a.wav", tmp_path / "a.mka", "-c:a", "pcm_s16le")
    started = []
    launch = subprocess.Popen

    def remember(*arguments: object, **options: object) -> object:
        started.append(launch(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(ffmpeg.subprocess, "Popen", remember)
    blocks = stream_audio(path, block_samples=1_000)
    next(blocks)
    blocks.close()
    assert started[0].returncode is not None
