"""Tables of the report: scores by codec and domain, codebooks, and anything that is a list of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .runs import EvaluationRun, number

ALL_DOMAINS = "all"
ANCHORS = ("original", "lowpass")
RATES = {
    "kbps": ("bit rate", "kbit/s"),
    "tokens_per_second": ("tokens", "1/s"),
    "rtf_encode": ("encoding", "s per s"),
    "rtf_decode": ("decoding", "s per s"),
}

SPEEDS = ("rtf_encode", "rtf_decode")


@dataclass(frozen=True)
class Column:
    """Head of a column; `better`: "higher", "lower" or empty; `help`: what to know of it; `text`: of words, at left."""

    label: str
    unit: str = ""
    better: str = ""
    help: str = ""
    text: bool = False


@dataclass(frozen=True)
class TableCell:
    """What a cell shows, what it is sorted by (None: last), and what is said beside it."""

    text: str
    value: float | str | None = None
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, columns, and rows of one cell for each column; the first cell names its row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Score:
    """Mean of a metric with its interval (None where there is no value), and how many files have one or failed."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    failed: int


@dataclass(frozen=True)
class Row:
    """One codec in one domain: rates as in RATES, and scores by metric."""

    codec: str
    spec: str
    rates: Mapping[str, float]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Point:
    """One codec in a plot of quality against bit rate."""

    family: str
    kbps: float
    mean: float
    low: float
    high: float


def score_rows(run: EvaluationRun, domain: str) -> list[Row]:
    """Return what a run found in a domain ("all": in every one), one row for each codec in the order of the run."""
    found: dict[str, dict[str, Score]] = {}
    for entry in run.summary:
        if entry.get("domain") == domain:
            mean, low, high = (number(entry.get(name)) for name in ("mean", "low", "high"))
            score = Score(mean, low, high, int(entry.get("n") or 0), int(entry.get("failed") or 0))
            found.setdefault(str(entry["codec"]), {})[str(entry["metric"])] = score
    return [
        Row(codec["name"], codec["spec"], _rates(run, codec["name"], domain, found), found.get(codec["name"], {}))
        for codec in run.codecs
    ]


def _rates(run: EvaluationRun, codec: str, domain: str, found: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """Return the rates of a codec: those that the summary has, else means over the files."""
    rates = {}
    for name in RATES:
        score = found.get(codec, {}).get(name)
        values = [
            value
            for row in run.scores
            if row["codec"] == codec and domain in (ALL_DOMAINS, row["domain"])
            if (value := number(row.get(name))) is not None
        ]
        if score is not None and score.mean is not None:
            rates[name] = score.mean
        elif values:
            rates[name] = sum(values) / len(values)
    return rates


def points_of(rows: Sequence[Row], metric: str) -> list[Point]:
    """Return the codecs that have a bit rate above zero and a mean of `metric`; anchors are none."""
    points = []
    for row in rows:
        score, kbps = row.scores.get(metric), row.rates.get("kbps")
        family = row.spec.partition(":")[0]
        if score is None or score.mean is None or not kbps or family in ANCHORS:
            continue
        low = score.mean if score.low is None else score.low
        high = score.mean if score.high is None else score.high
        points.append(Point(family, kbps, score.mean, min(low, score.mean), max(high, score.mean)))
    return points


def all_metrics(run: EvaluationRun) -> list[dict[str, Any]]:
    """Return the metrics of a run but its rates, with those that only its summary has, such as `wer_corpus`."""
    metrics = {metric["name"]: metric for metric in run.metrics if metric["name"] not in RATES}
    for name in dict.fromkeys(str(entry["metric"]) for entry in run.summary):
        if name not in metrics and name not in RATES:
            parent = metrics.get(name.rpartition("_")[0], {})
            metrics[name] = {"unit": parent.get("unit"), "better": parent.get("better"), "name": name}
    return list(metrics.values())


def score_tables(run: EvaluationRun) -> list[Table]:
    """Return one table over all domains and, where there are several, one for each."""
    domains = [domain for domain in dict.fromkeys(file["domain"] for file in run.files) if domain]
    wanted = [ALL_DOMAINS, *(domains if len(domains) > 1 else [])]
    return [_score_table(run, domain) for domain in wanted]


def _score_table(run: EvaluationRun, domain: str) -> Table:
    rows = score_rows(run, domain)
    rates = [name for name in RATES if any(name in row.rates for row in rows)]
    metrics = all_metrics(run)
    parts = [(Column("codec"), [TableCell(row.codec, row.codec) for row in rows])]
    parts += [(Column(*RATES[name]), _rate_cells(rows, name)) for name in rates if name not in SPEEDS]
    parts += [
        (Column(m["name"], m.get("unit") or "", m.get("better") or "", m.get("protocol") or ""), _score_cells(rows, m))
        for m in metrics
    ]
    parts += [(Column(*RATES[name]), _rate_cells(rows, name)) for name in rates if name in SPEEDS]
    columns, by_column = zip(*parts, strict=True)
    count = sum(domain in (ALL_DOMAINS, file["domain"]) for file in run.files)
    caption = f"{'All domains' if domain == ALL_DOMAINS else domain.capitalize()}, {count} file{'s' * (count != 1)}"
    return Table(caption, columns, tuple(zip(*by_column, strict=True)))


def _rate_cells(rows: Sequence[Row], name: str) -> list[TableCell]:
    values = [row.rates.get(name) for row in rows]
    return [_missing() if value is None else TableCell(_three_digits(value), value) for value in values]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _score_cells(rows: Sequence[Row], metric: Mapping[str, Any]) -> list[TableCell]:
    scores = [row.scores.get(metric["name"]) for row in rows]
    places = decimals([None if score is None else score.mean for score in scores])
    cells = [_score_cell(score, places) for score in scores]
    rivals = [
        i
        for i, row in enumerate(rows)
        if row.spec.partition(":")[0] not in ANCHORS and isinstance(cells[i].value, float)
    ]
    if len(rivals) > 1 and metric.get("better") in ("higher", "lower"):
        choose = max if metric["better"] == "higher" else min
        best = choose(cells[i].value for i in rivals)  # type: ignore[type-var]
        cells = [replace(c, best=i in rivals and c.value == best) for i, c in enumerate(cells)]
    return cells


def _score_cell(score: Score | None, places: int) -> TableCell:
    if score is None:
        return _missing()
    note = f"{score.failed} of {score.n + score.failed} failed" if score.failed else ""
    if score.mean is None:
        return replace(_missing(), note=note)
    interval = "" if score.low is None or score.high is None else f"{score.low:.{places}f} to {score.high:.{places}f}"
    return TableCell(f"{score.mean:.{places}f}", score.mean, interval, note)


def _missing() -> TableCell:
    return TableCell("–", None)


def decimals(values: Sequence[float | None]) -> int:
    """Return how many decimals show three or four digits of the largest of some values."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return next((places for limit, places in ((1000, 0), (100, 1), (1, 2), (0.1, 3)) if largest >= limit), 4)


def record_table(caption: str, records: Sequence[Mapping[str, Any]], *, note: str = "") -> Table:
    """Return a table of records, such as probe results: a column for every key, values inside values joined."""
    flat = [_flatten(record) for record in records]
    keys = list(dict.fromkeys(key for record in flat for key in record))
    by_column = [_record_cells([record.get(key) for record in flat]) for key in keys]
    columns = tuple(
        Column(key.replace("_", " "), text=any(isinstance(cell.value, str) for cell in cells))
        for key, cells in zip(keys, by_column, strict=True)
    )
    return Table(caption, columns, tuple(zip(*by_column, strict=True)), note)


def _flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {inner}": item for inner, item in _flatten(value).items()}
        else:
            flat[key] = value
    return flat


def _record_cells(values: Sequence[Any]) -> list[TableCell]:
    floats = [value for value in values if isinstance(value, float)]
    places = decimals([number(value) for value in floats])
    return [_record_cell(value, places) for value in values]


def _record_cell(value: Any, places: int) -> TableCell:
    if value is None or value == "":
        return _missing()
    if isinstance(value, bool):
        return TableCell("yes" if value else "no", "yes" if value else "no")
    if isinstance(value, int):
        return TableCell(f"{value:,}", float(value))
    if isinstance(value, float):
        return _missing() if number(value) is None else TableCell(f"{value:.{places}f}", value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return TableCell(", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value))
    return TableCell(str(value), str(value))
