"""MP3 by LAME inside libsndfile."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from .base import NamedCodec, RoundTrip, Spec, Wave, resampled, sound_file, timed

# Bit rates of Layer III in kbit/s: MPEG-1 at 32 kHz and above, MPEG-2 and 2.5 below.
_MPEG1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MPEG25_MAX_KBPS = 64
_DELAY = 576 + 529  # of LAME's encoder and of any decoder; decoders remove it if the file has an Info frame


@dataclass(frozen=True)
class Mp3(NamedCodec):
    """MP3 at a constant bit rate; `bytes` is the size of the file, `container` the size of its Info frame."""

    kbps: int

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. Raises ValueError if MP3 does not have the bit rate at the sample rate."""
        rates = sorted(rate for rates in _RATES.values() for rate in rates)
        rate = next((each for each in rates if each >= sample_rate), rates[-1])
        sound = np.clip(resampled(wave, sample_rate, rate), -1, 1)
        data, encoding = timed(lambda: self._encode(sound, rate))
        (decoded, _), decoding = timed(lambda: soundfile.read(io.BytesIO(data), dtype="float32"))
        info = _info_frame(data)
        return RoundTrip(decoded if info else decoded[_DELAY:], rate, len(data), encoding, decoding, None, info)

    def _encode(self, wave: Wave, rate: int) -> bytes:
        lowest, highest = _range(rate)
        if self.kbps not in (_MPEG1 if rate >= 32_000 else _MPEG2) or not lowest <= self.kbps <= highest:
            raise ValueError(f"MP3 at {rate} Hz does not have {self.kbps} kbit/s, only {lowest} to {highest}")
        level = (highest - self.kbps) / (highest - lowest)
        # libsndfile rejects a level of exactly 1; LAME uses the nearest bit rate.
        options = {"compression_level": min(level, 0.9999), "bitrate_mode": "CONSTANT"}
        return sound_file(wave, rate, format="MP3", subtype="MPEG_LAYER_III", **options)


def _range(rate: int) -> tuple[int, int]:
    if rate >= 32_000:
        return _MPEG1[0], _MPEG1[-1]
    return _MPEG2[0], _MPEG2[-1] if rate >= 16_000 else _MPEG25_MAX_KBPS


def _info_frame(data: bytes) -> int:
    """Return the size of the first frame if it is LAME's Info frame, which holds no audio, else 0."""
    version, rate_index = data[1] >> 3 & 3, data[2] >> 2 & 3
    rates = _MPEG1 if version == 3 else _MPEG2
    kbps = rates[(data[2] >> 4) - 1]
    per_frame = 144 if version == 3 else 72
    length = per_frame * kbps * 1000 // _RATES[version][rate_index] + (data[2] >> 1 & 1)
    return length if any(mark in data[:length] for mark in (b"Xing", b"Info")) else 0


def open_spec(spec: Spec, device: str) -> Mp3:
    """Open `mp3:KBPS`: 8, 16, 24 … 160 kbit/s at 16 kHz."""
    spec.check_options([])
    kbps = spec.read("bit rate", spec.value or "16", int)
    if kbps not in {*_MPEG1, *_MPEG2}:
        raise ValueError(
            f"codec {spec.text!r}: MP3 does not have {kbps} kbit/s, only "
            f"{', '.join(map(str, sorted({*_MPEG1, *_MPEG2})))}"
        )
    if "MP3" not in soundfile.available_formats():
        raise ValueError(f"codec {spec.text!r}: this libsndfile cannot write MP3; install soundfile 0.12 or later")
    tool = f"soundfile, libsndfile {soundfile.__libsndfile_version__}"
    return Mp3(spec.name, {"kbps": kbps, "tool": tool, "bytes": "the MP3 file; container: its Info frame"}, kbps)
