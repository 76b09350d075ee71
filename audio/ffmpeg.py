"""Decoding through an ffmpeg process, for the containers that libsndfile does not read."""

import os
import re
import shutil
import struct
import subprocess
import tempfile
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import AudioError

_AU_HEADER = struct.Struct(">4s5I")  # magic, data offset, data size, encoding, rate, channels
_SPOOL_BYTES = 1 << 20
_ADDRESS = re.compile(rb" @ 0x[0-9a-f]+")  # of ffmpeg's own objects, another one in each run
_TRUNCATION_SIGNS = ("partial file", "ended prematurely")  # ffmpeg reports these and still exits with 0


def find_ffmpeg() -> str | None:
    """Return the ffmpeg on the PATH, or None."""
    return shutil.which("ffmpeg")


class FfmpegReader:
    """The first audio stream of a file, decoded by ffmpeg at its own rate and channel count.

    ffmpeg writes float32 in the AU container, whose short header carries the rate and the channels, so that one
    process is enough. `source` is a path or a seekable binary file, which is copied to a temporary file for ffmpeg.
    """

    promised: int | None = None

    def __init__(self, source: str | BinaryIO, name: str) -> None:
        program = find_ffmpeg()
        if program is None:
            raise AudioError(
                name, "needs ffmpeg, which is not on the PATH; install ffmpeg or convert the file to WAV or FLAC"
            )
        self._name = name
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._spool = None if isinstance(source, str) else _spool(source)
        try:
            self._process = self._start(program, source if isinstance(source, str) else None)
        except BaseException:
            self._close_files()
            raise
        try:
            self.rate, self.channels = self._read_header()
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, path: str | None) -> subprocess.Popen[bytes]:
        descriptors = [] if self._spool is None else [self._spool.fileno()]
        # The prefix keeps names such as "-y.m4a" or "http:x.m4a" from being taken for something else, and the
        # whitelist keeps playlists inside a file from reaching the network.
        self._url = f"file:{path}" if path is not None else f"file:/dev/fd/{descriptors[0]}"
        options = "-nostdin -hide_banner -loglevel error -threads 1 -protocol_whitelist file".split()  # noqa: SIM905
        output = "-map 0:a:0 -threads 1 -c:a pcm_f32be -f au pipe:1".split()  # noqa: SIM905
        return subprocess.Popen(
            [program, *options, "-i", self._url, *output],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            pass_fds=descriptors,
            process_group=0,  # a Ctrl-C meant for us must not look like a broken file
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
        """Return the next at most `frames` samples as (n, channels) float32; n is 0 at the end."""
        data = self._pipe.read(frames * self.channels * 4)
        if not data:
            self._check_exit()
        whole = len(data) // (4 * self.channels) * self.channels
        return np.frombuffer(data, dtype=">f4", count=whole).astype(np.float32).reshape(-1, self.channels)

    def _check_exit(self) -> None:
        code = self._process.wait()
        text = self._last_messages()
        if code != 0:
            raise AudioError(self._name, f"ffmpeg cannot decode it: {text or f'exit code {code}'}")
        if any(sign in text for sign in _TRUNCATION_SIGNS):
            raise AudioError(self._name, f"is truncated; fetch it again (ffmpeg: {text})")

    def _last_messages(self) -> str:
        """Return the end of what ffmpeg said, the same each time and without the name that the error begins with."""
        size = self._messages.seek(0, os.SEEK_END)
        self._messages.seek(max(0, size - 2000))
        url = os.fsencode(self._url)
        said = _ADDRESS.sub(b"", self._messages.read()).replace(url + b": ", b"").replace(url, b"the input")
        return "; ".join(line.strip() for line in said.decode("utf-8", "replace").splitlines()[-3:])

    def _close_files(self) -> None:
        self._messages.close()
        if self._spool is not None:
            self._spool.close()

    def close(self) -> None:
        """Stop ffmpeg if it still runs and release what it used."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._close_files()


def _spool(source: BinaryIO) -> IO[bytes]:
    """Copy a file to a nameless temporary one: containers such as MP4 are not readable from a pipe."""
    copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        source.seek(0)
        shutil.copyfileobj(source, copy, _SPOOL_BYTES)
        copy.flush()
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy
