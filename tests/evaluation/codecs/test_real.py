"""Opus, MP3 and Codec2: sizes, bit rates, and removal of their delays."""

import io
import re
import shutil

import numpy as np
import pytest
import soundfile
import soxr

from sctok.evaluation.codecs.opus import opus_payload
from sctok.evaluation.codecs.registry import CodecUnavailable, open_codec

RATE = 16_000


def read(path):
    wave, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return wave


@pytest.fixture(scope="module")
def speech(samples_folder):
    return read(samples_folder / "speech" / "en_conf_only_person.flac")


def lag(decoded, reference):
    """Return the lag of `decoded` in samples: the peak of the cross-correlation."""
    size = 1 << (len(decoded) + len(reference)).bit_length()
    product = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(reference, size))
    peak = int(np.fft.irfft(product, size).argmax())
    return peak if peak < size // 2 else peak - size


def envelope(wave):
    power = np.convolve(wave**2, np.hanning(RATE // 100), "same")
    return np.sqrt(power) - np.sqrt(power).mean()


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


OPUS_TOOLS = [
    "opus:12",
    pytest.param("opus:12,tool=opusenc,frame=60", marks=needs("opusenc")),
    "opus:12,tool=ffmpeg,frame=60",
]


@pytest.mark.parametrize("spec", [*OPUS_TOOLS, "mp3:48", "mp3:64"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_delay_of_a_codec_is_removed(speech, spec, rate):
    assert delay_of(speech, spec, rate) <= 1


def test_the_delay_of_the_smallest_bit_rate_is_removed(speech):
    assert delay_of(speech, "mp3:16", 16_000) <= 1


def delay_of(speech, spec, rate):
    coded = open_codec(spec).roundtrip(soxr.resample(speech, RATE, rate), rate)
    return abs(lag(soxr.resample(coded.samples, coded.sample_rate, RATE), speech))


@needs("c2enc")
@pytest.mark.parametrize("mode", ["3200", "2400", "1600", "1400", "1300", "1200", "700C"])
def test_the_delay_of_codec2_is_removed(speech, mode):
    coded = open_codec(f"codec2:{mode}").roundtrip(speech, RATE)
    delay = lag(envelope(soxr.resample(coded.samples, coded.sample_rate, RATE)), envelope(speech))
    assert abs(delay) <= 0.005 * RATE
    assert len(coded.samples) / coded.sample_rate >= len(speech) / RATE


@needs("c2enc")
@pytest.mark.parametrize(("mode", "rate"), [("3200", 3200), ("1300", 1300), ("700C", 700)])
def test_codec2_has_its_nominal_bit_rate(speech, mode, rate):
    coded = open_codec(f"codec2:{mode}").roundtrip(np.tile(speech, 4), RATE)
    assert coded.payload * 8 / (4 * len(speech) / RATE) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("spec", OPUS_TOOLS)
def test_opus_has_about_the_requested_bit_rate(speech, spec):
    coded = open_codec(spec).roundtrip(np.tile(speech, 3), RATE)
    assert coded.payload * 8 / (3 * len(speech) / RATE) == pytest.approx(12_000, rel=0.15)


def test_the_payload_of_opus_is_the_size_of_its_packets(speech):
    file = io.BytesIO()
    soundfile.write(file, speech, RATE, format="OGG", subtype="OPUS", compression_level=0.99)
    data = file.getvalue()
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    sound = pages[2:]  # OpusHead and OpusTags have a page each
    assert opus_payload(data) == sum(len(page) - 27 - page[26] for page in sound)


@pytest.mark.parametrize("data", [b"RIFF" + bytes(40), b"OggS" + bytes(10)])
def test_data_that_is_not_an_ogg_stream_is_rejected(data):
    with pytest.raises(ValueError, match="not an Ogg stream"):
        opus_payload(data)


@pytest.mark.parametrize("kbps", [8, 16, 32, 48, 160])
def test_the_payload_of_mp3_is_the_size_of_its_audio_frames(speech, kbps):
    coded = open_codec(f"mp3:{kbps}").roundtrip(speech, RATE)
    frames = coded.payload / (kbps * 1000 / 8 * 576 / RATE)
    assert frames == pytest.approx(round(frames), abs=1e-9)
    assert (coded.container > 0) == (kbps > 32)  # LAME's Info frame does not fit into smaller frames


@pytest.mark.parametrize("spec", ["opus:6", "mp3:8", pytest.param("codec2:1200", marks=needs("c2enc"))])
def test_silence_and_a_single_sample_can_be_coded(spec):
    for samples in (1, RATE):
        coded = open_codec(spec).roundtrip(np.zeros(samples, np.float32), RATE)
        assert len(coded.samples) / coded.sample_rate >= samples / RATE
        assert np.abs(coded.samples).max() < 1e-3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("opus:3", "6 to 256 kbit/s"),
        ("opus:many", "bit rate 'many' is not a number"),
        ("opus:6,tool=sox", "tool must be one of soundfile, opusenc, ffmpeg, not 'sox'"),
        ("opus:6,frame=60", "add tool=opusenc"),
        ("opus:6,rate=3", "no option 'rate'"),
        ("mp3:7", "MP3 does not have 7 kbit/s, only 8, 16"),
        ("codec2:9000", "mode must be one of 3200"),
    ],
)
def test_unsupported_settings_are_rejected(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_codec(spec)


def test_an_mp3_bit_rate_unsupported_at_48_khz_is_rejected(speech):
    with pytest.raises(ValueError, match="MP3 at 48000 Hz does not have 8 kbit/s, only 32 to 320"):
        open_codec("mp3:8").roundtrip(speech, 48_000)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("codec2:1200", "install Codec2"), ("opus:6,tool=opusenc", "install opus-tools")],
)
def test_a_missing_program_is_named_with_what_to_install(spec, message, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CodecUnavailable, match=message):
        open_codec(spec)
