"""`sctok evaluate`: score codecs on reference audio with many metrics."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, DeviceOption, JsonOption, RetryOption, RootOption, SeedOption
from sctok.cli.shared.terminal import StageBars, emit, say, table

if TYPE_CHECKING:
    from sctok.evaluation.codecs.registry import CodecUnderTest
    from sctok.evaluation.evaluate import EvaluationProgress
    from sctok.evaluation.metrics.base import Metric
    from sctok.evaluation.references import Reference

COSTS = {"kbps": "kbit/s", "tokens_per_second": "tokens/s", "rtf_encode": "RTF encode", "rtf_decode": "RTF decode"}


@dataclass(frozen=True)
class ReferenceOptions:
    """Which clips are evaluated, and what is known about them."""

    panel: ClassVar[str] = "References"
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Choose clips from REFERENCE: paper, from folders of LibriTTS, AudioSet and MUSDB18; debian, from a "
            "folder with speech/, music/ and general/, only clips that the bundled models were not trained on."
        ),
    ] = None
    domain: Annotated[
        str | None,
        typer.Option(help="Domain of all references.", show_default="from the manifest or the folders' names"),
    ] = None
    transcripts: Annotated[
        Path | None,
        typer.Option(
            help="Transcripts for WER: a CSV or TSV with the columns path and text, or a folder of such files."
        ),
    ] = None
    seed: SeedOption = 0

    def listed(self, references: list[str]) -> "list[Reference]":
        """Return the references, each with its domain and transcript if known."""
        from sctok.evaluation.references import list_references, read_transcripts

        transcripts = read_transcripts(self.transcripts) if self.transcripts else None
        return list_references(references, self.domain, transcripts)

    def chosen(self, folders: list[str], root: Path) -> list[str]:
        """Return the manifest of the clips that the recipe chooses; without a recipe, `folders`."""
        from sctok.evaluation.recipes import RECIPES, write_recipe

        if self.recipe is None:
            return folders
        if self.recipe not in RECIPES:
            raise typer.BadParameter(f"{self.recipe!r} is not one of {', '.join(RECIPES)}", param_hint="--recipe")
        manifest = root / "reports" / f"{self.recipe}-{self.seed}.jsonl"
        return [str(write_recipe(self.recipe, folders, manifest, self.seed))]


@dataclass(frozen=True)
class MetricOptions:
    """What is measured."""

    panel: ClassVar[str] = "Metrics"
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics or groups of them, separated by commas, such as signal,visqol,wer; or all.",
            show_default="all that are installed",
        ),
    ] = None
    whisper: Annotated[
        str | None,
        typer.Option(help="Whisper checkpoint for WER: a folder or a name.", show_default="tiny.en if installed"),
    ] = None
    language: Annotated[str, typer.Option(help="Language of the speech for Whisper; auto detects it.")] = "en"
    workers: Annotated[int, typer.Option(help="Processes that score.", show_default="one per core", min=0)] = 0

    def chosen(self, transcripts: bool) -> "list[Metric]":
        """Return the metrics. transcripts: whether any reference has one."""
        from sctok.evaluation.metrics.registry import all_metrics, choose_metrics

        wanted = [name.strip() for name in (self.metrics or "").split(",") if name.strip()]
        if self.metrics is not None and not wanted:
            raise typer.BadParameter("is empty; omit it for all installed metrics", param_hint="--metrics")
        available = all_metrics(self.whisper, None if self.language == "auto" else self.language)
        try:
            chosen, left_out = choose_metrics(wanted, available, transcripts)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--metrics") from None
        for reason in left_out.values():
            say(f"left out: {reason}")
        return chosen


@dataclass(frozen=True)
class OutputOptions:
    """Where the results go and which existing ones are computed again."""

    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="ROOT/reports/ and the references' name")
    ] = None
    audio: Annotated[
        bool, typer.Option("--audio/--no-audio", help="Keep the references and the decoded audio to listen to.")
    ] = True
    retry_failed: RetryOption = False


@command(
    "sctok evaluate clips/ --codec mini --codec opus:6 --codec codec2:1200",
    "sctok evaluate LibriTTS/ --recipe paper --codec mini:steps=20 --metrics signal,wer --transcripts text.csv",
)
def evaluate(
    references: Annotated[
        list[str], typer.Argument(metavar="REFERENCE...", help="Folders, audio files, manifests and tar shards.")
    ],
    codec: Annotated[
        list[str],
        typer.Option(
            help="Codec to evaluate; may be repeated. One of mini, a codec's folder, mini:steps=20, opus:6, "
            "codec2:1200, mp3:16, encodec:1.5, 'cmd:NAME=… {in} {out}', dir:PATH, lowpass:3500, original."
        ),
    ],
    clips: ReferenceOptions,
    metrics: MetricOptions,
    output: OutputOptions,
    root: RootOption = DEFAULT_ROOT,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Encode and decode references with codecs and score the result: quality, bit rate and speed, in one table.

    The folder of the run gets scores.csv and scores.parquet with the scores of each file, summary.json with means and
    95 % confidence intervals, and the audio. Run the same command again to resume, or to add codecs and metrics. If a
    codec or a metric fails on a file, the row of the file gives the reason.
    """
    from sctok.evaluation.codecs.process import CodecProcess
    from sctok.evaluation.evaluate import EvaluationConfig, evaluate_codecs
    from sctok.formats.files import read_json

    references = clips.chosen(references, root)
    listed = clips.listed(references)
    chosen = metrics.chosen(any(each.transcript is not None for each in listed))
    folder = output.out or root / "reports" / (Path(references[0]).resolve().name.split(".")[0] or "evaluation")
    with CodecProcess(device) as process, StageBars() as bars:
        codecs = {spec: process.open(spec) for spec in codec}
        config = EvaluationConfig(metrics.workers, output.audio, output.retry_failed)
        evaluate_codecs(listed, codecs, chosen, folder, config, partial(_show_progress, bars))
    _show(folder, codecs, chosen, read_json(folder / "summary.json"), as_json)


def _show_progress(bars: StageBars, event: "EvaluationProgress") -> None:
    bars.update(event.stage, event.done, event.total, "metrics" if event.stage in ("score", "transcribe") else "files")


def _show(
    folder: Path,
    codecs: "dict[str, CodecUnderTest]",
    metrics: "list[Metric]",
    summary: list[dict[str, Any]],
    as_json: bool,
) -> None:
    """Print the summary and the number of missing values. Raises ValueError if there are no values."""
    names = {codec.name for codec in codecs.values()}
    ours = [entry for entry in summary if entry["codec"] in names]
    failed = sum(entry["failed"] for entry in ours if entry["domain"] == "all" and entry["metric"] == "kbps")
    emit({"folder": str(folder), "summary": summary}, as_json, lambda: f"{_text(summary, metrics)}\n\n{folder}")
    if not any(entry["n"] for entry in ours):
        raise ValueError(f"{folder / 'scores.csv'}: no codec returned any audio; the column `error` gives the reasons")
    missing = sum(entry["failed"] for entry in ours if entry["domain"] == "all" and entry["metric"] not in COSTS)
    if failed or missing:
        say(
            f"warning: codecs failed on {failed} files and {missing} values are missing; the reasons are in "
            f"{folder / 'scores.csv'}; add --retry-failed to try them again"
        )


def _text(summary: list[dict[str, Any]], metrics: "list[Metric]") -> str:
    titles = {**COSTS, **{metric.name: metric.name for metric in metrics}}
    found = {(entry["codec"], entry["domain"], entry["metric"]): entry for entry in summary}
    if any(metric.name == "wer" for metric in metrics):
        titles["wer_corpus"] = "wer (corpus)"
    rows = []
    groups = list(dict.fromkeys((domain, codec) for codec, domain, _ in found))
    for domain in sorted({domain for domain, _ in groups}, key=lambda name: (name == "all", name)):
        for codec in [codec for each, codec in groups if each == domain]:
            entries = [found.get((codec, domain, name)) for name in titles]
            rows.append((domain, codec, *map(_cell, entries)))
    shown = [i for i in range(len(titles) + 2) if i < 2 or any(row[i] != "-" for row in rows)]
    header = ("domain", "codec", *titles.values())
    return table(tuple(header[i] for i in shown), [tuple(row[i] for i in shown) for row in rows])


def _cell(entry: dict[str, Any] | None) -> str:
    """Return a mean and half the width of its confidence interval."""
    if entry is None or entry["mean"] is None:
        return "-"
    if entry["low"] is None or entry["metric"] in COSTS:
        return f"{entry['mean']:.3g}"
    return f"{entry['mean']:.3g}±{(entry['high'] - entry['low']) / 2:.2g}"
