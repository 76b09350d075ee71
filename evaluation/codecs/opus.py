"""Opus by libsndfile (part of soundfile), by opus-tools or by ffmpeg."""

import io
import struct
from dataclasses import dataclass

import numpy as np
import soundfile

from .base import NamedCodec, RoundTrip, Spec, Wave, resampled, sound_file, timed
from .programs import find_tool, run_tool

RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_MIN_KBPS, _MAX_KBPS = 6.0, 256.0
_FRAMES = ("2.5", "5", "10", "20", "40", "60")
_TOOLS = {"soundfile": "", "opusenc": "opus-tools", "ffmpeg": "ffmpeg"}
_OGG_PAGE = struct.Struct("<4s22xB")
_HEADER_PACKETS = 2  # OpusHead and OpusTags


@dataclass(frozen=True)
class Opus(NamedCodec):
    """Ogg Opus at libopus' variable bit rate, decoded by libsndfile, which removes the pre-skip.

    `bytes` is the size of the Ogg file, `container` everything in it except the audio packets.
    """

    kbps: float
    tool: str
    frame: str

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. The decoded rate is the input's if Opus supports it, else 48 kHz."""
        rate = sample_rate if sample_rate in RATES else RATES[-1]
        sound = np.clip(resampled(wave, sample_rate, rate), -1, 1)
        data, encoding = timed(lambda: self._encode(sound, rate))
        (decoded, decoded_rate), decoding = timed(lambda: soundfile.read(io.BytesIO(data), dtype="float32"))
        return RoundTrip(decoded, decoded_rate, len(data), encoding, decoding, None, len(data) - opus_payload(data))

    def _encode(self, wave: Wave, rate: int) -> bytes:
        if self.tool == "soundfile":
            level = 1 - (self.kbps - _MIN_KBPS) / (_MAX_KBPS - _MIN_KBPS)
            return sound_file(wave, rate, format="OGG", subtype="OPUS", compression_level=level)
        program = find_tool(self.tool, _TOOLS[self.tool])
        if self.tool == "opusenc":
            wav = sound_file(wave, rate, format="WAV", subtype="PCM_24")
            options = ["--quiet", "--bitrate", f"{self.kbps:g}", "--framesize", self.frame, "-", "-"]
            return run_tool([program, *options], wav)
        source = ["-f", "f32le", "-ar", str(rate), "-ac", "1", "-i", "pipe:0"]
        coding = ["-c:a", "libopus", "-b:a", f"{self.kbps:g}k", "-frame_duration", self.frame, "-f", "ogg", "pipe:1"]
        return run_tool([program, "-nostdin", "-loglevel", "error", *source, *coding], wave.astype("<f4").tobytes())


def opus_payload(data: bytes) -> int:
    """Return the bytes of the audio packets of an Ogg Opus file (RFC 3533, RFC 7845). ValueError for other data."""
    packets, open_packet, position = [], 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS" or len(data) < position + _OGG_PAGE.size:
            raise ValueError("not an Ogg stream, or truncated")
        _, segments = _OGG_PAGE.unpack_from(data, position)
        table = data[position + _OGG_PAGE.size : position + _OGG_PAGE.size + segments]
        for length in table:
            open_packet += length
            if length < 255:
                packets.append(open_packet)
                open_packet = 0
        position += _OGG_PAGE.size + segments + sum(table)
    return sum(packets[_HEADER_PACKETS:])


def open_spec(spec: Spec, device: str) -> Opus:
    """Open `opus:KBPS`, 6 to 256, with `tool=soundfile|opusenc|ffmpeg`; the last two also take `frame=` in ms."""
    spec.check_options(["tool", "frame"])
    kbps = spec.read("bit rate", spec.value or "6", float)
    if not _MIN_KBPS <= kbps <= _MAX_KBPS:
        raise ValueError(f"codec {spec.text!r}: Opus supports {_MIN_KBPS:g} to {_MAX_KBPS:g} kbit/s, not {kbps:g}")
    tool, frame = spec.options.get("tool", "soundfile"), spec.options.get("frame", "20")
    spec.check_choice("tool", tool, _TOOLS)
    spec.check_choice("frame", frame, _FRAMES)
    if tool == "soundfile":
        if frame != "20":
            raise ValueError(
                f"codec {spec.text!r}: libsndfile supports only frames of 20 ms; add tool=opusenc or tool=ffmpeg"
            )
        version = f"soundfile, libsndfile {soundfile.__libsndfile_version__}"
    else:
        version = find_tool(tool, _TOOLS[tool])
    what = "the Ogg file; container: all but the Opus packets"
    return Opus(spec.name, {"kbps": kbps, "tool": version, "frame_ms": float(frame), "bytes": what}, kbps, tool, frame)
