"""`sctok inspect`: describe any file that sctok writes."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import JsonOption
from sctok.cli.shared.terminal import emit, visible


@command("sctok inspect tokens.sct", "sctok inspect merged-4096-r100")
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A shard, .sct file, codebook, encoder, folder of a run or a codec, or a bundled name: "
            "merged-4096-r100, merged-4096-r50, merged-4096-r25, encoder-mini or codec-mini."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Describe a file or folder that sctok wrote, or one that is bundled with it."""
    from sctok.formats.bundled import bundled_place
    from sctok.formats.describe import describe_file

    with bundled_place("" if path.exists() else str(path)) as place:
        facts = describe_file(place or path)
    emit(facts, as_json, "\n".join(_lines(facts)))


def _lines(facts: dict[str, Any], indent: int = 0) -> list[str]:
    width = max((len(visible(str(key))) for key in facts), default=0)
    lines = []
    for key, value in facts.items():
        label = " " * indent + visible(str(key)).ljust(width)
        if isinstance(value, dict) and value:
            lines += [label.rstrip(), *_lines(value, indent + 2)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(label.rstrip())
            lines += [" " * (indent + 2) + visible(", ".join(f"{k} {v}" for k, v in row.items())) for row in value]
        else:
            lines.append(f"{label}  {_cell(value)}")
    return lines


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return visible(str(value))
