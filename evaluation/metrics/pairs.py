"""The input of a metric: a reference and the decoded audio, at equal rate and length; and their files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import Wave, resampled, sound_file
from sctok.formats.files import atomic_path

_FULL_SCALE = 32768
_TOLERANCE_SECONDS, _TOLERANCE_SHARE = 0.5, 0.05


@dataclass(frozen=True, eq=False)
class Pair:
    """A reference and an estimate, float32 (n,) at 16 kHz with full scale at 1, and the transcript if it is known."""

    reference: Wave
    estimate: Wave
    transcript: str | None = None

    def __post_init__(self) -> None:
        for name, wave in (("reference", self.reference), ("estimate", self.estimate)):
            if not isinstance(wave, np.ndarray) or wave.dtype != np.float32:
                kind = wave.dtype if isinstance(wave, np.ndarray) else type(wave).__name__
                raise ValueError(f"the {name} must be a float32 array (n,), not {kind}")
        if self.reference.shape != self.estimate.shape or self.reference.ndim != 1:
            shapes = f"{self.reference.shape} and {self.estimate.shape}"
            raise ValueError(f"the waves must have the same shape (n,), not {shapes}; cut or pad the estimate")

    def check_sound(self) -> None:
        """Raise ValueError if one of the waves is digital silence."""
        for name, wave in (("reference", self.reference), ("decoded audio", self.estimate)):
            if not wave.any():
                raise ValueError(f"the {name} is silent")


def length_problem(samples: int, sample_rate: int, seconds: float) -> str | None:
    """Return why the length of decoded audio is wrong; None within half a second or 5 % of the reference."""
    decoded = samples / sample_rate
    if not samples:
        return "the codec returned no samples"
    if abs(decoded - seconds) > max(_TOLERANCE_SECONDS, _TOLERANCE_SHARE * seconds):
        return f"the decoded audio lasts {decoded:.2f} s, the reference {seconds:.2f} s"
    return None


def to_pcm(wave: Wave) -> NDArray[np.int16]:
    """Convert float32 (n,) to 16-bit samples, clipped to full scale. Raises ValueError if a sample is not finite."""
    if not np.isfinite(wave).all():
        raise ValueError("the samples are not all finite")
    return np.clip(np.rint(wave * np.float32(_FULL_SCALE)), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def write_flac(path: Path, pcm: NDArray[np.int16], sample_rate: int) -> None:
    """Write 16-bit samples (n,) as a FLAC file, atomically. Raises DiskFullError, OSError."""
    data = sound_file(pcm, sample_rate, format="FLAC", subtype="PCM_16")  # libsndfile does not report a full disk
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_pcm(path: Path) -> Wave:
    """Read a file written by `write_flac`, float32 (n,)."""
    wave: Wave = soundfile.read(path, dtype="float32")[0]
    return wave


def read_pair(reference: Path, estimate: Path, transcript: str | None = None) -> Pair:
    """Read a reference at 16 kHz and decoded audio of any rate, which is cut or zero-padded at its end."""
    wave = read_pcm(reference)
    decoded, rate = soundfile.read(estimate, dtype="float32")
    decoded = resampled(decoded, rate, SAMPLE_RATE)[: len(wave)]
    return Pair(wave, np.pad(decoded, (0, len(wave) - len(decoded))), transcript)
