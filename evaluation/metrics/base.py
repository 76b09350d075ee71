"""The type of a metric. It imports nothing heavy, because every scoring process imports it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from .pairs import Pair

SPEECH = "speech"


@dataclass(frozen=True)
class Measured:
    """A metric's value for one pair, and its additional columns."""

    value: float
    details: Mapping[str, float | str]


@dataclass(frozen=True)
class Metric:
    """A metric of decoded audio.

    Attributes:
        name: name in tables.
        unit: "" if it has none.
        better: whether higher or lower values are better.
        protocol: how it is computed. An evaluation resumes only with equal protocols.
        score: a picklable function of a Pair; it raises an exception if there is no value.
        modules: modules that it imports.
        install: how to install them.
        speech_only: whether it is skipped in other domains than speech.
        transcript: whether it needs a transcript.
        heavy: whether it loads a large model and therefore runs in a single process.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    protocol: str
    score: Callable[[Pair], float | Measured]
    modules: tuple[str, ...] = ()
    install: str = ""
    speech_only: bool = False
    transcript: bool = False
    heavy: bool = False

    def missing(self) -> str | None:
        """Return what to install if a required module is missing, else None."""
        missing = [module for module in self.modules if find_spec(module) is None]
        return f"{self.name} needs {' and '.join(missing)}: {self.install}" if missing else None

    def applies(self, domain: str, transcript: str | None) -> bool:
        """Return whether the metric applies to a file; an unknown domain, "", may be speech."""
        return (not self.speech_only or domain in (SPEECH, "")) and (not self.transcript or transcript is not None)
