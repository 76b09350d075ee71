"""What `sctok probe` found, as tables of the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tables import Table, record_table

FIRST = (
    *("task", "domain", "representation", "stream", "change"),
    *("accuracy", "unchanged", "standard_error", "group_standard_error"),
)


@dataclass(frozen=True)
class ProbePart:
    """Tables of results, notes in words, and a table of what failed (None: nothing did)."""

    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    failures: Table | None = None


def probe_part(probe: Mapping[str, Any] | None) -> ProbePart:
    """Return the tables of a `probe.json`; sections that it lacks are left out, lists inside its rows too."""
    if probe is None:
        return ProbePart()
    tokens = _rows(probe, "tokens")
    sections = (
        ("Probes: what a classifier reads out of a sound's representation", _rows(probe, "tasks")),
        ("Tokens", [{key: value for key, value in row.items() if key != "stability"} for row in tokens]),
        ("Stability of tokens when the sound is changed", [row for each in tokens for row in _stability_rows(each)]),
        ("ABX errors", _rows(probe, "abx")),
    )
    tables = tuple(record_table(caption, [_plain(row) for row in rows]) for caption, rows in sections if rows)
    notes = [": ".join(str(row[key]) for key in ("task", "note") if row.get(key)) for row in _rows(probe, "notes")]
    failed = [_plain(row) for row in (*_rows(probe, "failed"), *_rows(probe, "errors"))]
    if not tables:
        notes.append("The probe has no results yet.")
    return ProbePart(tables, tuple(notes), record_table("What failed", failed) if failed else None)


def _rows(probe: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    found = probe.get(section)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _stability_rows(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    changes = row.get("stability")
    names = {key: row[key] for key in ("task", "codebook", "domain", "stream") if key in row}
    if not isinstance(changes, Mapping):
        return []
    return [
        {**names, "change": change, **(found if isinstance(found, Mapping) else {"same": found})}
        for change, found in changes.items()
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without lists, with what names it and what matters most in front."""
    kept = {key: value for key, value in row.items() if not isinstance(value, list)}
    return {**{key: kept[key] for key in FIRST if key in kept}, **kept}
