"""Reading audio of any container, rate and channel count as mono float32 at 16 kHz, block by block."""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from .containers import FFMPEG_SUFFIXES, SOUNDFILE_SUFFIXES, check_complete, mp3_states_length
from .errors import AudioError, os_reason
from .ffmpeg import FfmpegReader, find_ffmpeg
from .windows import SAMPLE_RATE

BLOCK_SAMPLES = 65_536
MIN_RATE, MAX_RATE = 1_000, 10_000_000
MAX_MAGNITUDE = 2.0**31  # floats of 32-bit integer range pass; beyond, the power spectrum nears the end of float32
UNKNOWN_LENGTH = 2**63 - 1

_MP3_SLACK_SAMPLES = 2 * 1152  # encoders disagree about the first and the last frame
_MP3_SLACK_PARTS = 100

Source = str | Path | bytes | BinaryIO

__all__ = ["AudioError", "read_audio", "stream_audio"]


class _Reader(Protocol):
    rate: int
    channels: int
    promised: int | None

    def read(self, frames: int) -> NDArray[np.float32]: ...

    def close(self) -> None: ...


class _VirtualFile:
    """A binary file as libsndfile's callbacks need it: whole reads, and no exception out of a callback."""

    def __init__(self, file: BinaryIO, endless: bool = False) -> None:
        self._file = file
        self._endless = endless
        self._at_end = False
        self.failure: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view):
                data = self._file.read(len(view) - done)
                if not data:
                    break
                view[done : done + len(data)] = data
                done += len(data)
        except OSError as error:
            self.failure = error
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = self._endless and whence == os.SEEK_END
        return UNKNOWN_LENGTH if self._at_end else self._file.seek(offset, whence)

    def tell(self) -> int:
        return UNKNOWN_LENGTH if self._at_end else self._file.tell()


class _ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that is only read forwards.

    The base class seeks after each read, which loses the end of FLAC files of unstated length.
    """

    def seekable(self) -> bool:
        return False


class _SoundFileReader:
    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self._virtual: _VirtualFile | None = None
        states_length = mp3_states_length(file)  # before libsndfile relies on the file's position
        self._sound = self._open(file, endless=False)
        if self._sound.format == "MP3" and not states_length:
            # libsndfile guesses the length of such a file from its first frame, and stops there; told that the file
            # has no end, it counts the frames.
            self._sound.close()
            self._sound = self._open(file, endless=True)
        self.rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        frames = self._sound.frames
        self.promised = None if frames >= UNKNOWN_LENGTH else frames

    def _open(self, file: BinaryIO, endless: bool) -> _ForwardSoundFile:
        file.seek(0)
        if isinstance(file, io.FileIO) and not endless:
            self._virtual = None
            return _ForwardSoundFile(file.fileno(), closefd=False)
        self._virtual = _VirtualFile(file, endless)
        return _ForwardSoundFile(self._virtual)

    def read(self, frames: int) -> NDArray[np.float32]:
        """Return the next at most `frames` samples as (n, channels) float32; n is 0 at the end."""
        block: NDArray[np.float32] = self._sound.read(frames, dtype="float32", always_2d=True)
        if self._virtual is not None and self._virtual.failure is not None:
            raise AudioError(self._name, os_reason(self._virtual.failure))
        return block

    def missing(self, read: int) -> int:
        """Return how many promised samples a file that ended after `read` samples lacks."""
        short = max(0, (self.promised or 0) - read)
        if self._sound.format == "MP3" and short <= max(_MP3_SLACK_SAMPLES, read // _MP3_SLACK_PARTS):
            return 0
        return short

    def close(self) -> None:
        self._sound.close()


class Resampler:
    """soxr at its HQ setting, from `rate` to 16 kHz; what comes out does not depend on the sizes of the blocks."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self.taken = 0
        self._given = 0

    def push(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples (n,) and return those that are ready."""
        self.taken += len(mono)
        out = mono if self._stream is None else self._stream.resample_chunk(mono)
        self._given += len(out)
        return out

    def finish(self) -> NDArray[np.float32]:
        """Return the rest, up to ceil(taken · 16000 / rate) samples in all; soxr alone would round that."""
        if self._stream is None:
            return np.empty(0, np.float32)
        total = -(-self.taken * SAMPLE_RATE // self._rate)
        silence = np.zeros(self._rate // SAMPLE_RATE + 2, np.float32)
        tail: NDArray[np.float32] = self._stream.resample_chunk(silence, last=True)[: total - self._given]
        assert self._given + len(tail) == total
        return tail


def stream_audio(
    source: Source, *, name: str | None = None, channel: int | None = None, block_samples: int = BLOCK_SAMPLES
) -> Iterator[NDArray[np.float32]]:
    """Yield the audio of a file as mono float32 blocks (n,) at 16 kHz, n > 0, in memory bounded by `block_samples`.

    `source` is a path, the bytes of a file, or a seekable binary file, which is closed at the end. WAV, FLAC, OGG,
    Opus, MP3, AIFF and other formats of libsndfile are read through it, any other container through ffmpeg. `name`
    stands for the file in messages, and its suffix tells the container where `source` is not a path. All channels
    are mixed down (their mean, in float32), or the one numbered `channel` is taken. A file of n samples at rate r
    gives ceil(n · 16000 / r) samples, the same ones whatever `block_samples`, which is about the number of samples
    read, and given, at a time.

    Raises AudioError, naming the file, if it cannot be opened or decoded, is empty, is shorter than its header
    promises, has no such channel, or holds a sample that is not finite or beyond 2^31 in magnitude. MP3 and Ogg
    files that were cut off without leaving a contradiction in a header are read as far as they go.
    """
    if block_samples < 1 or (channel is not None and channel < 0):
        raise ValueError(f"block_samples={block_samples} must be at least 1, and channel={channel} at least 0")
    is_path = isinstance(source, str | Path)
    name = name or (str(source) if is_path else "audio")
    suffix = Path(str(source) if is_path else name).suffix.lower()
    file = _open_source(source, name)
    try:
        reader = _open_reader(file, str(source) if is_path else None, suffix, name)
        try:
            yield from _resampled_blocks(reader, name, channel, block_samples)
        finally:
            reader.close()
    except OSError as error:
        raise AudioError(name, os_reason(error)) from error
    except soundfile.LibsndfileError as error:
        raise AudioError(name, f"cannot be decoded: {error.error_string}") from error
    finally:
        file.close()


def read_audio(source: Source, *, name: str | None = None, channel: int | None = None) -> NDArray[np.float32]:
    """Return the whole of a file as mono float32 (n,) at 16 kHz; arguments and errors are those of stream_audio."""
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
    """Open a file unbuffered, refusing with AudioError what is not a file; a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):
            raise AudioError(name, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file")
        return open(path, "rb", buffering=0)  # noqa: PTH123
    except OSError as error:
        raise AudioError(name, os_reason(error)) from error


def _open_reader(file: BinaryIO, path: str | None, suffix: str, name: str) -> _Reader:
    container: str | BinaryIO = path if path is not None else file
    if suffix in FFMPEG_SUFFIXES:
        return FfmpegReader(container, name)
    check_complete(file, name)
    try:
        return _SoundFileReader(file, name)
    except soundfile.LibsndfileError as error:
        if suffix in SOUNDFILE_SUFFIXES:
            reason = f"is not {_article(suffix)} file that can be read: {error.error_string}"
            raise AudioError(name, reason) from error
        if find_ffmpeg() is None:
            reason = "is of no format that libsndfile knows, and ffmpeg, which may know it, is not on the PATH"
            raise AudioError(name, reason) from error
    return FfmpegReader(container, name)


def _article(suffix: str) -> str:
    return f"{'an' if suffix[1] in 'aom' else 'a'} {suffix[1:].upper()}"


def _resampled_blocks(
    reader: _Reader, name: str, channel: int | None, block_samples: int
) -> Iterator[NDArray[np.float32]]:
    if not MIN_RATE <= reader.rate <= MAX_RATE:
        raise AudioError(name, f"has a sample rate of {reader.rate} Hz; {MIN_RATE} to {MAX_RATE} Hz can be read")
    if channel is not None and channel >= reader.channels:
        raise AudioError(name, f"has no channel {channel}: it has {reader.channels}, counted from 0")
    resampler = Resampler(reader.rate)
    frames = max(1, min(block_samples // reader.channels, block_samples * reader.rate // SAMPLE_RATE))
    while (block := _read_block(reader, frames, name, resampler.taken)) is not None:
        mono = mix_down(block, channel)
        check_values(mono, resampler.taken, reader.rate, name)
        out = resampler.push(mono)
        if len(out):
            yield out
    if resampler.taken == 0:
        raise AudioError(name, "holds no samples, or its header was never completed")
    tail = resampler.finish()
    if len(tail):
        yield tail


def _read_block(reader: _Reader, frames: int, name: str, taken: int) -> NDArray[np.float32] | None:
    """Return the next block, or None at the end; raise AudioError where the file ends too early."""
    try:
        block = reader.read(frames)
    except soundfile.LibsndfileError as error:
        whole = "" if reader.promised is None else f" of {reader.promised}"
        reason = f"is damaged or truncated after about {taken}{whole} samples: {error.error_string}"
        raise AudioError(name, reason) from error
    if len(block):
        return block
    if isinstance(reader, _SoundFileReader) and reader.missing(taken):
        reason = f"is truncated: header promises {reader.promised} samples, file holds {taken}; fetch it again"
        raise AudioError(name, reason)
    return None


def mix_down(block: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    """Return one channel, or the mean of all where `channel` is None, of samples float32 (n, channels)."""
    if channel is not None or block.shape[1] == 1:
        return np.ascontiguousarray(block[:, channel or 0])
    # Channel by channel, so that a sample's sum does not depend on how many samples are summed beside it.
    with np.errstate(over="ignore", invalid="ignore"):
        total = block[:, 0] + block[:, 1]
        for other in range(2, block.shape[1]):
            total += block[:, other]
        total /= np.float32(block.shape[1])
    return total


def check_values(mono: NDArray[np.float32], first: int, rate: int, name: str) -> None:
    """Raise AudioError naming the first of a file's samples, `first` and on, that is not finite or beyond 2^31."""
    if np.abs(mono).max() <= MAX_MAGNITUDE:
        return
    position = int(np.argmin(np.abs(mono) <= MAX_MAGNITUDE))
    sample = first + position
    reason = f"sample {sample} ({sample / rate:.3f} s) is {mono[position]:g}, not a finite value below 2^31; repair it"
    raise AudioError(name, reason)
