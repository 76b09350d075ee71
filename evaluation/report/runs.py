"""Reading what the report shows: run folders of `sctok evaluate` and `sctok probe`."""

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A run folder: its description, one dict for each row of its files, and what is missing (`notes`)."""

    folder: Path
    name: str
    created: str = ""
    sctok: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    codecs: tuple[dict[str, Any], ...] = ()
    metrics: tuple[dict[str, Any], ...] = ()
    files: tuple[dict[str, Any], ...] = ()
    scores: tuple[dict[str, str], ...] = ()
    summary: tuple[dict[str, Any], ...] = ()
    probe: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def load_run(folder: str | os.PathLike[str]) -> EvaluationRun:
    """Read a run folder: `run.json` with `scores.csv` and `summary.json`, `probe.json`, or both.

    Raises FileNotFoundError if there is neither description; FormatError, naming the file, for another format or
    version and for damaged files. Files that an unfinished evaluation lacks are named in `notes`.
    """
    path = Path(folder)
    run_file, probe_file = path / RUN_FILE, path / PROBE_FILE
    if not run_file.is_file() and not probe_file.is_file():
        raise FileNotFoundError(
            f"{path} holds neither {RUN_FILE} nor {PROBE_FILE}; give a folder that sctok evaluate or sctok probe wrote"
        )
    probe = _read_probe(probe_file) if probe_file.is_file() else None
    if not run_file.is_file():
        name = str((probe or {}).get("name") or path.resolve().name)
        return EvaluationRun(
            path, name, str((probe or {}).get("created", "")), str((probe or {}).get("sctok", "")), probe=probe
        )
    return _evaluation(path, read_run(path), probe)


def _evaluation(path: Path, head: Mapping[str, Any], probe: Mapping[str, Any] | None) -> EvaluationRun:
    notes = []
    scores = _scores(path / SCORES_FILE)
    if not head["files"] or not head["codecs"]:
        notes.append("This evaluation is empty: no files, or no codecs.")
    elif scores is None:
        notes.append(f"There is no {SCORES_FILE}: the evaluation did not come to an end. Run the same command again.")
    summary: list[dict[str, Any]] = []
    if (path / SUMMARY_FILE).is_file():
        summary = _records(path / SUMMARY_FILE)
    elif head["files"] and head["codecs"]:
        notes.append(f"There is no {SUMMARY_FILE}: means are left out. Run the same command again.")
    return EvaluationRun(
        folder=path,
        name=str(head.get("name") or path.resolve().name),
        created=head["created"],
        sctok=str(head.get("sctok", "")),
        settings=head["settings"],
        codecs=tuple(head["codecs"]),
        metrics=tuple(head["metrics"]),
        files=tuple(head["files"]),
        scores=tuple(scores or ()),
        summary=tuple(summary),
        probe=probe,
        notes=tuple(notes),
    )


def _read_probe(path: Path) -> dict[str, Any]:
    probe: dict[str, Any] = read_json(path)
    check_format(path, probe, PROBE_FORMAT, PROBE_VERSION)
    return probe


def _records(path: Path) -> list[dict[str, Any]]:
    records = read_json(path)
    if isinstance(records, dict):
        records = records.get("rows", records.get("summary"))
    if not isinstance(records, list) or not all(
        isinstance(record, dict) and record.keys() >= {"codec", "domain", "metric"} for record in records
    ):
        raise damaged(path, "it is no list of records with codec, domain and metric")
    return records


def _scores(path: Path) -> list[dict[str, str]] | None:
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, error) from None
    for line, row in enumerate(rows, start=2):
        if None in row or not row.keys() >= {"codec", "key", "domain"} or None in row.values():
            raise FormatError(f"{path}: line {line} does not fit the header; run the same evaluation again")
    return rows


def number(value: Any) -> float | None:
    """Return a finite number, given as such or as text; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def failures(run: EvaluationRun) -> list[dict[str, str]]:
    """Return codec, key and error of every row of scores with an error."""
    return [
        {"codec": row["codec"], "key": row["key"], "error": " ".join(row["error"].split())}
        for row in run.scores
        if row.get("error")
    ]
