"""What a metric is given: a reference and what a codec made of it, at one rate and of one length."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import Wave, resampled
from sctok.formats.files import atomic_path

_FULL_SCALE = 32768
_SLACK_SECONDS, _SLACK_PART = 0.5, 0.05


@dataclass(frozen=True, eq=False)
class Pair:
    """Two waves, float32 (n,) at 16 kHz with full scale at 1, and the text that is spoken, where it is known."""

    reference: Wave
    estimate: Wave
    transcript: str | None = None

    def __post_init__(self) -> None:
        for name, wave in (("reference", self.reference), ("estimate", self.estimate)):
            if not isinstance(wave, np.ndarray) or wave.dtype != np.float32:
                what = wave.dtype if isinstance(wave, np.ndarray) else type(wave).__name__
                raise ValueError(f"the {name} must be a float32 array (n,), not {what}")
        if self.reference.shape != self.estimate.shape or self.reference.ndim != 1:
            shapes = f"{self.reference.shape} and {self.estimate.shape}"
            raise ValueError(f"waves {shapes} are not of one shape (n,); cut or fill the second one")

    @cached_property
    def at_48_khz(self) -> tuple[Wave, Wave]:
        """Both waves at 48 kHz (soxr, very high quality)."""
        return resampled(self.reference, SAMPLE_RATE, 48_000), resampled(self.estimate, SAMPLE_RATE, 48_000)

    def check_sound(self) -> None:
        """Raise ValueError where one of the waves is silent throughout."""
        for name, wave in (("reference", self.reference), ("decoded audio", self.estimate)):
            if not wave.any():
                raise ValueError(f"the {name} is silent")


def length_problem(samples: int, sample_rate: int, seconds: float) -> str | None:
    """Return what is wrong with the length of decoded audio, or None within half a second or 5 % of the reference."""
    got = samples / sample_rate
    if not samples:
        return "the codec returned no samples"
    if abs(got - seconds) > max(_SLACK_SECONDS, _SLACK_PART * seconds):
        return f"the decoded audio lasts {got:.2f} s, the reference {seconds:.2f} s"
    return None


def to_pcm(wave: Wave) -> NDArray[np.int16]:
    """Return float32 (n,) as 16-bit samples, those beyond full scale clipped. Raises ValueError where one is NaN."""
    if not np.isfinite(wave).all():
        raise ValueError("the samples are not all finite")
    return np.clip(np.rint(wave * np.float32(_FULL_SCALE)), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def write_flac(path: Path, pcm: NDArray[np.int16], sample_rate: int) -> None:
    """Write 16-bit samples (n,) as a FLAC file, atomically. Raises DiskFullError, OSError."""
    data = io.BytesIO()  # libsndfile says nothing of what a full disk does not take
    soundfile.write(data, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def read_pcm(path: Path) -> Wave:
    """Return the samples of a file that `write_flac` wrote, float32 (n,)."""
    wave: Wave = soundfile.read(path, dtype="float32")[0]
    return wave


def read_pair(reference: Path, estimate: Path, transcript: str | None = None) -> Pair:
    """Read a reference at 16 kHz and decoded audio of any rate; the latter is cut or filled with zeros at its end."""
    wave, _ = soundfile.read(reference, dtype="float32")
    other, rate = soundfile.read(estimate, dtype="float32")
    other = resampled(other, rate, SAMPLE_RATE)[: len(wave)]
    return Pair(wave, np.pad(other, (0, len(wave) - len(other))), transcript)
