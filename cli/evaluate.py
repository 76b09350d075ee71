"""`sctok evaluate`: codecs over references, by many metrics, in one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    Progress,
    RootOption,
    SeedOption,
    emit,
    say,
    table,
)
from sctok.cli.shared.runs import RetryOption

if TYPE_CHECKING:
    from sctok.evaluation.codecs.registry import CodecUnderTest
    from sctok.evaluation.evaluate import EvaluationProgress
    from sctok.evaluation.metrics.base import Metric

COSTS = {"kbps": "kbit/s", "tokens_per_second": "tokens/s", "rtf_encode": "RTF encode", "rtf_decode": "RTF decode"}


def evaluate(
    references: Annotated[
        list[str], typer.Argument(metavar="REFERENCE...", help="Folders, audio files, manifests and tar shards.")
    ],
    codec: Annotated[
        list[str],
        typer.Option(
            "--codec",
            help="mini, a codec's folder, mini:steps=20, opus:6, codec2:1200, mp3:16, encodec:1.5, 'cmd:NAME=… {in} "
            "{out}', dir:PATH, lowpass:3500, original; repeat it for several.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Choose clips: paper, of folders LibriTTS, AudioSet and MUSDB18; debian, of a folder with speech/, "
            "music/ and general/, what the bundled models were not trained on.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", help="Names or groups with commas: signal,visqol,wer; all.", show_default="installed"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.", show_default="reports/<name of the references>")
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option("--domain", help="Of all files.", show_default="from the manifest or the folders' names"),
    ] = None,
    transcripts: Annotated[
        Path | None,
        typer.Option("--transcripts", help="CSV or TSV with path and text, or a folder of such; for WER."),
    ] = None,
    whisper: Annotated[
        str | None,
        typer.Option("--whisper", help="Checkpoint for WER: a folder or a name.", show_default="tiny.en if installed"),
    ] = None,
    language: Annotated[str, typer.Option("--language", help="Of the speech, for Whisper; auto to guess.")] = "en",
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Keep references and decoded audio.")] = True,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes that score.", show_default="one per core", min=0)
    ] = 0,
    retry_failed: RetryOption = False,
    seed: SeedOption = 0,
    root: RootOption = DEFAULT_ROOT,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Put references through codecs and score what comes back: quality, bit rate and speed, in one table.

    Scores per file go to scores.csv and scores.parquet, means with 95 % confidence intervals to summary.json, the audio
    to listen to beside them. Interrupted, the same command goes on; codecs and metrics can be added later. A file that
    a codec or a metric fails on has the reason in its row.
    """
    from sctok.evaluation.codecs.process import CodecProcess
    from sctok.evaluation.evaluate import EvaluationConfig, evaluate_codecs
    from sctok.evaluation.references import list_references, read_transcripts
    from sctok.formats.files import read_json

    if recipe is not None:
        references = [_chosen(recipe, references, root, seed)]
    listed = list_references(references, domain, read_transcripts(transcripts) if transcripts else None)
    chosen = _metrics(metrics, whisper, language, any(each.transcript is not None for each in listed))
    folder = out or root / "reports" / (Path(references[0]).resolve().name.split(".")[0] or "evaluation")
    with CodecProcess(device) as process, _Stages() as progress:
        codecs = {spec: process.open(spec) for spec in codec}
        evaluate_codecs(listed, codecs, chosen, folder, EvaluationConfig(workers, audio, retry_failed), progress)
    _show(folder, codecs, chosen, read_json(folder / "summary.json"), as_json)


def _chosen(recipe: str, folders: list[str], root: Path, seed: int) -> str:
    """Return the manifest of the clips that a recipe chooses."""
    from sctok.evaluation.recipes import RECIPES, write_recipe

    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is none of {', '.join(RECIPES)}", param_hint="--recipe")
    return str(write_recipe(recipe, folders, root / "reports" / f"{recipe}-{seed}.jsonl", seed))


def _metrics(names: str | None, whisper: str | None, language: str, transcripts: bool) -> "list[Metric]":
    from sctok.evaluation.metrics.registry import all_metrics, choose_metrics

    wanted = [name.strip() for name in names.split(",") if name.strip()] if names is not None else []
    if names is not None and not wanted:
        raise typer.BadParameter("is empty; leave it out for all that is installed", param_hint="--metrics")
    available = all_metrics(whisper, None if language == "auto" else language)
    try:
        chosen, left_out = choose_metrics(wanted, available, transcripts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--metrics") from None
    for reason in left_out.values():
        say(f"left out: {reason}")
    return chosen


class _Stages:
    """A progress bar for each stage of an evaluation, one after the other."""

    def __init__(self) -> None:
        self._stage = ""
        self._done = 0
        self._bar: Progress | None = None

    def __call__(self, event: "EvaluationProgress") -> None:
        if event.stage != self._stage:
            self.__exit__()
            self._stage, self._done = event.stage, 0
            unit = "metrics" if event.stage in ("score", "transcribe") else "files"
            self._bar = Progress(event.stage, total=event.total, unit=unit)
        assert self._bar is not None
        self._bar.update(event.done - self._done)
        self._done = event.done

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _show(
    folder: Path,
    codecs: "dict[str, CodecUnderTest]",
    metrics: "list[Metric]",
    summary: list[dict[str, Any]],
    as_json: bool,
) -> None:
    """Print the summary; say how many values are missing. Raises ValueError where there is none at all."""
    names = {codec.name for codec in codecs.values()}
    ours = [entry for entry in summary if entry["codec"] in names]
    failed = sum(entry["failed"] for entry in ours if entry["domain"] == "all" and entry["metric"] == "kbps")
    emit({"folder": str(folder), "summary": summary}, as_json, lambda: f"{_text(summary, metrics)}\n\n{folder}")
    if not any(entry["n"] for entry in ours):
        raise ValueError(f"{folder / 'scores.csv'}: no codec gave any audio; its column `error` has the reasons")
    missing = sum(entry["failed"] for entry in ours if entry["domain"] == "all" and entry["metric"] not in COSTS)
    if failed or missing:
        say(
            f"warning: {failed} of the files came through no codec and {missing} values are missing; the reasons are "
            f"in {folder / 'scores.csv'}; --retry-failed tries them again"
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
