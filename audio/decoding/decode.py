"""Decoding audio of any container, rate and channel count to mono float32 at 16 kHz, block by block."""

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from sctok.audio.errors import AudioError, os_reason
from sctok.audio.windows import SAMPLE_RATE

from .readers import Reader, open_readers

BLOCK_SAMPLES = 65_536
MIN_RATE, MAX_RATE = 1_000, 10_000_000
MAX_MAGNITUDE = 2.0**31  # the range of 32-bit integers; the power spectrum of larger values may overflow float32

Source = str | Path | bytes | BinaryIO


class Resampler:
    """Resample from `rate` to 16 kHz with soxr at its HQ setting; the output does not depend on the block sizes."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self.taken = 0
        self._given = 0

    def push(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the next samples (n,) and return the output that is ready."""
        self.taken += len(mono)
        out = mono if self._stream is None else self._stream.resample_chunk(mono)
        self._given += len(out)
        return out

    def finish(self) -> NDArray[np.float32]:
        """Return the remaining output. The total is ceil(taken · 16000 / rate), which soxr would round."""
        if self._stream is None:
            return np.empty(0, np.float32)
        total = -(-self.taken * SAMPLE_RATE // self.rate)
        silence = np.zeros(self.rate // SAMPLE_RATE + 2, np.float32)
        tail: NDArray[np.float32] = self._stream.resample_chunk(silence, last=True)[: total - self._given]
        assert self._given + len(tail) == total
        return tail


def stream_audio(
    source: Source, *, name: str | None = None, channel: int | None = None, block_samples: int = BLOCK_SAMPLES
) -> Iterator[NDArray[np.float32]]:
    """Yield the audio of a file as mono blocks, float32 (n,) at 16 kHz with n > 0, in bounded memory.

    `source` is a path, the bytes of a file, or a seekable binary file, which is closed at the end; `name` is its name
    in errors. The content, not the suffix, decides the format: libsndfile decodes WAV, FLAC, OGG, Opus, MP3, AIFF
    and others, ffmpeg decodes the containers in `ffmpeg.FORMATS`. The result is the mean of all channels in float32,
    or the channel numbered `channel`. A file of n samples at rate r gives ceil(n · 16000 / r) samples, which do not
    depend on `block_samples`, the approximate size of a block.

    Chained Ogg, FLAC, MP3 and WAV files are read to the last link, each at its own rate and with its own channels. MP3
    and FLAC are read beyond a stated length. A WAV size of 0, a round one, or one near 2 or 4 GiB is ignored if whole
    blocks follow it, because programs that write into pipes state such sizes.

    Raises AudioError if the file cannot be opened or decoded, is empty, is shorter than its header promises, lacks the
    channel or the last page of an Ogg stream, or holds a sample that is not finite or beyond 2^31 in magnitude.
    Truncated files of formats that state no length are read to their end: MP3 without a Xing, Info or VBRI header,
    IRCAM, PAF, PVF, XI, and files that ffmpeg reads without an error, such as MPEG-TS.
    """
    if block_samples < 1 or (channel is not None and channel < 0):
        raise ValueError(f"block_samples={block_samples} must be at least 1, and channel={channel} at least 0")
    name = name or (str(source) if isinstance(source, str | Path) else "audio")
    file = _open_source(source, name)
    try:
        with closing(open_readers(file, name)) as readers:
            yield from _resampled_blocks(readers, name, channel, block_samples)
    except OSError as error:
        raise AudioError(name, os_reason(error)) from error
    finally:
        file.close()


def read_audio(source: Source, *, name: str | None = None, channel: int | None = None) -> NDArray[np.float32]:
    """Return a whole file as mono float32 (n,) at 16 kHz; it takes the arguments and raises the errors of
    `stream_audio`.
    """
    return np.concatenate(list(stream_audio(source, name=name, channel=channel)))


def _open_source(source: Source, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
    elif isinstance(source, str | Path):
        file = open_regular(source, name)
    else:
        file = source
    if file.seek(0, os.SEEK_END) == 0:
        file.close()
        raise AudioError(name, "is empty (0 bytes)")
    return file


def open_regular(path: str | Path, name: str) -> BinaryIO:
    """Open a regular file unbuffered. Raises AudioError for anything else: a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):
            raise AudioError(name, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file")
        return open(path, "rb", buffering=0)  # noqa: PTH123
    except OSError as error:
        raise AudioError(name, os_reason(error)) from error


def _resampled_blocks(
    readers: Iterable[Reader], name: str, channel: int | None, block_samples: int
) -> Iterator[NDArray[np.float32]]:
    resampler, taken = None, 0
    for reader in readers:
        _check_reader(reader, name, channel)
        if resampler is None or resampler.rate != reader.rate:
            if resampler is not None and len(tail := resampler.finish()):
                yield tail
            resampler = Resampler(reader.rate)
        frames = max(1, min(block_samples // reader.channels, block_samples * reader.rate // SAMPLE_RATE))
        while len(block := reader.read(frames)):
            mono = mix_down(block, channel)
            check_values(mono, taken, reader.rate, name)
            taken += len(mono)
            out = resampler.push(mono)
            if len(out):
                yield out
    if taken == 0 or resampler is None:
        raise AudioError(name, "holds no samples, or its header was never completed")
    if len(tail := resampler.finish()):
        yield tail


def _check_reader(reader: Reader, name: str, channel: int | None) -> None:
    if not MIN_RATE <= reader.rate <= MAX_RATE:
        raise AudioError(name, f"has a sample rate of {reader.rate} Hz; {MIN_RATE} to {MAX_RATE} Hz can be read")
    if channel is not None and channel >= reader.channels:
        raise AudioError(name, f"has no channel {channel}: it has {reader.channels}, counted from 0")


def mix_down(block: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    """Return one channel of samples float32 (n, channels), or the mean of all channels if `channel` is None."""
    if channel is not None or block.shape[1] == 1:
        return np.ascontiguousarray(block[:, channel or 0])
    # Channel by channel, so that the sum of a sample does not depend on the size of the block.
    with np.errstate(over="ignore", invalid="ignore"):
        total = block[:, 0] + block[:, 1]
        for other in range(2, block.shape[1]):
            total += block[:, other]
        total /= np.float32(block.shape[1])
    return total


def check_values(mono: NDArray[np.float32], first: int, rate: int, name: str) -> None:
    """Raise AudioError for the first sample that is not finite or beyond 2^31. `first`: the index of mono[0]."""
    if np.abs(mono).max() <= MAX_MAGNITUDE:
        return
    position = int(np.argmin(np.abs(mono) <= MAX_MAGNITUDE))
    sample = first + position
    reason = f"sample {sample} ({sample / rate:.3f} s) is {mono[position]:g}, not a finite value below 2^31; repair it"
    raise AudioError(name, reason)
