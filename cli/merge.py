"""`sctok merge`: one codebook from those of several domains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, RootOption, emit, one_of, say, table

from .cluster import parse_sizes

if TYPE_CHECKING:
    from sctok.kmeans_tools.merging import MergedCodebook


def merge(
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="Size of the merged codebook; several are allowed. Default: all that can be."),
    ] = None,
    token_rate: Annotated[
        list[int] | None, typer.Option("--token-rate", help="100, 50 or 25. Default: all at hand.")
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option("--ratio", help="Shares of the domains, in row order. Default: general=2,speech=1,music=1."),
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    codebooks: Annotated[
        Path | None, typer.Option("--codebooks", help="Folder of codebooks. Default: codebooks under --root.")
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            help="float32, or float16: round the centroids, for a file of half the size.",
            callback=one_of("float32", "float16"),
        ),
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace merged codebooks that differ.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge domain codebooks into one, by default general : speech : music at 2 : 1 : 1 as in the paper."""
    sizes = parse_sizes(size, "--size") if size else []
    rates = _checked_rates(token_rate or [])

    import numpy as np

    from sctok.kmeans_tools.merging import PAPER_RATIO, build_merged, choose_plans

    shares = PAPER_RATIO if ratio is None else parse_ratio(ratio)
    folder = codebooks or root / "codebooks"
    plans = choose_plans(folder, shares, sizes, rates)
    dtype = np.float16 if store == "float16" else np.float32
    results = build_merged(folder, plans, shares, overwrite=overwrite, dtype=dtype)
    for result in results:
        if not result.made:
            say(f"{result.path} is there already, merged from the same codebooks")
    rows = [_result_row(result) for result in results]
    emit({"ratio": shares, "codebooks": rows}, as_json, lambda: _result_table(rows))


def parse_ratio(text: str) -> dict[str, int]:
    """Return the shares of `general=2,speech=1` by domain, in their order."""
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
    cells: list[tuple[str, ...]] = []
    for row in rows:
        parts = " + ".join(f"{part['domain']} {part['stop'] - part['start']}" for part in row["segments"])
        cells.append((str(row["size"]), str(row["token_rate"]), parts, row["path"]))
    return table(("size", "token rate", "rows", "path"), cells)
