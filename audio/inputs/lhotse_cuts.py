"""Cuts of lhotse: rows of a JSONL manifest that name a stretch of a recording."""

from typing import Any

from sctok.formats.untrusted.bounds import json_value


def is_cut(row: dict[str, Any]) -> bool:
    """Return whether a row of a JSONL manifest is a lhotse cut with its recording."""
    return isinstance(row.get("id"), str) and isinstance(row.get("recording"), dict) and "start" in row


def read_cut(row: dict[str, Any]) -> tuple[str, float | None, float | None, dict[str, Any]]:
    """Return (path of the recording, start, seconds, metadata) of a cut; None, None for a whole recording.

    The metadata holds the texts, speakers and languages of the supervisions, and the fields of `custom`.
    Raises ValueError for a cut that is not one stretch of one file.
    """
    recording = row["recording"]
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url"):
        raise ValueError("is a cut whose recording is not one file or URL; export it with lhotse first")
    channels = recording.get("channel_ids") or [0]
    if len(channels) > 1 and row.get("channel") != channels:
        raise ValueError("is a cut of one channel of several; list the recording instead, and use --channel")
    if recording.get("transforms"):
        raise ValueError("is a cut of a recording with transforms; export it with lhotse first")
    start, seconds = float(row["start"]), float(row["duration"])
    if not (start >= 0 and seconds > 0):
        raise ValueError(f"is a cut from {start} s that lasts {seconds} s")
    supervisions = row.get("supervisions") or []
    metadata = {
        name: " ".join(str(one[name]) for one in supervisions if one.get(name))
        for name in ("text", "speaker", "language")
    }
    kept = {name: value for name, value in metadata.items() if value} | dict(json_value(row.get("custom") or {}))
    if start == 0 and seconds == recording.get("duration"):
        return str(sources[0]["source"]), None, None, kept
    return str(sources[0]["source"]), start, seconds, kept
