"""Reading of run folders of `sctok evaluate` and `sctok probe` for the report."""

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sctok.evaluation.run_folder import (
    PROBE_FILE,
    PROBE_FORMAT,
    PROBE_VERSION,
    RUN_FILE,
    SCORES_FILE,
    SUMMARY_FILE,
    read_run,
)
from sctok.formats.files import FormatError, check_format, damaged, read_json


@dataclass(frozen=True)
class EvaluationRun:
    """The content of a run folder. notes: sentences about missing parts."""

    folder: Path
    name: str
    created: str = ""
    sctok: str = ""
    codecs: tuple[dict[str, Any], ...] = ()
    metrics: tuple[dict[str, Any], ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    scores: tuple[dict[str, str], ...] = ()
    summary: tuple[dict[str, Any], ...] = ()
    probe: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def load_run(folder: str | os.PathLike[str]) -> EvaluationRun:
    """Read a run folder: `run.json` with `scores.csv` and `summary.json`, or `probe.json`, or both.

    Missing files of an unfinished evaluation are named in `notes`.

    Raises:
        FileNotFoundError: there is neither `run.json` nor `probe.json`.
        FormatError: a file, which the message names, is damaged or of another format or version.
    """
    path = Path(folder)
    run_file, probe_file = path / RUN_FILE, path / PROBE_FILE
    if not run_file.is_file() and not probe_file.is_file():
        raise FileNotFoundError(
            f"{path} has neither {RUN_FILE} nor {PROBE_FILE}; give a folder that sctok evaluate or sctok probe wrote"
        )
    probe: dict[str, Any] = {}
    if probe_file.is_file():
        probe = read_json(probe_file)
        check_format(probe_file, probe, PROBE_FORMAT, PROBE_VERSION)
    head = read_run(path) if run_file.is_file() else probe
    name, created, sctok = (str(head.get(key) or "") for key in ("name", "created", "sctok"))
    run = EvaluationRun(path, name or path.resolve().name, created, sctok, probe=probe or None)
    return _with_scores(run, head) if run_file.is_file() else run


def _with_scores(run: EvaluationRun, head: Mapping[str, Any]) -> EvaluationRun:
    """Return the run with the tables of its evaluation, and with notes about missing tables."""
    codecs, metrics, files = (tuple(head[part]) for part in ("codecs", "metrics", "files"))
    notes: list[str] = []
    found: dict[str, Any] = {}
    if not files or not codecs:
        notes.append("This evaluation is empty: it has no files or no codecs.")
    for part, name, read, problem in (
        ("scores", SCORES_FILE, _read_scores, "is missing: the evaluation is unfinished."),
        ("summary", SUMMARY_FILE, _read_summary, "is missing, so there are no means."),
    ):
        if (run.folder / name).is_file():
            found[part] = tuple(read(run.folder / name))
        elif files and codecs:
            notes.append(f"{name} {problem} Run the same command again.")
    return replace(run, codecs=codecs, metrics=metrics, files=files, notes=tuple(notes), **found)


def _read_summary(path: Path) -> list[dict[str, Any]]:
    records = read_json(path)
    if not isinstance(records, list) or not all(
        isinstance(record, dict) and record.keys() >= {"codec", "domain", "metric"} for record in records
    ):
        raise damaged(path, "it is not a list of records with codec, domain and metric")
    return records


def _read_scores(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, error) from None
    for line, row in enumerate(rows, start=2):
        if None in row or not row.keys() >= {"codec", "key", "domain"} or None in row.values():
            raise FormatError(f"{path}: line {line} does not match the header; run the same evaluation again")
    return rows


def number(value: Any) -> float | None:
    """Convert a number or its text to a finite float; return None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def failures(run: EvaluationRun) -> list[dict[str, str]]:
    """Return the codec, key and error of each row of scores with an error."""
    return [
        {"codec": row["codec"], "key": row["key"], "error": " ".join(row["error"].split())}
        for row in run.scores
        if row.get("error")
    ]
