"""The interface of a codec under test, the result of a round trip, and the text that names a codec."""

import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
T = TypeVar("T")


class CodecUnavailable(ValueError):
    """Raised if a codec's tool, package or weights are missing; the message says what to install."""


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """The result of coding and decoding one wave.

    Attributes:
        samples: float32 (n,) at `sample_rate` Hz, without the codec's constant delay; n may differ from the input's.
        sample_rate: in Hz.
        bytes: size of everything that was written, None if unknown.
        seconds_encode: wall time, including the start of a program; None if unknown.
        seconds_decode: as `seconds_encode`.
        tokens: number of tokens in all streams, None if the codec has no tokens.
        container: bytes of headers, pages, checksums and padding. Bit rates count `payload`, which excludes them.
    """

    samples: Wave
    sample_rate: int
    bytes: int | None
    seconds_encode: float | None
    seconds_decode: float | None
    tokens: int | None = None
    container: int = 0

    @property
    def payload(self) -> int | None:
        """Bytes without the container, None if unknown."""
        return None if self.bytes is None else self.bytes - self.container


class CodecUnderTest(Protocol):
    """The interface of a codec under test."""

    @property
    def name(self) -> str:
        """Name in tables and files: letters, digits, dots and hyphens."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON values that determine the result. An evaluation resumes only with equal settings."""

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """Encode and decode one wave.

        Args:
            wave: float32 (n,) with full scale at 1, n at least 1.
            sample_rate: in Hz.
            key: key of the file in the evaluation set; `dir:` looks up the decoded file by it.

        Raises:
            ValueError: the wave cannot be coded, or the codec is unavailable (CodecUnavailable).
        """


@dataclass(frozen=True, eq=False)
class NamedCodec:
    """A base class for codecs, with their name and settings; see `CodecUnderTest`."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """The parsed text `family[:value][,option=value…]` that names a codec."""

    text: str
    family: str
    value: str
    options: Mapping[str, str]

    def __post_init__(self) -> None:
        given = self.options.get("name")
        if given is not None and given != plain_name(given):
            raise ValueError(f"codec {self.text!r}: name {given!r} may hold only letters, digits, dots and hyphens")

    @property
    def name(self) -> str:
        """The option `name`; without it, the text as `plain_name` writes it."""
        return self.options.get("name") or plain_name(self.text)

    def option(self, key: str, read: Callable[[str], T], default: T) -> T:
        """Return the option `key` converted by `read`, or `default` without it. Raises ValueError naming the option."""
        return self.read(key, self.options[key], read) if key in self.options else default

    def read(self, key: str, text: str, read: Callable[[str], T]) -> T:
        """Return `text` converted by `read`. Raises ValueError naming the codec and `key`."""
        try:
            return read(text)
        except ValueError:
            raise ValueError(f"codec {self.text!r}: {key} {text!r} is not a number") from None

    def check_options(self, known: Iterable[str]) -> None:
        """Raise ValueError if an option is not in `known`."""
        names = sorted({*known, "name"})
        unknown = sorted(self.options.keys() - set(names))
        if unknown:
            raise ValueError(f"codec {self.text!r} has no option {unknown[0]!r}; its options are {', '.join(names)}")

    def check_choice(self, key: str, value: str, choices: Iterable[str]) -> None:
        """Raise ValueError if `value` is not one of the choices."""
        if value not in choices:
            raise ValueError(f"codec {self.text!r}: {key} must be one of {', '.join(choices)}, not {value!r}")


def plain_name(text: str) -> str:
    """Return text as a name for tables and files: only letters, digits, dots and hyphens."""
    last = Path(text).name if "/" in text and "=" not in text else text
    hyphenated = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in last.replace("=", ""))
    return "-".join(part for part in hyphenated.split("-") if part).strip(".") or "codec"


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split `value,a=1,b=2` into the value and its options."""
    value, options = [], {}
    for part in text.split(","):
        key, equals, option = part.partition("=")
        if equals and key.isidentifier():
            options[key] = option
        elif options:
            raise ValueError(f"{part!r} in the codec options {text!r} is not of the form option=value")
        else:
            value.append(part)
    return ",".join(value), options


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Call a function and return its result and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def sound_file(samples: NDArray[Any], sample_rate: int, **options: Any) -> bytes:
    """Return samples as a sound file in memory, written by libsndfile with the options of `soundfile.write`."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, **options)
    return file.getvalue()


def resampled(wave: Wave, rate: int, wanted: int) -> Wave:
    """Resample float32 (n,) from `rate` to `wanted` Hz at soxr's very high quality."""
    if rate == wanted or not len(wave):
        return wave
    return np.ascontiguousarray(soxr.resample(wave, rate, wanted, quality="VHQ"), np.float32)
