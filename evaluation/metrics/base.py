"""What a metric is; free of heavy imports, since each process that scores has them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from .pairs import Pair

SPEECH = "speech"


@dataclass(frozen=True)
class Measured:
    """A metric's value for one pair, and further columns that go with it."""

    value: float
    details: Mapping[str, float | str]


@dataclass(frozen=True)
class Needs:
    """Modules, and what to do where one is not installed."""

    modules: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True)
class Metric:
    """How good decoded audio is, in one respect.

    score: takes a Pair; picklable; raises any exception where there is no value. speech_only: not measured in domains
    of another name. transcript: needs one. heavy: loads a large model, and is therefore run in one process.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    protocol: str
    score: Callable[[Pair], float | Measured]
    needs: Needs = Needs()
    speech_only: bool = False
    transcript: bool = False
    heavy: bool = False

    def missing(self) -> str | None:
        """Return what to do where a module it needs is not installed, else None."""
        lacking = [module for module in self.needs.modules if find_spec(module) is None]
        return f"{self.name} needs {' and '.join(lacking)}: {self.needs.how}" if lacking else None

    def applies(self, domain: str, transcript: str | None) -> bool:
        """Return whether it is measured for a file: speech metrics not outside speech, where the domain is known."""
        return (not self.speech_only or domain in (SPEECH, "")) and (not self.transcript or transcript is not None)
