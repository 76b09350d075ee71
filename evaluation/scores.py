"""The tables of an evaluation: scores by file, and means with bootstrap confidence intervals."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.formats.files import atomic_path, write_json

from .run_folder import FACTS, SCORES_FILE, SUMMARY_FILE, FileResult

ALL_DOMAINS = "all"
RESAMPLES, CONFIDENCE = 1000, 0.95
_MAX_DRAWN = 1 << 18  # file indices drawn at once
_RATES = {  # name: a fact of the round trip, and a factor; the rate is fact · factor / seconds
    "kbps": ("payload", 8 / 1000),
    "tokens_per_second": ("tokens", 1.0),
    "rtf_encode": ("seconds_encode", 1.0),
    "rtf_decode": ("seconds_decode", 1.0),
}

ScoreRow = dict[str, Any]
Results = Mapping[tuple[str, str], FileResult]  # by codec and key


def table_rows(
    files: Sequence[Mapping[str, Any]], codecs: Sequence[str], metrics: Sequence[str], results: Results
) -> list[ScoreRow]:
    """Return one row of scores.csv for each codec and file, in their order; None stands for a missing value."""
    details = [f"wer_{part}" for part in ("errors", "words", "heard")] if "wer" in metrics else []
    rows = []
    for codec in codecs:
        for file in files:
            result = results.get((codec, file["key"]), FileResult())
            row: ScoreRow = {"codec": codec, "key": file["key"], "domain": file["domain"], "seconds": file["seconds"]}
            row |= _costs(result.coded, file["seconds"])
            row |= {name: result.values.get(name) for name in [*metrics, *details]}
            rows.append({**row, "error": result.error})
    return rows


def _costs(coded: Mapping[str, Any] | None, seconds: float | None) -> ScoreRow:
    facts = coded if coded and seconds else dict.fromkeys(FACTS)
    rates = {name: _times(facts[fact], factor / (seconds or 1)) for name, (fact, factor) in _RATES.items()}
    return {"bytes": facts["bytes"], **rates}


def write_tables(folder: Path, rows: Sequence[ScoreRow], metrics: Sequence[str], results: Results) -> list[ScoreRow]:
    """Write scores.csv, scores.parquet and summary.json, each atomically, and return the summary."""
    import pyarrow
    import pyarrow.parquet

    columns = list(rows[0])
    with atomic_path(folder / SCORES_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    text = {"codec", "key", "domain", "wer_heard", "error"}
    counts = {"bytes", "wer_errors", "wer_words"}
    kinds = [(text, pyarrow.string()), (counts, pyarrow.int64()), (set(columns), pyarrow.float64())]
    types = [next(kind for names, kind in kinds if name in names) for name in columns]
    schema = pyarrow.schema(list(zip(columns, types, strict=True)))
    with atomic_path(folder / "scores.parquet") as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), temporary)
    summary = summarise(rows, metrics, results)
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _ratio(row: ScoreRow, name: str) -> tuple[float | None, float | None]:
    """Return the numerator and denominator of a value. The mean of a ratio is the ratio of the totals."""
    if name in _RATES:
        return _times(row[name], row["seconds"]), row["seconds"]
    return (row["wer_errors"], row["wer_words"]) if name == "wer_corpus" else (row[name], 1.0)


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def summarise(rows: Iterable[ScoreRow], metrics: Sequence[str], results: Results) -> list[ScoreRow]:
    """Return the mean of each metric by codec and domain, with its interval; the domain "all" covers all files.

    kbps, tokens_per_second, rtf_encode, rtf_decode and wer_corpus are ratios of totals.
    Fields: `mean`, `low` and `high` of `interval`; `n`, the number of files with a value; `failed`, the number of files
    without a value because of a failure.
    """
    groups: dict[tuple[str, str], list[ScoreRow]] = {}
    for row in rows:
        groups.setdefault((row["codec"], ALL_DOMAINS), []).append(row)
        if row["domain"]:
            groups.setdefault((row["codec"], row["domain"]), []).append(row)
    columns = [*_RATES, *(["wer_corpus"] if "wer" in metrics else []), *metrics]
    summary = []
    for (codec, domain), group in groups.items():
        own = [results.get((codec, row["key"]), FileResult()) for row in group]
        for name in columns:
            pairs = [_ratio(row, name) for row in group]
            complete = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
            counts = {"n": len(complete), "failed": sum(result.has_failed(name) for result in own)}
            entry = {"codec": codec, "domain": domain, "metric": name}
            summary.append({**entry, **interval(complete[:, 0], complete[:, 1]), **counts})
    return summary


def interval(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> ScoreRow:
    """Return the ratio of the sums over files (n,) as `mean`, with the ends of its 95 % interval, `low` and `high`.

    The interval is the percentile bootstrap over files: 1000 resamples with a fixed seed. Values are None if n is too
    small for them.
    """
    from scipy.stats import bootstrap

    total = denominators.sum()
    mean = float(numerators.sum() / total) if len(numerators) and total else None
    if mean is None or len(numerators) < 2:
        return {"mean": mean, "low": None, "high": None}
    limits = bootstrap(
        (numerators, denominators),
        lambda above, below, axis: above.sum(axis) / below.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _MAX_DRAWN // len(numerators)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"mean": mean, "low": float(limits.low), "high": float(limits.high)}
