"""The anchors of a listening test: the original, and the original without its high frequencies."""

import math
from dataclasses import dataclass

import numpy as np

from .base import NamedCodec, RoundTrip, Spec, Wave, timed

_STOP_RATIO = 8 / 7  # ITU-R BS.1534: an anchor that passes 3.5 kHz stops 4 kHz
_STOP_DB = 60.0
_PCM_BYTES = 2


@dataclass(frozen=True)
class Original(NamedCodec):
    """The unchanged wave; `bytes` is its size as 16-bit PCM."""

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`."""
        return RoundTrip(np.array(wave, np.float32), sample_rate, len(wave) * _PCM_BYTES, 0.0, 0.0)


@dataclass(frozen=True)
class LowPass(NamedCodec):
    """A linear-phase low-pass without delay: flat (0.01 dB) up to `hz`, -60 dB from 8/7 of `hz` on."""

    hz: float

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`; `bytes` is the size as 16-bit PCM. Raises ValueError if the sample rate is too low."""
        stop = self.hz * _STOP_RATIO
        if stop >= sample_rate / 2:
            raise ValueError(f"a low-pass at {self.hz:g} Hz changes nothing at a sample rate of {sample_rate} Hz")
        filtered, seconds = timed(lambda: _filter(wave, _taps(self.hz / sample_rate, stop / sample_rate)))
        return RoundTrip(filtered, sample_rate, len(wave) * _PCM_BYTES, 0.0, seconds)


def _taps(passed: float, stop: float) -> Wave:
    """Return the taps of a Kaiser-windowed low-pass; `passed` and `stop` are in cycles per sample."""
    from scipy.signal import firwin, kaiser_beta

    half = math.ceil((_STOP_DB - 7.95) / (28.72 * (stop - passed)))
    return np.asarray(firwin(2 * half + 1, passed + stop, window=("kaiser", kaiser_beta(_STOP_DB))), np.float32)


def _filter(wave: Wave, taps: Wave) -> Wave:
    half = len(taps) // 2
    return np.convolve(wave, taps)[half : half + len(wave)].astype(np.float32)


def open_spec(spec: Spec, device: str) -> Original | LowPass:
    """Open `original` or `lowpass:HZ` (default 3,500)."""
    spec.check_options([])
    if spec.family == "original":
        if spec.value:
            raise ValueError(f"codec {spec.text!r}: the original takes no value")
        return Original(spec.name, {"bytes": "16-bit PCM"})
    hz = spec.read("frequency", spec.value or "3500", float)
    if not 20 <= hz <= 100_000:
        raise ValueError(f"codec {spec.text!r}: the frequency must be between 20 and 100000 Hz")
    return LowPass(spec.name, {"hz": hz, "bytes": "16-bit PCM"}, hz)
