"""What every codec under test shares: the interface, what a round trip gives, and how a codec is named."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
T = TypeVar("T")


class CodecUnavailable(ValueError):
    """A codec whose tool, package or weights are not on this machine; the text says what to install."""


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """What a codec makes of one wave.

    samples: float32 (n,) at `sample_rate` Hz, delay removed where it is a constant of the codec; n may differ from the
    input's: whoever compares cuts or fills it. bytes: of all that was written, None where nobody knows. container: how
    many of them are headers, pages, checksums and filling; `payload` leaves them out, and bit rates are made of it.
    seconds_encode, seconds_decode: wall time, starting a program included; None where nobody knows. tokens: in all
    streams, None where the codec has none.
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
        """Bytes without the container."""
        return None if self.bytes is None else self.bytes - self.container


class CodecUnderTest(Protocol):
    """Something that sound can be put through."""

    @property
    def name(self) -> str:
        """What tables and files call it: letters, digits, dots and hyphens."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides the result, as JSON takes it."""

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """Code and decode `wave`, float32 (n,) with full scale at 1, n at least 1.

        key: of the file in the evaluation set; `dir:` looks for the decoded file of that name.
        Raises ValueError (also CodecUnavailable) for one wave that cannot be coded.
        """


@dataclass(frozen=True)
class Spec:
    """`family[:value][,option=value…]`, taken apart."""

    text: str
    family: str
    value: str
    options: Mapping[str, str]

    def __post_init__(self) -> None:
        given = self.options.get("name")
        if given is not None and given != plain_name(given):
            raise ValueError(f"codec {self.text!r}: name {given!r} is not of letters, digits, dots and hyphens")

    @property
    def name(self) -> str:
        """The option `name`, or the text with hyphens for what file names should not hold."""
        return self.options.get("name") or plain_name(self.text)

    def option(self, key: str, read: Callable[[str], T], default: T) -> T:
        """Return an option, read as a number or the like; ValueError naming it where it is none."""
        return self.read(key, self.options[key], read) if key in self.options else default

    def read(self, key: str, text: str, read: Callable[[str], T]) -> T:
        """Return `text` as `read` understands it, or raise ValueError that names the codec."""
        try:
            return read(text)
        except ValueError:
            raise ValueError(f"codec {self.text!r}: {key} {text!r} is not a number") from None

    def check_options(self, known: Iterable[str]) -> None:
        """Raise ValueError for options that are not among `known`."""
        names = sorted({*known, "name"})
        unknown = sorted(self.options.keys() - set(names))
        if unknown:
            raise ValueError(f"codec {self.text!r}: there is no option {unknown[0]!r}; there are {', '.join(names)}")

    def check_choice(self, key: str, value: str, choices: Iterable[str]) -> None:
        """Raise ValueError for a value that is none of the choices."""
        if value not in choices:
            raise ValueError(f"codec {self.text!r}: {key} {value!r} is none of {', '.join(choices)}")


def plain_name(text: str) -> str:
    """Return text as a name for tables and files: what is no letter, digit, dot or hyphen becomes a hyphen."""
    last = Path(text).name if "/" in text and "=" not in text else text
    kept = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in last.replace("=", ""))
    return "-".join(part for part in kept.split("-") if part).strip(".") or "codec"


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Take `value,a=1,b=2` apart; what comes before the first option is the value."""
    value, options = [], {}
    for part in text.split(","):
        key, equals, option = part.partition("=")
        if equals and key.isidentifier():
            options[key] = option
        elif options:
            raise ValueError(f"{part!r} among the options {text!r} of a codec is not of the form option=value")
        else:
            value.append(part)
    return ",".join(value), options


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return what a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def resampled(wave: Wave, rate: int, wanted: int) -> Wave:
    """Return float32 (n,) at another rate, in soxr's very high quality."""
    if rate == wanted or not len(wave):
        return wave
    return np.ascontiguousarray(soxr.resample(wave, rate, wanted, quality="VHQ"), np.float32)
