"""Decoding with ffmpeg, for containers that libsndfile cannot read."""

import io
import os
import re
import shutil
import struct
import subprocess
import tempfile
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sctok.audio.errors import AudioError, truncated

# Containers that hold their own sound: no playlists, lists of pictures, scripts or devices.
FORMATS = (  # noqa: SIM905
    "aac ac3 aiff amr ape asf au avi avr caf dts dtshd eac3 epaf flac flv iff ircam loas matroska mlp mmf mov mp3 mpc "
    "mpc8 mpeg mpegts nistsphere nut ogg pvf rm sds sox tak truehd tta voc w64 wav wv xwma"
).split()

_AU_HEADER = struct.Struct(">4s5I")  # magic, data offset, data size, encoding, rate, channels
_SPOOL_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 20
_MAX_ALLOCATION = 1 << 30
_ADDRESS = re.compile(r"\[[^][]* @ 0x[0-9a-f]+\] |@ 0x[0-9a-f]+")  # of objects in ffmpeg, different in each run
_LEVEL = re.compile(r"\[(error|fatal|panic)\] ")
# Messages of ffmpeg about lost sound, after which it still exits with 0.
_LOSS = re.compile(
    r"partial file|ended prematurely|incomplete frame|truncat|error while decoding|decoding error|error submitting"
    r"|error during demuxing|invalid data found|crc mismatch|not yet implemented|change is not supported",
    re.IGNORECASE,
)
_TRUNCATION = re.compile(r"partial file|ended prematurely|incomplete frame|truncat", re.IGNORECASE)
_DURATION = re.compile(r"^\[info\]   Duration: (\d+):(\d\d):(\d\d\.\d+), ", re.MULTILINE)
_STREAM = re.compile(r"^\[info\] +Stream #0:\d+(?!.*\(attached pic\))", re.MULTILINE)
_SLACK_SECONDS, _SLACK_PARTS = 0.25, 100  # encoders disagree about the first and the last frame


class FfmpegReader:
    """Read the first audio stream of a file, decoded by ffmpeg at its own rate and channel count.

    ffmpeg writes float32 in the AU container, whose header states the rate and the channels; if they change within the
    stream, ffmpeg converts to the first ones. A `file` without a descriptor is copied to a temporary file. ffmpeg sees
    no suffix, so that the content decides, and opens only FORMATS, none of which makes it open another file.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        program = shutil.which("ffmpeg")
        if program is None:
            reason = "needs ffmpeg, which is not on the PATH; install ffmpeg or convert the file to WAV or FLAC"
            raise AudioError(name, reason)
        self._name = name
        self._taken = 0
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._spool = None if isinstance(file, io.FileIO) else _spool(file)
        try:
            self._process = self._start(program, self._spool or file)
        except BaseException:
            self._close_files()
            raise
        try:
            self.rate, self.channels = self._read_header()
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, file: IO[bytes]) -> subprocess.Popen[bytes]:
        file.seek(0)
        self._url = f"file:/dev/fd/{file.fileno()}"
        options = f"-nostdin -hide_banner -nostats -loglevel level+info -threads 1 -max_alloc {_MAX_ALLOCATION}".split()
        limits = ["-protocol_whitelist", "file", "-format_whitelist", ",".join(FORMATS)]
        output = "-map 0:a:0 -map_metadata -1 -threads 1 -c:a pcm_f32be -f au pipe:1".split()  # noqa: SIM905
        return subprocess.Popen(
            [program, *options, *limits, "-i", self._url, *output],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            pass_fds=[file.fileno()],
            process_group=0,  # Ctrl-C must not reach ffmpeg: the file would look broken
        )

    def _read_header(self) -> tuple[int, int]:
        head = self._pipe.read(_AU_HEADER.size)
        if len(head) < _AU_HEADER.size:
            self._check_exit()
            raise AudioError(self._name, "ffmpeg found no audio in it")
        magic, offset, _, encoding, rate, channels = _AU_HEADER.unpack(head)
        assert (magic, encoding) == (b".snd", 6), head
        self._pipe.read(offset - _AU_HEADER.size)
        return rate, channels

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def read(self, frames: int) -> NDArray[np.float32]:
        """Return at most `frames` further samples, float32 (n, channels); n is 0 at the end."""
        data = self._pipe.read(frames * self.channels * 4)
        if not data:
            self._check_exit()
        whole = len(data) // (4 * self.channels) * self.channels
        self._taken += whole // self.channels
        return np.frombuffer(data, dtype=">f4", count=whole).astype(np.float32).reshape(-1, self.channels)

    def _check_exit(self) -> None:
        """Raise AudioError unless ffmpeg decoded the whole stream."""
        code = self._process.wait()
        text = self._said()
        errors = [line for line in text.splitlines() if _LEVEL.search(line)]
        said = "; ".join(_LEVEL.sub("", _ADDRESS.sub("", line)).strip() for line in errors[:3])
        if any("Format not on whitelist" in line for line in errors):
            raise AudioError(self._name, "has a format that sctok does not read with ffmpeg; convert it to WAV or FLAC")
        if code != 0:
            raise AudioError(self._name, f"ffmpeg cannot decode it: {said or f'exit code {code}'}")
        if any(_TRUNCATION.search(line) for line in errors):
            raise AudioError(self._name, f"is truncated; fetch it again (ffmpeg: {said})")
        if any(_LOSS.search(line) for line in errors):
            raise AudioError(self._name, f"is damaged or truncated (ffmpeg: {said})")
        seconds, stated = self._taken / self.rate if self._taken else 0.0, _stated_seconds(text)
        if self._taken and stated - seconds > max(_SLACK_SECONDS, stated / _SLACK_PARTS):
            raise truncated(self._name, f"{stated:.2f} s", f"{seconds:.2f} s")

    def _said(self) -> str:
        """Return the first and the last messages of ffmpeg, without the name of the file."""
        size = self._messages.seek(0, os.SEEK_END)
        self._messages.seek(0)
        text = self._messages.read(_MESSAGE_BYTES)
        self._messages.seek(max(self._messages.tell(), size - _MESSAGE_BYTES))
        text += self._messages.read(_MESSAGE_BYTES)
        plain = text.decode("utf-8", "replace")
        for url in (self._url, self._url.removeprefix("file:")):
            plain = plain.replace(f"{url}: ", "").replace(url, "the input")
        return plain

    def _close_files(self) -> None:
        self._messages.close()
        if self._spool is not None:
            self._spool.close()

    def close(self) -> None:
        """Stop ffmpeg if it still runs, and close all files."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._close_files()


def _stated_seconds(text: str) -> float:
    """Return the duration in the header of a file with one stream; 0 if it states none."""
    opening = text.partition("[info] Stream mapping:")[0]
    found = _DURATION.search(opening)
    if found is None or "Estimating duration" in opening or len(_STREAM.findall(opening)) != 1:
        return 0.0
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _spool(source: BinaryIO) -> IO[bytes]:
    """Copy a file to an unnamed temporary file: containers such as MP4 cannot be read from a pipe."""
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        source.seek(0)
        shutil.copyfileobj(source, copy, _SPOOL_BYTES)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy
