"""What was measured: a journal that survives interruption, the table of it, and means with confidence intervals."""

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sctok.formats.files import atomic_path, disk_errors, json_text, write_json
from sctok.formats.untrusted.bounds import parse_json

JOURNAL = "journal.jsonl"
ALL = "all"
RESAMPLES = 1000
LEVEL = 95.0
FACTS = ("bytes", "payload", "tokens", "seconds_encode", "seconds_decode")  # of a round trip
_DRAWN_AT_ONCE = 1 << 18

Row = dict[str, Any]


@dataclass
class Cell:
    """What is known of one file through one codec.

    coded: `FACTS`, samples and sample_rate; or failed: why there is none.
    values: of metrics and their further columns. errors: reasons of metrics without a value.
    """

    coded: dict[str, Any] | None = None
    failed: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take in an entry of the journal."""
        if "metric" not in entry:
            self.coded, self.failed = entry.get("coded"), entry.get("failed")
        elif "failed" in entry:
            self.errors[entry["metric"]] = entry["failed"]
        else:
            self.errors.pop(entry["metric"], None)
            self.values.update({entry["metric"]: entry["value"], **entry.get("details", {})})

    def lacks(self, metric: str, retry_failed: bool) -> bool:
        """Return whether a metric is still to be measured."""
        return metric not in self.values and (retry_failed or metric not in self.errors)

    def lost(self, metric: str) -> bool:
        """Return whether there is a reason why a metric has no value."""
        return self.failed is not None or metric.removesuffix("_corpus") in self.errors

    @property
    def error(self) -> str:
        """All that went wrong, in one line; empty where nothing did."""
        reasons = [f"{name}: {reason}" for name, reason in self.errors.items()]
        return "; ".join([*([self.failed] if self.failed else []), *reasons])


class Journal:
    """The results of a run, line by line; one process writes at a time. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)  # so that nothing is left to be written at the end
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{folder}: another command is at work on this evaluation; wait for it") from None
        self.cells: dict[tuple[str, str], Cell] = {}
        self._read()

    def cell(self, codec: str, key: str) -> Cell:
        """Return what is known of a file through a codec."""
        return self.cells.setdefault((codec, key), Cell())

    def add(self, codec: str, key: str, **entry: Any) -> None:
        """Write down what was found; it is there after a kill at any moment. Raises DiskFullError."""
        # Text that is no UTF-8 and numbers that are not finite were refused before.
        line = (json_text({"codec": codec, "key": key, **entry}) + "\n").encode()
        with disk_errors(self.path):
            while line:
                line = line[self._file.write(line) :]
        self.cell(codec, key).take(entry)

    def sync(self) -> None:
        """Have all of it survive a crash of the machine."""
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Take in the lines but damaged ones; a last one that was cut short is taken off."""
        self._file.seek(0)
        whole = 0
        for line in io.BytesIO(self._file.read()):
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                break
            whole += len(line)
            if entry := _entry(line):
                self.cell(entry.pop("codec"), entry.pop("key")).take(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and _fits(entry) else None


def _fits(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry is one that `Cell.take` understands."""
    texts = [entry.get("codec"), entry.get("key"), entry.get("metric", ""), entry.get("failed", "")]
    coded = entry.get("coded", dict.fromkeys(FACTS))
    found = {"value", "failed"} if "metric" in entry else {"coded", "failed"}
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(entry.get("value", 0.0), int | float)
        and isinstance(entry.get("details", {}), dict)
        and isinstance(coded, dict)
        and coded.keys() >= set(FACTS)
        and bool(found & entry.keys())
    )


def table_rows(
    files: Sequence[Mapping[str, Any]], codecs: Sequence[str], metrics: Sequence[str], cells: Mapping[Any, Cell]
) -> list[Row]:
    """Return one row per codec and file, in their order: the columns of scores.csv; None where there is no value."""
    details = [f"wer_{part}" for part in ("errors", "words", "heard")] if "wer" in metrics else []
    rows = []
    for codec in codecs:
        for file in files:
            cell = cells.get((codec, file["key"]), Cell())
            row: Row = {"codec": codec, "key": file["key"], "domain": file["domain"], "seconds": file["seconds"]}
            row |= _costs(cell.coded, file["seconds"])
            row |= {name: cell.values.get(name) for name in [*metrics, *details]}
            rows.append({**row, "error": cell.error})
    return rows


def _costs(coded: Mapping[str, Any] | None, seconds: float | None) -> Row:
    names = ("bytes", "kbps", "tokens_per_second", "rtf_encode", "rtf_decode")
    if coded is None or not seconds:
        return dict.fromkeys(names)
    rates = (
        _times(coded["payload"], 8 / 1000 / seconds),
        *(_times(coded[name], 1 / seconds) for name in ("tokens", "seconds_encode", "seconds_decode")),
    )
    return dict(zip(names, (coded["bytes"], *rates), strict=True))


def write_tables(folder: Path, rows: Sequence[Row], metrics: Sequence[str], cells: Mapping[Any, Cell]) -> list[Row]:
    """Write scores.csv, scores.parquet and summary.json, each atomically, and return the summary."""
    import pyarrow
    import pyarrow.parquet

    columns = list(rows[0])
    with atomic_path(folder / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
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
    summary = summarise(rows, metrics, cells)
    write_json(folder / "summary.json", summary)
    return summary


# Totals over totals, rather than means of each file's own ratio: (name, numerator, denominator).
_Column = tuple[str, Callable[[Row], float | None], str | None]
_RATIOS: tuple[_Column, ...] = (
    ("kbps", lambda row: _times(row["kbps"], row["seconds"]), "seconds"),
    ("tokens_per_second", lambda row: _times(row["tokens_per_second"], row["seconds"]), "seconds"),
    ("rtf_encode", lambda row: _times(row["rtf_encode"], row["seconds"]), "seconds"),
    ("rtf_decode", lambda row: _times(row["rtf_decode"], row["seconds"]), "seconds"),
    ("wer_corpus", lambda row: row.get("wer_errors"), "wer_words"),
)


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def summarise(rows: Iterable[Row], metrics: Sequence[str], cells: Mapping[Any, Cell]) -> list[Row]:
    """Return means with bootstrap confidence intervals per codec, domain and metric; domain "all" for all files.

    kbps, tokens_per_second, rtf_encode, rtf_decode and wer_corpus are totals over totals. low and high: the middle 95 %
    of 1000 resamples of the files, None for fewer than two. n: files with a value. failed: files without one for which
    there is a reason.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["codec"], ALL), []).append(row)
        if row["domain"]:
            groups.setdefault((row["codec"], row["domain"]), []).append(row)
    ratios = [each for each in _RATIOS if each[0] != "wer_corpus" or "wer" in metrics]
    columns: list[_Column] = [*ratios, *((name, itemgetter(name), None) for name in metrics)]
    found = []
    for (codec, domain), group in groups.items():
        lost = [cells.get((codec, row["key"]), Cell()).lost for row in group]
        for name, above, below in columns:
            pairs = [(above(row), row[below] if below else 1.0) for row in group]
            kept = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
            counts = {"n": len(kept), "failed": sum(each(name) for each in lost)}
            part = {"codec": codec, "domain": domain, "metric": name}
            found.append({**part, **interval(kept[:, 0], kept[:, 1]), **counts})
    return found


def interval(above: NDArray[np.float64], below: NDArray[np.float64]) -> Row:
    """Return sum(above) / sum(below) of files (n,) as `mean`, and the `low` and `high` end of its bootstrap interval.

    Percentiles of 1000 resamples with replacement, with a fixed seed. None where n is too small.
    """
    count, total = len(above), below.sum()
    if not count or not total:
        return {"mean": None, "low": None, "high": None}
    mean = float(above.sum() / total)
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    rng = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, RESAMPLES, at_once):
        drawn = rng.integers(0, count, (min(at_once, RESAMPLES - start), count))
        means[start : start + at_once] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"mean": mean, "low": float(low), "high": float(high)}
