"""Codec2, run by its own programs c2enc and c2dec."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .base import NamedCodec, RoundTrip, Spec, Wave, resampled, timed
from .programs import find_tool, run_tool

RATE = 8_000


class _Mode(NamedTuple):
    bits: int  # in a frame; c2enc writes each frame as whole bytes
    samples: int  # in a frame
    delay: int  # lag of the decoded envelope in samples: the median over 40 speech clips, which vary by 5 samples


_MODES = {
    "3200": _Mode(64, 160, 160),
    "2400": _Mode(48, 160, 160),
    "1600": _Mode(64, 320, 160),
    "1400": _Mode(56, 320, 160),
    "1300": _Mode(52, 320, 165),
    "1200": _Mode(48, 320, 160),
    "700C": _Mode(28, 320, 260),
}


@dataclass(frozen=True)
class Codec2(NamedCodec):
    """A mode of Codec2 at 8 kHz; `bytes` is the output of c2enc, `container` the padding of each frame's last byte."""

    mode: str
    encoder: str
    decoder: str

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`."""
        mode = _MODES[self.mode]
        sound = resampled(wave, sample_rate, RATE)
        frames = -(-(len(sound) + mode.delay) // mode.samples)
        padded = np.pad(sound, (0, frames * mode.samples - len(sound)))
        pcm = np.rint(np.clip(padded, -1, 1) * 32767).astype("<i2").tobytes()
        data, encoding = timed(lambda: run_tool([self.encoder, self.mode, "-", "-"], pcm))
        raw, decoding = timed(lambda: run_tool([self.decoder, self.mode, "-", "-"], data))
        decoded = np.frombuffer(raw, "<i2")[mode.delay :].astype(np.float32) / np.float32(32768)
        return RoundTrip(decoded, RATE, len(data), encoding, decoding, None, len(data) - frames * mode.bits // 8)


def open_spec(spec: Spec, device: str) -> Codec2:
    """Open `codec2:MODE`: 3200, 2400, 1600, 1400, 1300, 1200 or 700C bit/s.

    Raises CodecUnavailable if the programs are missing.
    """
    spec.check_options([])
    mode = spec.value.upper() or "1200"
    spec.check_choice("mode", mode, _MODES)
    encoder, decoder = (find_tool(program, "Codec2 (Debian and Ubuntu: codec2)") for program in ("c2enc", "c2dec"))
    what = "what c2enc writes, without a header; container: the bits that fill each frame's last byte"
    settings = {"mode": mode, "sample_rate": RATE, "tool": encoder, "bytes": what}
    return Codec2(spec.name, settings, mode, encoder, decoder)
