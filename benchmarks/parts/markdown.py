"""Markdown that benchmarks write: tables, and the text between the marker lines of a results page."""

from collections.abc import Iterable, Sequence
from pathlib import Path

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def write_between_markers(path: Path, text: str) -> None:
    """Write a file, or replace only the text between its marker lines if it has them."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN in old and END in old:
        text = f"{old.split(BEGIN)[0]}{BEGIN}\n\n{text}\n\n{END}{old.split(END)[1]}"
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with numbers aligned right."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
