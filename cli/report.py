"""`sctok report`: one HTML file of what was evaluated, with audio, and a listening test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, RootOption, emit, say, table

if TYPE_CHECKING:
    from sctok.evaluation.report.page import ReportResult


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Folders of sctok evaluate or probe, or their names under ROOT/reports."),
    ] = None,
    codebook: Annotated[
        list[Path] | None, typer.Option("--codebook", help="A codebook file to show; may be repeated.")
    ] = None,
    ratings: Annotated[
        list[Path] | None,
        typer.Option("--ratings", help="Ratings saved by the listening test, files or folders; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The HTML file.", show_default="report.html in the first RUN, else in ROOT/reports"),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Write every plot into this folder too, as PNG and SVG.")
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "Evaluation report",
    clips: Annotated[
        int, typer.Option("--clips", help="Clips of each run to listen to, spread over the domains.", min=0)
    ] = 6,
    seconds: Annotated[float, typer.Option("--seconds", help="Cut clips after so many seconds.")] = 10.0,
    listening_only: Annotated[
        bool, typer.Option("--listening-only", help="Only the blind test: the page to send to listeners.")
    ] = False,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file, with everything in it, on evaluations, probes, codebooks and listening tests.

    It opens without a network: tables with intervals, plots, spectrograms, players, and a blind listening test
    (MUSHRA) that saves ratings as JSON; --ratings scores them.
    """
    if not (runs or codebook or ratings):
        raise typer.BadParameter("give a run folder, --codebook or --ratings", param_hint="RUN")

    from sctok.evaluation.report.page import ReportConfig, write_report

    folders = [_run_folder(run, root) for run in runs or []]
    config = ReportConfig(title, clips, seconds, listening_only)
    target = out or (folders[0] if folders else root / "reports") / (
        "listening.html" if listening_only else "report.html"
    )
    if target.is_dir():
        raise typer.BadParameter(f"{target} is a folder; name a file that ends in .html", param_hint="--out")
    result = write_report(target, folders, codebooks=codebook or [], ratings=ratings or [], config=config, plots=plots)
    for scores in result.scores:
        for exclusion in scores.excluded:
            say(f"left out: {exclusion.listener} {exclusion.reason}")
    emit(_facts(result), as_json, lambda: _text(result))


def _run_folder(run: str, root: Path) -> Path:
    named = root / "reports" / run
    return named if not Path(run).exists() and named.exists() else Path(run)


def _facts(result: "ReportResult") -> dict[str, Any]:
    from dataclasses import asdict

    facts = {"path": str(result.path), "bytes": result.bytes, "clips": result.clips}
    return {**facts, "plots": [str(path) for path in result.plots], "ratings": [asdict(s) for s in result.scores]}


def _text(result: "ReportResult") -> str:
    lines = []
    for scores in result.scores:
        header = ("domain", "sound", "mean", "low", "high", "ratings")
        rows = [
            (r.domain, r.codec, *("-" if v is None else f"{v:.1f}" for v in (r.mean, r.low, r.high)), str(r.n))
            for r in scores.ratings
        ]
        lines += [f"listening test {scores.test}", table(header, rows), ""]
    plots = f", and {len(result.plots)} files of plots in {result.plots[0].parent}" if result.plots else ""
    size = f"{result.bytes / 1e6:.1f} MB, {result.clips} clip{'s' * (result.clips != 1)}"
    return "\n".join([*lines, f"{result.path} ({size}){plots}"])
