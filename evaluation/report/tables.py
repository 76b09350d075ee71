"""Tables of the report: scores by codec and domain, probe results, and other lists of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sctok.evaluation.scores import ALL_DOMAINS

from .runs import EvaluationRun, number

ANCHORS = ("original", "lowpass")
RATES = {
    "kbps": ("bit rate", "kbit/s"),
    "tokens_per_second": ("tokens", "1/s"),
    "rtf_encode": ("encoding", "s per s"),
    "rtf_decode": ("decoding", "s per s"),
}
SPEEDS = ("rtf_encode", "rtf_decode")
_FIRST_COLUMNS = (
    *("task", "domain", "representation", "stream", "change"),
    *("accuracy", "unchanged", "standard_error", "group_standard_error"),
)


@dataclass(frozen=True)
class TableColumn:
    """A column's header. better: "higher", "lower" or "". help: its tooltip. text: whether to align it left."""

    label: str
    unit: str = ""
    better: str = ""
    help: str = ""
    text: bool = False


@dataclass(frozen=True)
class TableCell:
    """A cell: its text, its sort key (None sorts last), an interval and a note next to it, and whether it is best."""

    text: str
    value: float | str | None = None
    interval: str = ""
    note: str = ""
    best: bool = False


_MISSING = TableCell("–")


@dataclass(frozen=True)
class Table:
    """A caption, columns, and rows of one cell for each column. The first cell of a row is its name."""

    caption: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[TableCell, ...], ...]


@dataclass(frozen=True)
class MetricScore:
    """The mean of a metric and its interval (None if missing), and the numbers of values and failures."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    failed: int


@dataclass(frozen=True)
class CodecScores:
    """The scores of a codec in a domain, by the names of metrics and of RATES."""

    codec: str
    spec: str
    scores: dict[str, MetricScore]

    @property
    def family(self) -> str:
        """The family of codecs that it belongs to, such as opus."""
        return self.spec.partition(":")[0]

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric or rate, None if it is missing."""
        return self.scores[name].mean if name in self.scores else None


@dataclass(frozen=True)
class QualityPoint:
    """A codec in a plot of quality against bit rate."""

    family: str
    kbps: float
    mean: float
    low: float
    high: float


def codec_scores(run: EvaluationRun, domain: str) -> list[CodecScores]:
    """Return the summary of a run in a domain, or in "all", for each codec in the order of the run."""
    by_codec = {codec["name"]: CodecScores(codec["name"], codec["spec"], {}) for codec in run.codecs}
    for entry in run.summary:
        if entry.get("domain") == domain and entry["codec"] in by_codec:
            mean, low, high = (number(entry.get(name)) for name in ("mean", "low", "high"))
            score = MetricScore(mean, low, high, int(entry.get("n") or 0), int(entry.get("failed") or 0))
            by_codec[entry["codec"]].scores[str(entry["metric"])] = score
    return list(by_codec.values())


def quality_points(rows: Sequence[CodecScores], metric: str) -> list[QualityPoint]:
    """Return a point for each codec with a bit rate above zero and a mean of `metric`, except anchors."""
    points = []
    for row in rows:
        kbps, mean = row.mean("kbps"), row.mean(metric)
        if kbps and mean is not None and row.family not in ANCHORS:
            score = row.scores[metric]
            known = [value for value in (score.low, mean, score.high) if value is not None]
            points.append(QualityPoint(row.family, kbps, mean, min(known), max(known)))
    return points


def run_metrics(run: EvaluationRun) -> list[dict[str, Any]]:
    """Return the metrics of a run without rates, including those that only its summary has, such as `wer_corpus`."""
    metrics = {metric["name"]: metric for metric in run.metrics if metric["name"] not in RATES}
    for name in dict.fromkeys(str(entry["metric"]) for entry in run.summary):
        if name not in metrics and name not in RATES:
            parent = metrics.get(name.rpartition("_")[0], {})
            metrics[name] = {"unit": parent.get("unit"), "better": parent.get("better"), "name": name}
    return list(metrics.values())


def score_tables(run: EvaluationRun) -> list[Table]:
    """Return a table of all domains and, if there are several domains, a table for each."""
    domains = [domain for domain in dict.fromkeys(file["domain"] for file in run.files) if domain]
    wanted = [ALL_DOMAINS, *(domains if len(domains) > 1 else [])]
    return [_score_table(run, domain) for domain in wanted]


def _score_table(run: EvaluationRun, domain: str) -> Table:
    rows = codec_scores(run, domain)
    rates = [name for name in RATES if any(row.mean(name) is not None for row in rows)]
    parts = [(TableColumn("codec"), [TableCell(row.codec, row.codec) for row in rows])]
    parts += [(TableColumn(*RATES[name]), _rate_cells(rows, name)) for name in rates if name not in SPEEDS]
    for metric in run_metrics(run):
        unit, better, protocol = (metric.get(key) or "" for key in ("unit", "better", "protocol"))
        parts.append((TableColumn(metric["name"], unit, better, protocol), _score_cells(rows, metric)))
    parts += [(TableColumn(*RATES[name]), _rate_cells(rows, name)) for name in rates if name in SPEEDS]
    columns, by_column = zip(*parts, strict=True)
    count = sum(domain in (ALL_DOMAINS, file["domain"]) for file in run.files)
    caption = f"{'All domains' if domain == ALL_DOMAINS else domain.capitalize()}, {count} file{'s' * (count != 1)}"
    return Table(caption, columns, tuple(zip(*by_column, strict=True)))


def _rate_cells(rows: Sequence[CodecScores], name: str) -> list[TableCell]:
    values = [row.mean(name) for row in rows]
    return [_MISSING if value is None else TableCell(_three_digits(value), value) for value in values]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _score_cells(rows: Sequence[CodecScores], metric: Mapping[str, Any]) -> list[TableCell]:
    means = [row.mean(metric["name"]) for row in rows]
    places = decimals(means)
    cells = [_score_cell(row.scores.get(metric["name"]), places) for row in rows]
    rivals = [mean for row, mean in zip(rows, means, strict=True) if mean is not None and row.family not in ANCHORS]
    if len(rivals) < 2 or metric.get("better") not in ("higher", "lower"):
        return cells
    best = max(rivals) if metric["better"] == "higher" else min(rivals)
    ranked = zip(rows, cells, strict=True)
    return [replace(cell, best=cell.value == best and row.family not in ANCHORS) for row, cell in ranked]


def _score_cell(score: MetricScore | None, places: int) -> TableCell:
    if score is None:
        return _MISSING
    note = f"{score.failed} of {score.n + score.failed} failed" if score.failed else ""
    if score.mean is None:
        return replace(_MISSING, note=note)
    interval = "" if score.low is None or score.high is None else f"{score.low:.{places}f} to {score.high:.{places}f}"
    return TableCell(f"{score.mean:.{places}f}", score.mean, interval, note)


def decimals(values: Sequence[float | None]) -> int:
    """Return the number of decimals that shows three or four digits of the largest value."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return next((places for limit, places in ((1000, 0), (100, 1), (1, 2), (0.1, 3)) if largest >= limit), 4)


def record_table(caption: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of records, with a column for every key; nested records are flattened."""
    flat = [_flatten(record) for record in records]
    keys = list(dict.fromkeys(key for record in flat for key in record))
    by_column = [_record_cells([record.get(key) for record in flat]) for key in keys]
    columns = tuple(
        TableColumn(key.replace("_", " "), text=any(isinstance(cell.value, str) for cell in cells))
        for key, cells in zip(keys, by_column, strict=True)
    )
    return Table(caption, columns, tuple(zip(*by_column, strict=True)))


def _flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {inner}": item for inner, item in _flatten(value).items()}
        else:
            flat[key] = value
    return flat


def _record_cells(values: Sequence[Any]) -> list[TableCell]:
    places = decimals([number(value) for value in values if isinstance(value, float)])
    return [_record_cell(value, places) for value in values]


def _record_cell(value: Any, places: int) -> TableCell:
    if value is None or value == "":
        return _MISSING
    if isinstance(value, bool):
        return TableCell("yes" if value else "no", "yes" if value else "no")
    if isinstance(value, int):
        return TableCell(f"{value:,}", float(value))
    if isinstance(value, float):
        return _MISSING if number(value) is None else TableCell(f"{value:.{places}f}", value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return TableCell(", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value))
    return TableCell(str(value), str(value))


@dataclass(frozen=True)
class ProbePart:
    """The tables of a probe, its notes, and a table of failures (None without failures)."""

    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    failures: Table | None = None


def probe_part(probe: Mapping[str, Any] | None) -> ProbePart:
    """Return the tables of a `probe.json`. Missing sections, and lists inside rows, are left out."""
    if probe is None:
        return ProbePart()
    tokens = _section(probe, "tokens")
    sections = (
        ("Accuracy of classifiers on representations", _section(probe, "tasks")),
        ("Tokens", [{key: value for key, value in row.items() if key != "stability"} for row in tokens]),
        ("Stability of tokens under changes of the sound", [row for each in tokens for row in _stability_rows(each)]),
        ("ABX errors", _section(probe, "abx")),
    )
    tables = tuple(record_table(caption, [_probe_record(row) for row in rows]) for caption, rows in sections if rows)
    notes = [": ".join(str(row[key]) for key in ("task", "note") if row.get(key)) for row in _section(probe, "notes")]
    failed = [_probe_record(row) for row in (*_section(probe, "failed"), *_section(probe, "errors"))]
    if not tables:
        notes.append("The probe has no results yet.")
    return ProbePart(tables, tuple(notes), record_table("Failures", failed) if failed else None)


def _section(probe: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    found = probe.get(section)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _stability_rows(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    changes = row.get("stability")
    names = {key: row[key] for key in ("task", "codebook", "domain", "stream") if key in row}
    if not isinstance(changes, Mapping):
        return []
    return [{**names, "change": change, **found} for change, found in changes.items() if isinstance(found, Mapping)]


def _probe_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without lists, with its names and its main result first."""
    values = {key: value for key, value in row.items() if not isinstance(value, list)}
    return {**{key: values[key] for key in _FIRST_COLUMNS if key in values}, **values}
