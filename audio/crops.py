"""Reading a crop from the middle of a file without decoding what precedes it."""

import math

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sctok.audio.decoding.containers import FFMPEG_SUFFIXES, has_seekable_sound
from sctok.audio.decoding.decode import check_values, mix_down, stream_audio
from sctok.audio.decoding.sections import UNKNOWN_LENGTH
from sctok.audio.inputs.sources import AudioItem, open_sound

from .errors import AudioError, os_reason
from .windows import SAMPLE_RATE


def read_crop(item: AudioItem, start: float, samples: int) -> NDArray[np.float32]:
    """Return `samples` samples at 16 kHz, float32 (n,), from `start` seconds on; fewer if the file ends first.

    Files of seekable formats are read from there on; others are decoded from their beginning. If the item is a stretch
    of a file, `start` counts from the beginning of the stretch, and nothing after its end is read.
    Raises AudioError if the file cannot be read.
    """
    if item.start is not None and item.seconds is not None:
        samples = min(samples, max(0, round((item.seconds - start) * SAMPLE_RATE)))
        start += item.start
    if item.suffix not in FFMPEG_SUFFIXES:
        try:
            crop = _seek(item, start, samples)
        except (soundfile.LibsndfileError, OSError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else error.error_string
            raise AudioError(item.name, f"cannot be read from {start:.2f} s on: {reason}") from error
        if crop is not None:
            return crop
    skip, parts, count = round(start * SAMPLE_RATE), list[NDArray[np.float32]](), 0
    for block in stream_audio(item.open(), name=item.name):
        part = block[min(skip, len(block)) :]
        skip -= len(block) - len(part)
        parts.append(part)
        count += len(part)
        if count >= samples:
            break
    return np.concatenate(parts)[:samples] if parts else np.empty(0, np.float32)


def _seek(item: AudioItem, start: float, samples: int) -> NDArray[np.float32] | None:
    """Return the crop, or None if libsndfile cannot seek in the file."""
    with item.open_file() as file:
        if not has_seekable_sound(file):
            return None
        file.seek(0)
        with open_sound(file) as sound:
            if sound.frames >= UNKNOWN_LENGTH:
                return None
            rate = sound.samplerate
            first = round(start * rate)
            sound.seek(min(first, sound.frames))
            block = sound.read(math.ceil(samples * rate / SAMPLE_RATE), dtype="float32", always_2d=True)
    if not len(block):
        return np.empty(0, np.float32)
    mono = mix_down(block, None)
    check_values(mono, first, rate, item.name)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return mono[:samples]
