"""The clips of the report: audio as FLAC and spectrograms as PNG, embedded in the page as data URIs."""

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sctok.audio.errors import AudioError
from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.anchors import LowPass
from sctok.evaluation.codecs.base import Wave, sound_file
from sctok.formats.files import FormatError, hash_bytes
from sctok.formats.untrusted.paths import path_inside

from .runs import EvaluationRun, number

ANCHOR_HZ = 3500.0
FRAMES_PER_SECOND = 100
BINS = 96
FFT_SIZE = 1024
RANGE_DB = 80.0
COLOURS = 64
MARKED_HERTZ = (500, 1000, 2000, 4000)


@dataclass(frozen=True)
class Stimulus:
    """One sound of a clip. role: "reference", "anchor" or "codec". problem: why there is no audio, else ""."""

    id: str
    role: str
    name: str
    kbps: float | None = None
    audio: str = ""
    picture: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ReportClip:
    """One file of a run: the reference, the anchor and each codec. levels: spectrograms in dB by name."""

    id: str
    run: str
    key: str
    domain: str
    seconds: float
    stimuli: tuple[Stimulus, ...]
    digest: str
    levels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """The marks of the time axis: their positions from 0 to 1, and their texts."""
        step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60) if self.seconds / step <= 6), 300)
        marks = [(index * step / self.seconds, f"{index * step:g}") for index in range(int(self.seconds / step) + 1)]
        return [(position, text) for position, text in marks if position < 0.97]  # leaves room for the unit


def audio_file(run: EvaluationRun, codec: str | None, key: str) -> Path | None:
    """Return the path of a reference (codec None) or decoded file; None if it is missing or outside the run."""
    try:
        path = path_inside(run.folder / "audio", f"{codec or 'reference'}/{key}", ".flac")
    except FormatError:
        return None
    folder = os.path.realpath(run.folder / "audio")
    return path if path.is_file() and Path(os.path.realpath(path)).is_relative_to(folder) else None


def choose_files(run: EvaluationRun, count: int) -> list[dict[str, Any]]:
    """Choose up to `count` files that have a reference, balanced over domains and spread over the run."""
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for file in run.files:
        if audio_file(run, None, file["key"]):
            by_domain.setdefault(file["domain"], []).append(file)
    shares = dict.fromkeys(by_domain, 0)
    for _ in range(min(count, sum(map(len, by_domain.values())))):
        fewest = min((domain for domain in shares if shares[domain] < len(by_domain[domain])), key=lambda d: shares[d])
        shares[fewest] += 1
    return [
        files[index * len(files) // shares[domain]]
        for domain, files in by_domain.items()
        for index in range(shares[domain])
    ]


def build_clip(run: EvaluationRun, file: Mapping[str, Any], clip_id: str, most_seconds: float) -> ReportClip:
    """Read the reference and all decoded versions of a file, cut to `most_seconds` and to the reference's length.

    A missing or unreadable decoded file becomes a stimulus with a `problem`. Raises AudioError if the reference cannot
    be read.
    """
    key = file["key"]
    path = audio_file(run, None, key)
    if path is None:
        raise AudioError(key, f"the reference is missing in {run.folder}")
    reference, rate = _read(path, most_seconds)
    seconds = len(reference) / rate
    specs = {codec["name"]: codec["spec"] for codec in run.codecs}
    sounds: list[tuple[str, str, Wave | None, int, str]] = [("reference", "reference", reference, rate, "")]
    for name, spec in specs.items():
        role = "anchor" if spec == f"lowpass:{ANCHOR_HZ:g}" else "codec"
        if spec != "original":
            sounds.append((role, name, *_decoded(run, name, key, seconds)))
    if not any(role == "anchor" for role, *_ in sounds):
        sounds.insert(1, ("anchor", f"low-pass {ANCHOR_HZ / 1000:g} kHz", *_anchor(reference, rate)))
    top: float | None = None
    stimuli, levels = [], {}
    for index, (role, name, wave, its_rate, problem) in enumerate(sounds):
        audio = picture = ""
        if wave is not None:
            level = levels_db(wave, its_rate)
            top = float(level.max()) if top is None else top
            levels[name], audio, picture = level, _flac_uri(wave, its_rate), _picture_uri(level, top)
        kbps = number(_score(run, name, key).get("kbps")) if role == "codec" else None
        stimuli.append(Stimulus(f"{clip_id}-{index}", role, name, kbps, audio, picture, problem))
    digest = hash_bytes("".join(stimulus.role + stimulus.name + stimulus.audio for stimulus in stimuli).encode())
    return ReportClip(clip_id, run.name, key, file["domain"], seconds, tuple(stimuli), digest, levels)


def _read(path: Path, most_seconds: float) -> tuple[Wave, int]:
    try:
        with soundfile.SoundFile(path) as file:
            wave = file.read(int(most_seconds * file.samplerate), dtype="float32", always_2d=True).mean(1)
            rate = int(file.samplerate)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(str(path), str(getattr(error, "error_string", None) or error)) from None
    if not len(wave):
        raise AudioError(str(path), "is empty")
    return wave, rate


def _decoded(run: EvaluationRun, codec: str, key: str, seconds: float) -> tuple[Wave | None, int, str]:
    path = audio_file(run, codec, key)
    if path is None:
        error = _score(run, codec, key).get("error")
        return None, 0, f"failed: {error}" if error else "the decoded audio was not kept"
    try:
        wave, rate = _read(path, seconds + 1)
    except AudioError as error:
        return None, 0, f"cannot be read: {error}"
    length = round(seconds * rate)
    return np.pad(wave[:length], (0, max(0, length - len(wave)))), rate, ""


def _anchor(reference: Wave, rate: int) -> tuple[Wave | None, int, str]:
    try:
        return LowPass("anchor", {}, ANCHOR_HZ).roundtrip(reference, rate).samples, rate, ""
    except ValueError as error:
        return None, 0, str(error)


def _score(run: EvaluationRun, codec: str, key: str) -> Mapping[str, str]:
    return next((row for row in run.scores if (row["codec"], row["key"]) == (codec, key)), {})


def levels_db(wave: Wave, rate: int) -> NDArray[np.float32]:
    """Return the mel spectrogram in dB of a wave (n,), float32 (frames, BINS): 100 frames per second, 0 to 8 kHz."""
    import torch

    from sctok.audio.mel import mel_filters, stft_magnitude

    samples = wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE)
    samples = np.pad(samples, (0, max(0, FFT_SIZE - len(samples))))
    magnitude = stft_magnitude(torch.from_numpy(samples)[None], FFT_SIZE, SAMPLE_RATE // FRAMES_PER_SECOND)[0]
    mel = magnitude @ mel_filters(BINS, FFT_SIZE, magnitude.device)
    return np.asarray(20 * mel.clamp_min(1e-6).log10(), np.float32)


def frequency_marks() -> dict[float, float]:
    """Return marked frequencies in Hz and their positions on the mel axis (Slaney's scale), from 0 to 1 at 8 kHz."""

    def mel(frequency: float) -> float:
        linear = frequency / (200 / 3)
        return linear if frequency < 1000 else 15 + float(np.log(frequency / 1000)) * 27 / float(np.log(6.4))

    return {float(frequency): mel(frequency) / mel(SAMPLE_RATE / 2) for frequency in MARKED_HERTZ}


def _flac_uri(wave: Wave, rate: int) -> str:
    data = sound_file(np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(data).decode()


def _picture_uri(levels: NDArray[np.float32], top: float) -> str:
    from matplotlib import colormaps
    from PIL import Image

    shares = np.clip((levels.T[::-1] - top) / RANGE_DB + 1, 0, 1)
    image = Image.fromarray((shares * (COLOURS - 1)).round().astype(np.uint8), "P")
    palette = (colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3] * 255).round().astype(np.uint8)
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
