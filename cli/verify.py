"""`sctok verify`: check a folder of features, tokens or codebooks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import JsonOption
from sctok.cli.shared.terminal import Progress, emit, say


@command("sctok verify sctok-data/tokens/dataset")
def verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of features, tokens or codebooks, or a work directory that contains them.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Read all shards and codebooks in a folder and compare them with their plans, checksums and summaries.

    Prints one line for each fault. The exit code is 1 if anything is missing, changed or unfinished. Writes nothing.
    """
    from sctok.corpus.verification import verify_folder

    with Progress(f"verify {folder}", unit="files read") as bar:
        result = verify_folder(folder, lambda name: bar.update(1, Path(name).name))
    for fault in result.faults:
        say(f"fault: {fault}")
    for note in result.notes:
        say(f"note: {note}")
    facts = {name: value for name, value in asdict(result).items() if name not in ("faults", "notes")}
    counts = (f"{value:,} {name}" for name, value in facts.items() if value)
    verdict = "whole" if not result.faults else f"{len(result.faults)} faults"
    emit(
        {"folder": str(folder), "whole": not result.faults, **asdict(result)},
        as_json,
        f"{', '.join(counts)}: {verdict}",
    )
    if result.faults:
        raise typer.Exit(1)
