"""Scores of codecs on held-out clips, and their differences, for the benchmarks of the paper's tables."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paper_common import DOMAINS, Interval, Values, bootstrap, say

from sctok.evaluation.codecs.registry import CodecUnavailable, open_codec
from sctok.evaluation.evaluate import EvaluationConfig, evaluate_codecs
from sctok.evaluation.metrics.registry import all_metrics, choose_metrics
from sctok.evaluation.recipes import choose_clips
from sctok.evaluation.references import Reference, list_references
from sctok.formats.files import atomic_path, hash_json, json_text

Key = tuple[str, str]  # domain, key


@dataclass(frozen=True)
class Scores:
    """Numbers by codec, column of scores.csv and clip, and the domains of the clips."""

    values: dict[str, dict[str, dict[Key, float]]]

    @property
    def codecs(self) -> list[str]:
        """Names of the codecs, in their order."""
        return list(self.values)

    def mean(self, codec: str, column: str, domains: Iterable[str] = DOMAINS) -> Interval | str:
        """Return the mean over domains of a codec's means over their clips, or a dash without measurements."""
        found = self.values[codec].get(column, {})
        parts = [np.array([v for (d, _), v in found.items() if d == domain]) for domain in domains]
        parts = [part for part in parts if len(part)]
        return bootstrap(parts) if parts else "–"

    def difference(self, first: str, second: str, column: str, domains: Iterable[str] = DOMAINS) -> Interval | None:
        """Return the mean over domains of first minus second, clip by clip, or None without common clips."""
        one, two = (self.values[name].get(column, {}) for name in (first, second))
        parts: list[Values] = []
        for domain in domains:
            keys = [key for key in one if key in two and key[0] == domain]
            if keys:
                parts.append(np.array([one[key] - two[key] for key in keys]))
        return bootstrap(parts) if parts else None


def held_out(audio: Path, work: Path, per_domain: int, seed: int) -> list[Reference]:
    """Return up to `count` clips of each domain that the bundled models were not trained on."""
    counts = dict.fromkeys(DOMAINS, 0)
    rows = []
    for row in choose_clips("debian", [audio], seed):
        domain = row["domain"] if "domain" in row else row["custom"]["domain"]
        counts[domain] += 1
        if counts[domain] <= per_domain:
            rows.append(row)
    path = work / f"held-out-{per_domain}-{seed}.jsonl"
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{json_text(row)}\n" for row in rows), encoding="utf-8")
    return list_references([path])


def installed(metrics: Iterable[str]) -> list[str]:
    """Return the metrics that are installed."""
    return [name for name in metrics if not all_metrics()[name].missing()]


def better(metric: str) -> str:
    """Return whether "higher" or "lower" is better."""
    return all_metrics()[metric].better


def score(references: Sequence[Reference], specs: Sequence[str], metrics: Sequence[str], work: Path) -> Scores:
    """Return the scores of `sctok evaluate`. Codecs that are not installed are left out with a message.

    The run folder is named after the references and the hashes of the codecs. A replaced codec is therefore measured
    again, and an existing run resumes.
    """
    codecs = {}
    for spec in specs:
        try:
            codecs[spec] = open_codec(spec, device="cpu")
        except CodecUnavailable as error:
            say(f"left out: {error}")
    chosen, _ = choose_metrics(list(metrics), all_metrics(), any(each.transcript is not None for each in references))
    about = [[dict(codec.settings) for codec in codecs.values()], [each.key for each in references]]
    folder = work / f"scores-{hash_json(about)}"
    say(f"{len(codecs)} codecs over {len(references)} clips")
    evaluate_codecs(references, codecs, chosen, folder, EvaluationConfig(workers=1))
    return _read(folder / "scores.csv", [codec.name for codec in codecs.values()])


def _read(path: Path, names: Sequence[str]) -> Scores:
    values: dict[str, dict[str, dict[Key, float]]] = {name: {} for name in names}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column, text in row.items():
                try:
                    number = float(text)
                except (TypeError, ValueError):
                    continue
                if np.isfinite(number) and row["codec"] in values:
                    values[row["codec"]].setdefault(column, {})[row["domain"], row["key"]] = number
    return Scores(values)
