"""Choosing the decoder of a file: libsndfile link by link, or ffmpeg if libsndfile cannot read all of it."""

import io
from collections.abc import Generator
from contextlib import closing
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from sctok.audio.errors import AudioError, os_reason, truncated

from .containers import LeftToFfmpegError, Link, find_links
from .ffmpeg import FfmpegReader
from .sections import UNKNOWN_LENGTH, SectionFile


class Reader(Protocol):
    """A decoder of one part of a file, with one rate and number of channels."""

    rate: int
    channels: int

    def read(self, frames: int) -> NDArray[np.float32]:
        """Return at most `frames` further samples, float32 (n, channels); n is 0 at the end.

        Raises AudioError if the part cannot be decoded or ends too early.
        """
        ...

    def close(self) -> None:
        """Release the decoder."""
        ...


class _ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that is only read forwards.

    The base class seeks after each read, and so loses the end of FLAC files without a stated length.
    """

    def seekable(self) -> bool:
        return False


class _SoundFileReader:
    def __init__(self, file: BinaryIO, link: Link, name: str) -> None:
        self._name, self._link, self._taken = name, link, 0
        self._section: SectionFile | None = None
        try:
            self._sound = self._open(file)
        except soundfile.LibsndfileError as error:
            raise LeftToFfmpegError(name, error.error_string.strip().rstrip(".")) from error
        self.rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        frames = self._sound.frames
        self._promised = link.promised if frames >= UNKNOWN_LENGTH or link.mpeg else frames
        if (self._sound.format == "MP3") > link.mpeg or (frames < (link.promised or 0) and not link.mpeg):
            self.close()
            raise LeftToFfmpegError(name, f"would be read as {frames} samples of {self._sound.format_info}")

    def _open(self, file: BinaryIO) -> _ForwardSoundFile:
        if isinstance(file, io.FileIO) and self._link.ranges is None:
            file.seek(0)
            return _ForwardSoundFile(file.fileno(), closefd=False)
        ranges = self._link.ranges or ((0, file.seek(0, io.SEEK_END)),)
        self._section = SectionFile(file, ranges, self._link.head, self._link.endless)
        return _ForwardSoundFile(self._section)

    def read(self, frames: int) -> NDArray[np.float32]:
        """See `Reader`."""
        left = (self._promised or 0) - self._taken
        try:
            block = self._sound.read(min(frames, left) if left > 0 else frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            if not self._link.complete or left > 0:
                raise self._damaged(error) from error
            block = np.empty((0, self.channels), np.float32)
        if self._section is not None and self._section.failure is not None:
            raise AudioError(self._name, os_reason(self._section.failure))
        self._taken += len(block)
        if not len(block) and left > self._link.slack:
            raise truncated(self._name, f"{self._promised} samples", f"{self._taken}")
        return block

    def _damaged(self, error: soundfile.LibsndfileError) -> AudioError:
        whole = "" if self._promised is None else f" of {self._promised}"
        reason = f"is damaged or truncated after about {self._taken}{whole} samples: {error.error_string}"
        return AudioError(self._name, reason)

    def close(self) -> None:
        self._sound.close()


def open_readers(file: BinaryIO, name: str) -> Generator[Reader]:
    """Yield a reader for each part of a file in order, and close it before the next one.

    Raises AudioError if no decoder can read the file or its headers promise more than it holds.
    """
    try:
        links = find_links(file, name)
        reader: Reader = _SoundFileReader(file, links[0], name)
    except LeftToFfmpegError as refusal:
        links = [Link()]
        reader = _ffmpeg_reader(file, name, refusal.args[1])
    for link in links[1:]:
        with closing(reader):
            yield reader
        reader = _SoundFileReader(file, link, name)
    with closing(reader):
        yield reader


def _ffmpeg_reader(file: BinaryIO, name: str, refusal: str) -> FfmpegReader:
    try:
        return FfmpegReader(file, name)
    except AudioError as error:
        raise AudioError(name, f"{error.args[1]} (libsndfile: {refusal})") from error
