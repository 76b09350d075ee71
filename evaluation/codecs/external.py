"""External codecs: any program (`cmd:`), and folders of audio that was decoded elsewhere (`dir:`)."""

import math
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from sctok.formats.untrusted.paths import path_problem

from .base import CodecUnavailable, NamedCodec, RoundTrip, Spec, Wave, plain_name, resampled, split_options, timed
from .programs import TIMEOUT_SECONDS, run_tool

_COMMAND = re.compile(
    r"(?P<name>[A-Za-z0-9.-]+)(?P<options>(?:,(?:kbps|rate|timeout)=[^,=\s]+)*)=(?P<command>.+)", re.S
)
_FILES = {"{in}": "in.wav", "{out}": "out.wav", "{code}": "coded"}
_AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Command(NamedCodec):
    """A program that reads {in}, a 16-bit WAV file, and writes {out}, a file that libsndfile can read.

    `bytes` is the size of {code}, an additional file that the program writes; else it follows from `kbps=`; else it is
    unknown. All of the program's time counts as decoding.
    """

    words: tuple[str, ...]
    kbps: float | None
    rate: int | None
    timeout: float

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. Raises ValueError if the program fails, takes too long or writes no audio."""
        rate = self.rate or sample_rate
        with tempfile.TemporaryDirectory() as folder:
            names = {mark: str(Path(folder) / name) for mark, name in _FILES.items()}
            soundfile.write(names["{in}"], np.clip(resampled(wave, sample_rate, rate), -1, 1), rate, "PCM_16")
            words = [re.sub(r"\{(in|out|code)\}", lambda mark: names[mark[0]], word) for word in self.words]
            _, seconds = timed(lambda: run_tool(words, timeout=self.timeout))
            out, code = Path(names["{out}"]), Path(names["{code}"])
            if not out.is_file():
                raise ValueError(f"{self.name}: the command succeeded but wrote no {{out}}")
            decoded, decoded_rate = _read(out, f"{self.name}: the file {{out}} of the command")
            written = _stated_bytes(self.kbps, len(wave) / sample_rate)
            if any("{code}" in word for word in self.words):
                if not code.is_file():
                    raise ValueError(f"{self.name}: the command succeeded but wrote no {{code}}")
                written = code.stat().st_size
        return RoundTrip(decoded, decoded_rate, written, None, seconds)


@dataclass(frozen=True)
class DecodedFolder(NamedCodec):
    """A folder of audio that was decoded elsewhere: FOLDER/KEY.wav, .flac, .ogg, .opus or .mp3. Times are unknown.

    `bytes` is the size of FOLDER/KEY.SUFFIX with `code=SUFFIX`; else it follows from `kbps=`; else it is unknown.
    """

    folder: Path
    kbps: float | None
    code: str | None

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. Raises ValueError if the folder has no file for the key."""
        if problem := path_problem(key):
            raise ValueError(f"{self.folder}: the key {key!r:.200} cannot be a file name: it {problem}")
        paths = [self.folder / f"{key}{suffix}" for suffix in _AUDIO_SUFFIXES]
        found = next((path for path in paths if path.is_file() and path.suffix[1:] != self.code), None)
        if found is None:
            raise ValueError(f"{self.folder}: has no decoded file {key} ({', '.join(_AUDIO_SUFFIXES)})")
        decoded, rate = _read(found, str(found))
        written = _stated_bytes(self.kbps, len(wave) / sample_rate)
        if self.code is not None:
            coded = self.folder / f"{key}.{self.code}"
            if not coded.is_file():
                raise ValueError(f"{coded} is missing, so the bit rate is unknown; give it with kbps=")
            written = coded.stat().st_size
        return RoundTrip(decoded, rate, written, None, None)


def _read(path: Path, what: str) -> tuple[Wave, int]:
    """Return mono float32 (n,) and the file's own sample rate."""
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{what} cannot be read as audio: {error.error_string}") from None
    return wave.mean(axis=1), rate


def _stated_bytes(kbps: float | None, seconds: float) -> int | None:
    return None if kbps is None else round(kbps * 125 * seconds)


def open_spec(spec: Spec, device: str) -> Command | DecodedFolder:
    """Open `cmd:NAME[,kbps=][,rate=][,timeout=]=PROGRAM {in} {out}` or `dir:FOLDER[,kbps=][,code=SUFFIX]`.

    The command is split like in a shell, but runs without one. `rate=` is the sample rate of {in} in Hz.
    Raises CodecUnavailable if the program is missing.
    """
    return _open_command(spec) if spec.family == "cmd" else _open_folder(spec)


def _open_command(spec: Spec) -> Command:
    found = _COMMAND.fullmatch(spec.value)
    if found is None:
        raise ValueError(f"codec {spec.text!r} is not of the form 'cmd:NAME=PROGRAM {{in}} {{out}}'")
    options = split_options(found["options"].lstrip(","))[1]
    head = Spec(spec.text, spec.family, "", options)
    try:
        words = tuple(shlex.split(found["command"]))
    except ValueError as error:
        raise ValueError(f"codec {spec.text!r}: the command cannot be split into words: {error}") from None
    for mark in ("{in}", "{out}"):
        if not any(mark in word for word in words):
            raise ValueError(f"codec {spec.text!r}: the command lacks {mark}")
    if shutil.which(words[0]) is None:
        raise CodecUnavailable(f"codec {spec.text!r}: the program {words[0]} is missing; install it or give its path")
    rate = head.option("rate", int, None)
    kbps, timeout = _positive(head, "kbps"), _positive(head, "timeout") or TIMEOUT_SECONDS
    if rate is not None and not 1_000 <= rate <= 384_000:
        raise ValueError(f"codec {spec.text!r}: rate must be between 1000 and 384000 Hz")
    what = "those of {code}" if "{code}" in found["command"] else "as stated" if kbps else "unknown"
    settings = {"command": found["command"], "kbps": kbps, "rate": rate, "bytes": what}
    return Command(found["name"], settings, words, kbps, rate, timeout)


def _open_folder(spec: Spec) -> DecodedFolder:
    spec.check_options(["kbps", "code"])
    folder, code = Path(spec.value), spec.options.get("code")
    if not spec.value or not folder.is_dir():
        raise ValueError(f"codec {spec.text!r}: {spec.value!r} is not a folder")
    kbps = _positive(spec, "kbps")
    code = code.lstrip(".") if code else None
    what = f"of the .{code} files" if code else "as stated" if kbps else "unknown"
    settings = {"folder": str(folder), "kbps": kbps, "code": code, "bytes": what}
    return DecodedFolder(spec.options.get("name") or plain_name(folder.resolve().name), settings, folder, kbps, code)


def _positive(spec: Spec, key: str) -> float | None:
    number = spec.option(key, float, None)
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"codec {spec.text!r}: {key} must be above 0, not {number:g}")
    return number
