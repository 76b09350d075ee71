"""Sound that a plain decoder would lose: links, frame counts, garbage and truncation; and misleading headers."""

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sctok.audio.decoding import decode
from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError

RATE = 16_000
OPUS = {"format": "OGG", "subtype": "OPUS"}
KINDS: dict[str, dict[str, Any]] = {
    "ogg": {"format": "OGG"},
    "opus": OPUS,
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
}
ID3V2 = b"ID3\4\0\0\0\0\0\x20TIT2\0\0\0\x0d\0\0\0XingInfoVBRI" + bytes(9)
ID3V1 = b"TAG" + bytes(125)
FRAME = 1152

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the PATH")


def tone(seconds: float, pitch: float = 440, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def encode(wave: np.ndarray, rate: int = RATE, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **options)
    return file.getvalue()


def error_of(data: bytes, name: str = "a") -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(data, name=name)
    return str(caught.value)


def pitch_of(wave: np.ndarray) -> int:
    return int(np.abs(np.fft.rfft(wave[2_000:10_000], RATE)).argmax())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (RATE, 2), (48_000, 1), (24_000, 2)])
def test_chained_files_are_read_to_the_last_link(kind: str, rate: int, channels: int) -> None:
    first = encode(tone(1.0), **KINDS[kind])
    second = encode(tone(1.0, 880, rate, channels), rate, **KINDS[kind])
    read = read_audio(first + second + first)
    assert 3 * RATE <= len(read) <= 3 * RATE + 6 * FRAME
    if kind != "mp3":
        assert len(read) == 3 * RATE
    middle = len(read) // 3 + 1_000
    assert abs(pitch_of(read[middle : middle + 12_000]) - 880) <= 2
    assert abs(pitch_of(read[:12_000]) - 440) <= 2
    assert abs(pitch_of(read[-13_000:]) - 440) <= 2


def test_channel_missing_in_a_later_link_is_named() -> None:
    data = encode(tone(1.0, channels=2), **KINDS["ogg"]) + encode(tone(1.0), **KINDS["ogg"])
    with pytest.raises(AudioError, match="no channel 1: it has 1"):
        read_audio(data, channel=1)


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_concatenated_files(container: str) -> None:
    data = encode(tone(0.5), format=container, subtype="PCM_16") + encode(tone(0.5, 880), 8_000, format=container)
    read = read_audio(data)
    assert len(read) == 8_000 + 16_000


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99, 1])
def test_mp3_is_read_beyond_its_stated_frames(part: float) -> None:
    data = bytearray(encode(tone(2.0), **KINDS["mp3"]))
    mark = max(data.find(b"Xing"), data.find(b"Info"))
    frames = int.from_bytes(data[mark + 8 : mark + 12], "big")
    data[mark + 8 : mark + 12] = struct.pack(">I", int(frames * part))
    read = read_audio(bytes(data))
    assert 2 * RATE <= len(read) <= 2 * RATE + FRAME
    np.testing.assert_allclose(read[1_000:30_000], tone(2.0)[1_000:30_000, 0], rtol=0, atol=0.05)


def test_flac_is_read_beyond_its_stated_length() -> None:
    data = bytearray(encode(tone(4.0), **KINDS["flac"]))
    data[22:26] = struct.pack(">I", 1_000)
    assert len(read_audio(bytes(data))) == 4 * RATE
    data[22:26] = struct.pack(">I", 4 * RATE + 1)
    assert "truncated: header promises 64001 samples, file holds 64000" in error_of(bytes(data))


@pytest.mark.parametrize(
    "garbage", [b"\0" * 3_000, np.random.default_rng(0).bytes(200_000), ID3V1 + ID3V2 + b"APETAGEX"]
)
def test_garbage_between_mp3_frames_loses_no_other_frame(garbage: bytes) -> None:
    data = encode(tone(2.0), **KINDS["mp3"])
    assert 4 * RATE <= len(read_audio(data + garbage + data)) <= 4 * RATE + 4 * FRAME


@pytest.mark.parametrize("kind", ["mp3", "flac", "ogg"])
@pytest.mark.parametrize(("before", "after"), [(ID3V2 * 2, b""), (bytes(5_000), b""), (b"", ID3V1), (ID3V2, ID3V1)])
def test_tags_and_zeros_around_the_sound(kind: str, before: bytes, after: bytes) -> None:
    data = encode(tone(1.0), **KINDS[kind])
    np.testing.assert_array_equal(read_audio(before + data + after), read_audio(data))


@pytest.mark.parametrize("name", ["a", "a.wav", "a.MP3", "a.m4a", "a.ogg", "a.flac"])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_the_suffix_does_not_matter(name: str, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert len(read_audio(encode(tone(0.5), format=container), name=name)) == 8_000


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("RF64", "FLOAT"),
        ("AIFF", "PCM_16"), ("AIFF", "IMA_ADPCM"), ("AU", "PCM_16"), ("AU", "G721_32"), ("W64", "PCM_16"),
        ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("NIST", "PCM_16"), ("NIST", "ULAW"), ("VOC", "PCM_16"),
        ("VOC", "PCM_U8"), ("SVX", "PCM_16"), ("AVR", "PCM_16"), ("MAT4", "FLOAT"), ("MAT5", "PCM_16"),
        ("MPC2K", "PCM_16"), ("SDS", "PCM_16"), ("HTK", "PCM_16"), ("WVE", "ALAW"), ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ],
)  # fmt: skip
def test_a_truncated_file_is_refused_and_a_whole_one_read(
    container: str, subtype: str, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    rate = 8_000 if container == "WVE" else RATE
    data = encode(tone(4.0, rate=rate), rate, format=container, subtype=subtype)
    if part == 0.3:
        assert 63_000 <= len(read_audio(data)) < 65_000  # VOC rounds the rate
    kept = int(len(data) * part) if part < 0.999 else len(data) - 300
    message = error_of(data[:kept])
    assert "truncated" in message or "libsndfile" in message


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_a_truncated_mp3_with_a_frame_count_is_refused(part: float) -> None:
    data = encode(tone(4.0), **KINDS["mp3"])
    assert "is truncated: header promises 64000 samples" in error_of(data[: int(len(data) * part)])


def _placeholder(size: int, order: str = "<") -> bytes:
    data = bytearray(encode(tone(1.0, channels=3), format="WAV" if order == "<" else "AIFF", subtype="PCM_16"))
    place = data.index(b"data" if order == "<" else b"SSND") + 4
    data[place : place + 4] = struct.pack(f"{order}I", size)
    return bytes(data)


@pytest.mark.parametrize(
    "size", [0, 2_000_000_000, 0x7FFFFF9B, 0x7FFFFFD3, 0x7FFF0000, 0x80000024, 0xFFFFFFDB, 0xFFFFF000, 0xFFFFFFFE]
)
def test_sizes_of_wav_files_from_a_pipe(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert len(read_audio(_placeholder(size))) == RATE


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7F000008])
def test_sizes_of_aiff_files_from_a_pipe(size: int) -> None:
    assert len(read_audio(_placeholder(size, ">"))) == RATE


def test_rf64_from_a_pipe_states_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    data = bytearray(encode(tone(1.0), format="RF64", subtype="PCM_16"))
    place = data.index(b"ds64") + 8
    data[place : place + 24] = bytes(24)
    assert len(read_audio(bytes(data))) == RATE


@pytest.mark.parametrize("size", [96_006, 1_058_400_000, 1_610_612_730, 2_100_000_006, 3_456_789_012])
def test_a_plausible_size_is_a_promise(size: int) -> None:
    assert "truncated" in error_of(_placeholder(size))


def test_a_stream_that_ends_inside_a_block_is_truncated() -> None:
    assert "truncated" in error_of(_placeholder(0xFFFFFFFF)[:-2])


def test_an_empty_data_chunk_before_others_is_not_a_placeholder() -> None:
    data = encode(np.empty(0, np.float32), format="WAV")
    assert "holds no samples" in error_of(data + b"LIST" + struct.pack("<I4s", 4, b"INFO"))


def test_a_voc_file_of_several_blocks_is_read_completely_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(tone(1.0), format="VOC", subtype="PCM_16")
    start = int.from_bytes(data[20:22], "little")
    size = int.from_bytes(data[start + 1 : start + 4], "little")
    block = data[start : start + 4 + size]
    monkeypatch.setenv("PATH", "")
    assert "several stretches of sound" in error_of(data[:start] + block + block + b"\0")


def _mpeg_frames(head: bytes, size: int, count: int) -> bytes:
    return (head + bytes(size - 4)) * count


@pytest.mark.parametrize(
    ("frames", "samples"),
    [
        (_mpeg_frames(b"\xff\xfb\xe8\xc4", 1440, 40), 40 * 1152 // 2),  # MP3 of 320 kbit/s at 32 kHz
        (_mpeg_frames(b"\xff\xfd\xe8\xc4", 1728, 40), 40 * 1152 // 2),  # MP2 of 384 kbit/s at 32 kHz
    ],
)
def test_mpeg_frames_with_more_bytes_than_samples(frames: bytes, samples: int) -> None:
    assert len(read_audio(frames)) == samples


def test_mp3_inside_wav_has_the_samples_of_its_frames() -> None:
    frames = _mpeg_frames(b"\xff\xfb\xe8\xc4", 1440, 40)
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 32_000, 40_000, 1, 0, 12, 1, 2, 1440, 1, 0)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, 47_000)
    body = b"WAVE" + chunks + b"data" + struct.pack("<I", len(frames)) + frames
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert len(read_audio(data)) == 40 * 1152 // 2
    assert "truncated" in error_of(data[:-5_000])


def test_both_decoders_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ffmpeg") is not None:
        assert "ffmpeg cannot decode it" in error_of(b"not audio" * 100)
        assert "libsndfile: Format not recognised" in error_of(b"not audio" * 100)
    monkeypatch.setenv("PATH", "")
    assert "needs ffmpeg, which is not on the PATH" in error_of(b"not audio" * 100)


@pytest.mark.parametrize("channels", [3, 1_024])
def test_many_channels_need_the_memory_of_one_block(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = soundfile.SoundFile.read

    def remember(self: soundfile.SoundFile, frames: int, **options: object) -> np.ndarray:
        asked.append(frames * self.channels)
        return read(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", remember)
    data = encode(np.zeros((400, channels), np.float32), format="WAV", subtype="PCM_U8")
    assert sum(map(len, decode.stream_audio(data, block_samples=8_192))) == 400
    assert max(asked) <= 8_192


def ffmpeg_output(wave: np.ndarray, *options: str, rate: int = RATE) -> bytes:
    program = shutil.which("ffmpeg")
    assert program is not None
    command = [program, "-nostdin", "-v", "error", "-f", "wav", "-i", "pipe:0", *options, "pipe:1"]
    return subprocess.run(command, input=encode(wave, rate, format="WAV"), stdout=subprocess.PIPE, check=True).stdout


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet contentType="audio">'
    '<Representation id="0" bandwidth="1" mimeType="audio/mp4">'
    "<BaseURL>file:{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "lavfi": "amovie={0}",
    "subtitle": "1\n00:00:00,000 --> 00:00:02,000\n{0}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={0}\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "reference": "[Reference]\nRef1=file:{0}\n",
    "pls": "[playlist]\nFile1=file:{0}\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
}


@needs_ffmpeg
@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".m4a", ".wav"])
def test_no_other_file_is_read_through_a_playlist(kind: str, suffix: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary.ts"
    canary.write_bytes(ffmpeg_output(tone(1.0), "-c:a", "aac", "-f", "mpegts"))
    assert len(read_audio(canary)) > 10_000
    path = tmp_path / f"a{suffix}"
    path.write_text(PLAYLISTS[kind].format(canary))
    with pytest.raises(AudioError):
        read_audio(path)


@needs_ffmpeg
def test_a_name_that_looks_like_an_image_pattern_is_taken_literally(tmp_path: Path) -> None:
    path = tmp_path / "a%d.mka"
    path.write_bytes(ffmpeg_output(tone(1.0), "-c:a", "flac", "-f", "matroska"))
    assert len(read_audio(path)) == RATE


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", ["-c:a", "aac", "-f", "mp4", "-movflags", "frag_keyframe+empty_moov"]),
        ("a.ogg", ["-c:a", "libopus", "-f", "webm"]),
        ("a.ogg", ["-c:a", "flac", "-f", "ogg"]),
        ("a.wav", ["-c:a", "ac3", "-ar", "44100", "-f", "wav"]),
        ("a.flac", ["-c:a", "aac", "-f", "adts"]),
        ("a", ["-c:a", "flac", "-f", "matroska"]),
    ],
)
def test_ffmpeg_ignores_the_suffix(name: str, options: list[str]) -> None:
    read = read_audio(ffmpeg_output(tone(2.0), *options), name=name)
    assert 2 * RATE <= len(read) <= 2 * RATE + 2 * 1_600
    assert abs(pitch_of(read) - 440) <= 2


@needs_ffmpeg
@pytest.mark.parametrize("other", [tone(1.0, 880), tone(1.0, 880, channels=2)])
def test_concatenated_adts_is_read_to_its_end(other: np.ndarray) -> None:
    data = ffmpeg_output(tone(1.0), "-f", "adts") + ffmpeg_output(other, "-f", "adts")
    assert len(read_audio(data)) >= 2 * RATE


@needs_ffmpeg
@pytest.mark.parametrize(
    "options",
    [
        ["-c:a", "flac", "-f", "matroska"],
        ["-c:a", "ac3", "-ar", "44100", "-f", "ac3"],
        ["-c:a", "wmav2", "-f", "asf"],
        ["-c:a", "tta", "-f", "tta"],
        ["-c:a", "wavpack", "-f", "wv"],
        ["-c:a", "flac", "-f", "ogg"],
        ["-c:a", "libmp3lame", "-f", "avi"],
        ["-c:a", "aac", "-f", "mp4", "-movflags", "frag_keyframe+empty_moov", "-frag_duration", "500000"],
    ],
)
def test_truncated_files_of_ffmpeg_are_refused(options: list[str], tmp_path: Path) -> None:
    source, path = tmp_path / "a.wav", tmp_path / "a"
    source.write_bytes(encode(tone(4.0), format="WAV"))
    subprocess.run([str(shutil.which("ffmpeg")), "-nostdin", "-v", "error", "-i", source, *options, path], check=True)
    assert len(read_audio(path)) >= 4 * RATE - 1_600
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 47 // 100])
    assert "a: " in error_of(path.read_bytes())
