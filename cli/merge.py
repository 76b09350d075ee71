"""`sctok merge`: merge the codebooks of several domains into one, by default at 2 : 1 : 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, JsonOption, OverwriteOption, RootOption, whole_numbers
from sctok.cli.shared.terminal import emit, say, table_of

if TYPE_CHECKING:
    from sctok.kmeans_tools.merging import MergedCodebook


@dataclass(frozen=True)
class MergeOptions:
    """Which codebooks are merged, and how."""

    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Number of centroids of the merged codebook, repeated or separated by commas.",
            show_default="all sizes that the codebooks allow",
        ),
    ] = None
    token_rate: Annotated[
        list[int] | None,
        typer.Option(
            help="Token rate of the codebooks to merge: 100, 50 or 25; may be repeated.", show_default="all that exist"
        ),
    ] = None
    ratio: Annotated[
        str | None,
        typer.Option(help="Share of each domain, in the order of the rows.", show_default="general=2,speech=1,music=1"),
    ] = None
    codebooks: Annotated[Path | None, typer.Option(help="Folder of codebooks.", show_default="ROOT/codebooks")] = None
    store: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Type of the stored centroids; float16 rounds them and halves the file."),
    ] = "float32"
    overwrite: OverwriteOption = False


@command("sctok merge", "sctok merge --size 32768 --token-rate 50 --ratio general=2,speech=1,music=1")
def merge(options: MergeOptions, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Merge domain codebooks into one, by default general : speech : music at 2 : 1 : 1 as in the paper.

    The result is ROOT/codebooks/merged-SIZE-rRATE.safetensors. sctok tokenize finds it there.
    """
    sizes = whole_numbers(options.size or [], "--size")
    rates = _checked_rates(options.token_rate or [])

    import numpy as np

    from sctok.kmeans_tools.merging import PAPER_RATIO, build_merged, choose_plans

    shares = PAPER_RATIO if options.ratio is None else parse_ratio(options.ratio)
    folder = options.codebooks or root / "codebooks"
    plans = choose_plans(folder, shares, sizes, rates)
    dtype = np.float16 if options.store == "float16" else np.float32
    results = build_merged(folder, plans, shares, overwrite=options.overwrite, dtype=dtype)
    for result in results:
        if not result.made:
            say(f"{result.path} exists already, merged from the same codebooks")
    rows = [_result_row(result) for result in results]
    emit({"ratio": shares, "codebooks": rows}, as_json, lambda: _result_table(rows))


def parse_ratio(text: str) -> dict[str, int]:
    """Return the share of each domain from text such as `general=2,speech=1`, in that order."""
    shares: dict[str, int] = {}
    for part in text.split(","):
        domain, _, share = (piece.strip() for piece in part.partition("="))
        if not domain or not share.isdecimal() or int(share) < 1 or domain in shares:
            raise typer.BadParameter(
                f"{part.strip()!r} is not DOMAIN=SHARE with a whole share, each domain once", param_hint="--ratio"
            )
        shares[domain] = int(share)
    return shares


def _checked_rates(rates: list[int]) -> list[int]:
    from sctok.formats.stacking import stack_factor

    for rate in rates:
        try:
            stack_factor(rate)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--token-rate") from None
    return list(dict.fromkeys(rates))


def _result_row(result: "MergedCodebook") -> dict[str, Any]:
    info = result.codebook.metadata
    return {
        "size": result.codebook.k,
        "token_rate": info.token_rate,
        "segments": [{"domain": part.domain, "start": part.start, "stop": part.stop} for part in info.segments],
        "encoder": info.encoder,
        "path": str(result.path),
        "made": result.made,
    }


def _result_table(rows: list[dict[str, Any]]) -> str:
    def parts(row: dict[str, Any]) -> str:
        return " + ".join(f"{part['domain']} {part['stop'] - part['start']}" for part in row["segments"])

    columns = {"size": "size", "token rate": "token_rate", "rows": "parts", "path": "path"}
    return table_of([{**row, "parts": parts(row)} for row in rows], columns)
