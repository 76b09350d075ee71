"""`sctok probe`: how well features and tokens tell labelled audio apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from sctok.cli.shared.codebooks import DEFAULT_ENCODER, wanted_codebook
from sctok.cli.shared.codecs import codec_path
from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    RootOption,
    SeedOption,
    checked_name,
    split_list,
)
from sctok.cli.shared.terminal import StageBars, emit, say, table_of

if TYPE_CHECKING:
    from sctok.evaluation.probe.features import System
    from sctok.evaluation.probe.measures import ProbeConfig
    from sctok.evaluation.probe.run import ProbeProgress, ProbeReport, ProbeTasks
    from sctok.formats.codebooks import Codebook

CHANGES = ("shift", "gain", "noise", "mp3")


@dataclass(frozen=True)
class SystemOptions:
    """The encoders, codebooks and codecs that are probed."""

    panel: ClassVar[str] = "Encoders, codebooks and codecs"
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="AudioMAE encoder: mini, base, or a file of weights; may be repeated.",
            show_default="mini, unless --codec is given",
        ),
    ] = None
    codebook: Annotated[
        list[str] | None,
        typer.Option(
            help="Codebooks, repeated or separated by commas: sizes of merged ones in ROOT/codebooks, bundled names "
            "such as merged-4096-r50, or files."
        ),
    ] = None
    token_rate: Annotated[
        int | None,
        typer.Option(
            help="Token rate of codebooks that are given by size: 100, 50 or 25 per second.", show_default="100"
        ),
    ] = None
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Codec: mini (bundled), a name in ROOT/codecs, or a folder; may be repeated."),
    ] = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "auto"

    def load(self, root: Path) -> "list[System]":
        """Return what is probed: log-mel frames, each encoder with its codebooks, and each codec."""
        from sctok.evaluation.probe.features import EncoderSystem, MelSystem, load_codec_system
        from sctok.features.extractor import load_encoder

        fitting = self.encoder[0] if self.encoder and len(self.encoder) == 1 else None
        wanted = split_list(self.codebook)
        books = [wanted_codebook(root / "codebooks", one, self.token_rate, fitting) for one in wanted]
        codecs = [codec_path(one, root) for one in self.codec or ()]
        names = self.encoder or ([] if codecs and not books else [DEFAULT_ENCODER])
        extractors = [load_encoder(name, self.device, self.precision) for name in names]
        _check_encoders(books, {extractor.hash: extractor.name for extractor in extractors})
        systems: list[System] = [MelSystem()]
        for extractor in extractors:
            own = [book for book in books if book.metadata.encoder_hash == extractor.hash]
            systems.append(EncoderSystem(extractor, own))
        return systems + [load_codec_system(path, self.device, self.precision) for path in codecs]


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how the probes are trained."""

    panel: ClassVar[str] = "Measures and probes"
    representation: Annotated[
        list[str] | None,
        typer.Option(
            help="Probe only representations whose name matches this pattern, such as '*/features*'; may be repeated.",
            show_default="all",
        ),
    ] = None
    measure: Annotated[str, typer.Option(help="What to measure, separated by commas: probe, tokens, stability.")] = (
        "probe,tokens,stability"
    )
    pooling: Annotated[
        Literal["mean", "rows"],
        typer.Option(
            help="Averaging of features. mean: over time and frequency rows; rows: over time, with the rows "
            "concatenated."
        ),
    ] = "mean"
    folds: Annotated[
        int, typer.Option(help="Largest number of cross-validation folds; groups are not split.", min=3)
    ] = 5
    grid_points: Annotated[
        int, typer.Option(help="Hyperparameter settings to try, of the 16 of HEAR.", min=1, max=16)
    ] = 8
    search: Annotated[
        Literal["first", "every"],
        typer.Option(help="Search hyperparameters in the first fold only, as HEAR does, or in every fold."),
    ] = "first"
    hidden: Annotated[int, typer.Option(help="Width of the probes' hidden layers.", min=1)] = 1024
    epochs: Annotated[int, typer.Option(help="Largest number of epochs of a probe.", min=1)] = 500
    seconds: Annotated[float, typer.Option(help="Seconds of each clip to use, from its start.", min=0.01)] = 30.0
    stability_clips: Annotated[
        int, typer.Option(help="Clips of each task that are altered and encoded again for stability.", min=1)
    ] = 50
    seed: SeedOption = 0

    def config(self) -> "ProbeConfig":
        """Return the configuration for the library."""
        from sctok.evaluation.probe.measures import MEASURES, ProbeConfig
        from sctok.evaluation.probe.mlp import MlpConfig

        measures = tuple(part.strip() for part in self.measure.split(","))
        if unknown := set(measures) - set(MEASURES):
            raise typer.BadParameter(f"{min(unknown)!r} is not one of {', '.join(MEASURES)}", param_hint="--measure")
        mlp = MlpConfig(self.folds, self.grid_points, self.search, self.hidden, max_epochs=self.epochs, seed=self.seed)
        names = tuple(self.representation or ())
        return ProbeConfig(mlp, self.seconds, self.pooling, names, measures, self.stability_clips)


@dataclass(frozen=True)
class TaskOptions:
    """Tasks next to LABELS, and where their audio is."""

    panel: ClassVar[str] = "Tasks"
    abx: Annotated[
        list[Path] | None,
        typer.Option(
            help="Table of ABX items with the columns path, label, start, end, speaker and context; may be repeated."
        ),
    ] = None
    audio: Annotated[
        Path | None,
        typer.Option(help="Folder that paths in tables are relative to.", show_default="the folder of the table"),
    ] = None

    def tasks(self, labels: list[str]) -> "ProbeTasks":
        """Return the tasks for the library."""
        if not labels and not self.abx:
            raise typer.BadParameter("name a task, or items with --abx", param_hint="LABELS")

        from sctok.evaluation.probe.run import ProbeTasks

        try:
            return ProbeTasks(labels, self.abx or (), self.audio)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="LABELS") from None


@command(
    "sctok probe ESC-50/meta.csv --audio ESC-50/audio --codebook 4096",
    "sctok probe keywords/ --codec mini --measure tokens,stability",
)
def probe(
    tasks: TaskOptions,
    systems: SystemOptions,
    measures: MeasureOptions,
    labels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LABELS...",
            help="Tasks: folders with one subfolder for each class, or tables with the columns path and label, and "
            "optionally group, domain and fold.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the results, which go to ROOT/reports/NAME/probe.json.")] = "probe",
    root: RootOption = DEFAULT_ROOT,
    out: Annotated[Path | None, typer.Option(help="Folder of the results, instead of --name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well features and tokens tell labelled audio apart, and describe the tokens.

    Small networks classify clips from the time mean of features, of tokens and of log-mel frames, by the protocol of
    the HEAR benchmark. For tokens you also get usage, entropy, bits per second, run lengths, purity, and the share
    that stays the same under a shift by one sample, gain, noise and MP3. Run the same command again to resume with the
    next task. Clips that cannot be read are reported and skipped.
    """
    wanted = tasks.tasks(labels or [])
    folder = out or root / "reports" / checked_name(name, "--name")

    from sctok.evaluation.probe.run import ProbeReport, run_probes
    from sctok.runtime.devices import resolve_device

    report = ProbeReport(folder, measures.config(), systems.load(root))
    with StageBars() as bars:
        run_probes(report, wanted, partial(_show_progress, bars), resolve_device(systems.device))
    emit(report.to_json(), as_json, lambda: _text(report))
    if report.sections["failed"]:
        count = len(report.sections["failed"])
        say(f"warning: {count} clips are missing from the results; {report.path} lists the reasons")
    if report.sections["errors"]:
        raise typer.Exit(1)


def _show_progress(bars: StageBars, event: "ProbeProgress") -> None:
    if event.error:
        bars.close()
        say(f"error: {event.task}: {event.error}")
    else:
        bars.update(event.task, event.done, event.total, "clips")


def _check_encoders(books: "Sequence[Codebook]", names: dict[str, str]) -> None:
    """Check that each codebook belongs to one of the encoders, given by hash and name."""
    for book in books:
        info = book.metadata
        if info.encoder_hash not in names:
            existing = ", ".join(f"{name} ({code})" for code, name in names.items())
            raise typer.BadParameter(
                f"a codebook was made with the encoder {info.encoder} ({info.encoder_hash}), not {existing}; name "
                "its encoder with --encoder, or, if the hash ends in -cut, choose a codebook of features with "
                "--padding keep",
                param_hint="--codebook",
            )


def _text(report: "ProbeReport") -> str:
    parts = [_accuracies(report.sections["tasks"]), _tokens(report.sections["tokens"]), _abx(report.sections["abx"])]
    notes = [f"note: {row['task']}: {row['note']}" for row in report.sections["notes"]]
    return "\n\n".join([*filter(None, parts), *(["\n".join(notes)] if notes else []), str(report.path)])


def _accuracies(rows: Sequence[dict[str, Any]]) -> str:
    columns = {
        "task": "task",
        "clips": "clips",
        "classes": "classes",
        "majority": "majority:.3f",
        "representation": "representation",
        "accuracy": "accuracy:.3f",
        "± clips": "standard_error:.3f",
        "± groups": "group_standard_error:.3f",
        "± folds": "fold_standard_error:.3f",
    }
    return table_of(rows, columns) if rows else ""


def _tokens(rows: Sequence[dict[str, Any]]) -> str:
    numbers = {
        "size": "size",
        "usage": "usage:.3f",
        "entropy": "entropy:.2f",
        "perplexity": "perplexity:.0f",
        "bit/s": "nominal_bits_per_second:.0f",
        "needed": "bits_per_second:.0f",
        "pairs": "bigram_bits_per_second:.0f",
        "coded": "coded_bits_per_second:.0f",
        "run": "run_length:.2f",
        "purity": "purity:.3f",
        "by chance": "shuffled_purity:.3f",
        "NMI": "nmi:.3f",
        "chance": "shuffled_nmi:.3f",
        **{change: f"{change}:.3f" for change in CHANGES},
    }
    flat = [{**row, **{name: kept["unchanged"] for name, kept in row["stability"].items()}} for row in rows]
    shown = {title: column for title, column in numbers.items() if any(column.partition(":")[0] in row for row in flat)}
    return table_of(flat, {"task": "task", "stream": "stream", **shown}) if rows else ""


def _abx(rows: Sequence[dict[str, Any]]) -> str:
    columns = {
        "task": "task",
        "representation": "representation",
        "speakers": "mode",
        "ABX error": "error:.3f",
        "±": "standard_error:.3f",
        "class pairs": "pairs",
        "triples": "triples",
    }
    return table_of(rows, columns) if rows else ""
