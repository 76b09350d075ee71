"""Settings, stored results, intervals and verdicts for the benchmarks of the paper's tables."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.formats.files import hash_json, read_json, write_json

RESAMPLES = 2000
DOMAINS = ("speech", "music", "general")
TASKS = {
    "speech_digit": "speech",
    "music_instrument12": "music",
    "music_drum_type": "music",
    "general_events": "general",
}
QUICK_TASKS = ("music_drum_type",)

Values = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval from a bootstrap over clips."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def to_json(self) -> dict[str, float]:
        """Return the interval as a JSON object."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def held(self, better: str = "higher") -> str:
        """Return the verdict on the claim that a difference is above 0, or below 0 if lower is better."""
        low, high = (self.low, self.high) if better == "higher" else (-self.high, -self.low)
        return "held" if low > 0 else "did not hold: the opposite was found" if high < 0 else "was not decided"


def bootstrap(parts: Sequence[Values], weights: Sequence[Values] | None = None, seed: int = 0) -> Interval:
    """Return the mean over parts (tasks, domains) of the means over their clips, resampled clip by clip.

    parts: float (n_i,), one number per clip. weights: of the clips, 1 if None.
    """
    rng = np.random.default_rng(seed)
    weights = weights or [np.ones(len(part)) for part in parts]
    pairs = [(np.asarray(p, np.float64), np.asarray(w, np.float64)) for p, w in zip(parts, weights, strict=True)]

    def mean(draw: Callable[[int], Any]) -> float:
        found = []
        for values, weight in pairs:
            rows = draw(len(values))
            found.append((values[rows] * weight[rows]).sum() / weight[rows].sum())
        return float(np.mean(found))

    drawn = [mean(lambda n: rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(mean(lambda n: slice(None)), float(low), float(high))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all these benchmarks."""
    parser.add_argument("audio", type=Path, help="folder with speech/, music/, general/ and tasks/*.csv")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("paper-work"),
        help="folder of intermediate results, from which the next call resumes",
    )
    parser.add_argument("--out", type=Path, default=Path("paper-results"), help="folder to write the tables to")
    parser.add_argument("--quick", action="store_true", help="use small settings that only show that the command runs")
    parser.add_argument("--seed", type=int, default=0)


def say(text: str) -> None:
    """Write a line of progress to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def kept(folder: Path, name: str, settings: Any, compute: Callable[[], Any]) -> Any:
    """Return the JSON result of an earlier call with the same settings, or compute and store it."""
    path = folder / f"{name}-{hash_json(settings)}.json"
    if not path.exists():
        say(name)
        write_json(path, {"settings": settings, "result": compute()})
    return read_json(path)["result"]


@dataclass
class Report:
    """A result file: tables in Markdown, the same values as JSON, and one sentence for each claim."""

    name: str
    title: str
    settings: dict[str, Any]
    parts: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    claims: list[dict[str, str]] = field(default_factory=list)

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table. Intervals are written as mean [low, high]."""
        lines = ["| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *rows)]
        self.parts += [f"**{name}**", "\n".join(lines)]
        plain = [[cell.to_json() if isinstance(cell, Interval) else cell for cell in row] for row in rows]
        self.values[name] = {"header": list(header), "rows": plain}

    def claim(self, text: str, verdict: str, evidence: str) -> None:
        """Add a claim of the paper, and whether it held."""
        self.claims.append({"claim": text, "verdict": verdict, "evidence": evidence})

    def write(self, out: Path) -> None:
        """Write NAME.md and NAME.json, and print the tables."""
        sentences = [f"- {each['claim']}: **{each['verdict']}** here ({each['evidence']})." for each in self.claims]
        quick = ["Quick settings: these numbers show that it runs, nothing else."] if self.settings["quick"] else []
        lines = [f"# {self.title}", *quick, *self.parts, "\n".join(sentences), _settings_line(self.settings)]
        text = "\n\n".join(lines) + "\n"
        write_json(
            out / f"{self.name}.json",
            {"title": self.title, "settings": self.settings, "tables": self.values, "claims": self.claims},
        )
        (out / f"{self.name}.md").write_text(text, encoding="utf-8")
        print(text)


def _settings_line(settings: dict[str, Any]) -> str:
    return "Settings: `" + json.dumps(settings, sort_keys=True) + "`. Intervals: 95 %, bootstrap over clips."
