"""The run folder of an evaluation: its description `run.json`, and the journal from which it resumes."""

import fcntl
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sctok.formats.files import FormatError, check_format, disk_errors, json_text
from sctok.formats.untrusted.bounds import max_input_bytes, parse_json

RUN_FILE, JOURNAL, SCORES_FILE, SUMMARY_FILE = "run.json", "journal.jsonl", "scores.csv", "summary.json"
FORMAT, VERSION = "sctok-evaluation", 1
PROBE_FILE, PROBE_FORMAT, PROBE_VERSION = "probe.json", "sctok-probe", 1
FACTS = ("bytes", "payload", "tokens", "seconds_encode", "seconds_decode")  # of a round trip
_TEXTS = {"files": ("key", "domain"), "codecs": ("name", "spec"), "metrics": ("name",)}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the description of the evaluation in a folder.

    Raises:
        FormatError: `run.json` is damaged, or of another format or version.
        OSError: it cannot be read.
    """
    path = folder / RUN_FILE
    try:
        run: dict[str, Any] = parse_json(path.read_bytes(), max_input_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    check_format(path, run, FORMAT, VERSION)
    for part, texts in _TEXTS.items():
        entries = run.get(part)
        if not isinstance(entries, list) or not all(_has_texts(entry, texts) for entry in entries):
            raise _damaged(path, f"{part} is not a list of entries with {' and '.join(texts)}")
    if not isinstance(run.get("settings"), dict) or not isinstance(run.get("created"), str):
        raise _damaged(path, "settings or created is missing or has the wrong type")
    return run


def _has_texts(entry: Any, names: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names)


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path} is damaged ({reason}); restore it, or delete the folder {path.parent} and run sctok evaluate again"
    )


@dataclass
class FileResult:
    """The results of one file with one codec.

    Attributes:
        coded: `FACTS`, `samples` and `sample_rate` of the round trip; None if there is none yet or it failed.
        failed: why the round trip failed, else None.
        values: values of metrics and their additional columns, by name.
        errors: by metric, why it has no value.
    """

    coded: dict[str, Any] | None = None
    failed: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Apply an entry of the journal."""
        if "metric" not in entry:
            self.coded, self.failed = entry.get("coded"), entry.get("failed")
        elif "failed" in entry:
            self.errors[entry["metric"]] = entry["failed"]
        else:
            self.errors.pop(entry["metric"], None)
            self.values.update({entry["metric"]: entry["value"], **entry.get("details", {})})

    def is_due(self, metric: str, retry_failed: bool) -> bool:
        """Return whether a metric still has to be computed."""
        return metric not in self.values and (retry_failed or metric not in self.errors)

    def has_failed(self, metric: str) -> bool:
        """Return whether a metric has no value because it, or the round trip, failed."""
        return self.failed is not None or metric.removesuffix("_corpus") in self.errors

    @property
    def error(self) -> str:
        """All failures in one line; empty without failures."""
        reasons = [f"{name}: {reason}" for name, reason in self.errors.items()]
        return "; ".join([*([self.failed] if self.failed else []), *reasons])


class Journal:
    """The results of a run, one JSON line each. An evaluation resumes from it. A context manager.

    Only one process can open the journal of a folder at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)  # unbuffered, so that closing writes nothing
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"{folder} is in use by another command; wait until it has finished") from None
        self.results: dict[tuple[str, str], FileResult] = {}
        self._read()

    def result(self, codec: str, key: str) -> FileResult:
        """Return the result of a file with a codec, a new one if there is none."""
        return self.results.setdefault((codec, key), FileResult())

    def add(self, codec: str, key: str, **entry: Any) -> None:
        """Append an entry. Once appended, it survives the death of the process. Raises DiskFullError."""
        # Earlier checks have rejected numbers that are not finite and text that is not UTF-8.
        line = (json_text({"codec": codec, "key": key, **entry}) + "\n").encode()
        with disk_errors(self.path):
            while line:
                line = line[self._file.write(line) :]
        self.result(codec, key).apply(entry)

    def sync(self) -> None:
        """Flush the journal to the disk, so that it survives a crash of the machine."""
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        """Read all lines except damaged ones; remove a truncated last line."""
        self._file.seek(0)
        complete = 0
        for line in io.BytesIO(self._file.read()):
            if not line.endswith(b"\n"):
                self._file.truncate(complete)
                break
            complete += len(line)
            if entry := _parse_entry(line):
                self.result(entry.pop("codec"), entry.pop("key")).apply(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _parse_entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and _is_valid(entry) else None


def _is_valid(entry: Mapping[str, Any]) -> bool:
    """Return whether `FileResult.apply` can apply an entry."""
    texts = [entry.get("codec"), entry.get("key"), entry.get("metric", ""), entry.get("failed", "")]
    coded = entry.get("coded", dict.fromkeys(FACTS))
    outcomes = {"value", "failed"} if "metric" in entry else {"coded", "failed"}
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(entry.get("value", 0.0), int | float)
        and isinstance(entry.get("details", {}), dict)
        and isinstance(coded, dict)
        and coded.keys() >= set(FACTS)
        and bool(outcomes & entry.keys())
    )
