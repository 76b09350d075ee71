"""`sctok report`: write an HTML file with evaluation results, audio and a listening test."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, JsonOption, RootOption
from sctok.cli.shared.terminal import emit, say, table_of

if TYPE_CHECKING:
    from sctok.evaluation.report.page import ReportConfig, ReportResult

_COLUMNS = {
    "domain": "domain",
    "sound": "codec",
    "mean": "mean:.1f",
    "low": "low:.1f",
    "high": "high:.1f",
    "ratings": "n",
}


@dataclass(frozen=True)
class PageOptions:
    """What the page contains."""

    panel: ClassVar[str] = "Page"
    codebook: Annotated[list[Path] | None, typer.Option(help="Codebook file to describe; may be repeated.")] = None
    ratings: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder of ratings that the listening test saved; may be repeated."),
    ] = None
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Evaluation report"
    clips: Annotated[
        int, typer.Option(help="Number of clips of each run to listen to, spread over the domains.", min=0)
    ] = 6
    seconds: Annotated[float, typer.Option(help="Longest clip, in seconds; longer ones are cut.")] = 10.0
    listening_only: Annotated[
        bool,
        typer.Option("--listening-only", help="Write only the blind listening test, as a page to send to listeners."),
    ] = False

    def config(self) -> "ReportConfig":
        """Return the configuration for the library."""
        from sctok.evaluation.report.page import ReportConfig

        return ReportConfig(self.title, self.clips, self.seconds, self.listening_only)


@command(
    "sctok report my-evaluation",
    "sctok report my-evaluation --listening-only --clips 12 --out test.html",
    "sctok report my-evaluation --ratings ratings/",
)
def report(
    page: PageOptions,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Folders of sctok evaluate or sctok probe, or their names in ROOT/reports."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write.", show_default="report.html in the first RUN or ROOT/reports"),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder that gets all plots as PNG and SVG files, too.")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML file about evaluations, probes, codebooks and listening tests.

    The page needs no network. It has tables with confidence intervals, plots, spectrograms, audio players, and a blind
    listening test (MUSHRA) that saves ratings as JSON. With --ratings it shows the results of that test.
    """
    if not (runs or page.codebook or page.ratings):
        raise typer.BadParameter("give a run folder, --codebook or --ratings", param_hint="RUN")

    from sctok.evaluation.report.page import write_report

    folders = [_run_folder(run, root) for run in runs or []]
    name = "listening.html" if page.listening_only else "report.html"
    target = out or (folders[0] if folders else root / "reports") / name
    if target.is_dir():
        raise typer.BadParameter(f"{target} is a folder; name a file that ends in .html", param_hint="--out")
    result = write_report(
        target, folders, codebooks=page.codebook or [], ratings=page.ratings or [], config=page.config(), plots=plots
    )
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
        lines += [f"listening test {scores.test}", table_of([vars(rating) for rating in scores.ratings], _COLUMNS), ""]
    plots = f", and {len(result.plots)} files of plots in {result.plots[0].parent}" if result.plots else ""
    size = f"{result.bytes / 1e6:.1f} MB, {result.clips} clip{'s' * (result.clips != 1)}"
    return "\n".join([*lines, f"{result.path} ({size}){plots}"])
