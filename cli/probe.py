"""`sctok probe`: what features and tokens know of labelled audio."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.codebooks import DEFAULT_ENCODER, wanted_codebook
from sctok.cli.shared.codecs import codec_path
from sctok.cli.shared.common import (
    DEFAULT_ROOT,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    Progress,
    RootOption,
    SeedOption,
    emit,
    one_of,
    say,
    table,
)
from sctok.cli.shared.runs import checked_name

if TYPE_CHECKING:
    from sctok.evaluation.probe.features import System
    from sctok.evaluation.probe.run import ProbeConfig, ProbeReport
    from sctok.formats.codebooks import Codebook

CHANGES = ("shift", "gain", "noise", "mp3")


def probe(
    labels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LABELS...",
            help="Tasks: folders with one subfolder per class, or tables with columns path, label and, where there "
            "are such, group, domain and fold.",
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="mini, base, or a file of AudioMAE weights.", show_default="mini, or none"),
    ] = None,
    codebook: Annotated[
        list[str] | None,
        typer.Option(
            "--codebook", help="Sizes of merged codebooks, bundled ones such as merged-4096-r50, or files; several."
        ),
    ] = None,
    token_rate: Annotated[
        int | None, typer.Option("--token-rate", help="100, 50 or 25: of --codebook given by size.")
    ] = None,
    codec: Annotated[
        list[str] | None, typer.Option("--codec", help="mini, the name of a codec in ROOT/codecs, or its folder.")
    ] = None,
    abx: Annotated[
        list[Path] | None,
        typer.Option("--abx", help="Tables of items for ABX: path, label, start, end, speaker, context."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", help="What paths in tables are relative to.", show_default="the table's folder"),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the results: ROOT/reports/NAME/probe.json.")] = "probe",
    root: RootOption = DEFAULT_ROOT,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results, instead.")] = None,
    representation: Annotated[
        list[str] | None,
        typer.Option("--representation", help="Probe those alone whose name fits: '*/features*'.", show_default="all"),
    ] = None,
    measure: Annotated[
        str, typer.Option("--measure", help="Some of probe, tokens, stability, with commas between.")
    ] = "probe,tokens,stability",
    pooling: Annotated[
        str,
        typer.Option(
            "--pooling",
            help="mean: over time and frequency rows; rows: over time, rows beside each other.",
            callback=one_of("mean", "rows"),
        ),
    ] = "mean",
    folds: Annotated[int, typer.Option("--folds", help="At most; groups stay whole.", min=3)] = 5,
    grid_points: Annotated[int, typer.Option("--grid-points", help="Tried of 16.", min=1, max=16)] = 8,
    search: Annotated[
        str,
        typer.Option(
            "--search", help="Try them in the first fold (HEAR), or in every.", callback=one_of("first", "every")
        ),
    ] = "first",
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the probes' hidden layers.", min=1)] = 1024,
    epochs: Annotated[int, typer.Option("--epochs", help="Of a probe's training, at most.", min=1)] = 500,
    seconds: Annotated[float, typer.Option("--seconds", help="Of each clip, from its start.", min=0.01)] = 30.0,
    stability_clips: Annotated[
        int, typer.Option("--stability-clips", help="Clips of each task that are changed and encoded again.", min=1)
    ] = 50,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Probe what features and tokens know of labelled audio, and count what the tokens are like.

    Small networks on the time mean of features, of tokens and of log-mel frames tell the classes apart, by the protocol
    of the HEAR benchmark. Of tokens: usage, entropy, bits per second really needed, run lengths, purity, and how many
    stay the same under a shift by one sample, gain, noise and MP3. Clips that cannot be read are named, the rest goes
    on. Interrupted, it goes on with the next task when the same command is run again.
    """
    if not labels and not abx:
        raise typer.BadParameter("name a task, or items with --abx", param_hint="LABELS")
    folder = out or root / "reports" / checked_name(name, "--name")

    from sctok.evaluation.probe.mlp import MlpConfig
    from sctok.evaluation.probe.run import MEASURES, ProbeConfig, ProbeReport

    measures = tuple(part.strip() for part in measure.split(","))
    if unknown := set(measures) - set(MEASURES):
        raise typer.BadParameter(f"{min(unknown)!r} is none of {', '.join(MEASURES)}", param_hint="--measure")
    mlp = MlpConfig(folds, grid_points, search, hidden, max_epochs=epochs, seed=seed)  # type: ignore[arg-type]
    settings = ProbeConfig(mlp, seconds, pooling, tuple(representation or ()), measures, stability_clips)
    wanted = [part for given in codebook or () for part in given.split(",")]
    fitting = encoder[0] if encoder and len(encoder) == 1 else None
    books = [wanted_codebook(root / "codebooks", one, token_rate, fitting) for one in wanted]
    codecs = [codec_path(one, root) for one in codec or ()]
    encoders = encoder or ([] if codecs and not books else [DEFAULT_ENCODER])
    systems = _load_systems(encoders, books, codecs, device, precision)
    report = ProbeReport(folder, settings, systems)
    _run_tasks(report, labels or [], abx or [], audio, systems, settings, device)
    emit(report.to_json(), as_json, lambda: _text(report))
    if report.sections["failed"]:
        count = len(report.sections["failed"])
        say(f"warning: {count} clips have no part in the results; {report.path} lists the reasons")
    if report.sections["errors"]:
        raise typer.Exit(1)


def _load_systems(
    encoders: Sequence[str], books: "Sequence[Codebook]", codecs: Sequence[str], device: str, precision: str
) -> "list[System]":
    from sctok.evaluation.probe.features import EncoderSystem, MelSystem, load_codec_system
    from sctok.features.extractor import load_encoder

    extractors = [load_encoder(name, device, precision) for name in encoders]
    hashes = {extractor.hash for extractor in extractors}
    for book in books:
        info = book.metadata
        if info.encoder_hash not in hashes:
            raise typer.BadParameter(
                f"a codebook is for the encoder {info.encoder} ({info.encoder_hash}), which is none of "
                f"{', '.join(f'{each.name} ({each.hash})' for each in extractors)}; name it with --encoder, or take "
                "a codebook of features with --padding keep where its hash ends in -cut",
                param_hint="--codebook",
            )
    systems: list[System] = [MelSystem()]
    for extractor in extractors:
        own = [book for book in books if book.metadata.encoder_hash == extractor.hash]
        systems.append(EncoderSystem(extractor, own))
    return systems + [load_codec_system(path, device, precision) for path in codecs]


def _run_tasks(
    report: "ProbeReport",
    labels: Sequence[str],
    tables: Sequence[Path],
    audio: Path | None,
    systems: "Sequence[System]",
    settings: "ProbeConfig",
    device: str,
) -> None:
    """Measure each task; one that cannot be measured is named, and the others go on."""
    jobs: dict[str, Callable[[str], None]] = {}
    for source in labels:
        work = partial(_measure_task, report, source, audio, systems, settings, device)
        _take(jobs, Path(source).resolve().stem, work)
    for path in tables:
        _take(jobs, f"{path.stem} (ABX)", partial(_measure_abx, report, path, audio, systems, settings))
    for name, job in jobs.items():
        try:
            job(name)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            say(f"error: {name}: {reason}")
            report.begin(name, "")
            report.add(name, None, errors=[{"reason": reason}])


def _take(jobs: dict[str, Callable[[str], None]], name: str, job: Callable[[str], None]) -> None:
    if name in jobs:
        raise typer.BadParameter(f"two tasks are called {name}; rename one, or run a command for each")
    jobs[name] = job


def _measure_task(
    report: "ProbeReport",
    source: str,
    audio: Path | None,
    systems: "Sequence[System]",
    settings: "ProbeConfig",
    device: str,
    name: str,
) -> None:
    from sctok.evaluation.probe.labels import read_task
    from sctok.evaluation.probe.run import probe_task, task_fingerprint
    from sctok.runtime.devices import resolve_device

    task = read_task(source, audio)
    fingerprint = task_fingerprint(task.clips)
    if report.begin(name, fingerprint):
        with Progress(name, len(task.clips), "clips") as bar:
            rows = probe_task(task, systems, settings, bar.update, resolve_device(device))
        report.add(name, fingerprint, **rows)


def _measure_abx(
    report: "ProbeReport",
    path: Path,
    audio: Path | None,
    systems: "Sequence[System]",
    settings: "ProbeConfig",
    name: str,
) -> None:
    from sctok.evaluation.probe.abx import read_abx_items
    from sctok.evaluation.probe.run import probe_abx, task_fingerprint

    items, rejected = read_abx_items(path, audio)
    fingerprint = task_fingerprint(items)
    if report.begin(name, fingerprint):
        with Progress(name, len({item.clip.path for item in items}), "clips") as bar:
            rows = probe_abx(items, rejected, systems, settings, bar.update)
        report.add(name, fingerprint, **rows)


def _text(report: "ProbeReport") -> str:
    parts = [_accuracies(report.sections["tasks"]), _tokens(report.sections["tokens"]), _abx(report.sections["abx"])]
    notes = [f"note: {row['task']}: {row['note']}" for row in report.sections["notes"]]
    return "\n\n".join([*filter(None, parts), *(["\n".join(notes)] if notes else []), str(report.path)])


def _accuracies(rows: Sequence[dict[str, Any]]) -> str:
    header = ("task", "clips", "classes", "majority", "representation", "accuracy", "± clips", "± groups", "± folds")
    fields = ("majority", "accuracy", "standard_error", "group_standard_error", "fold_standard_error")
    cells: list[tuple[str, ...]] = []
    for row in rows:
        majority, *numbers = (f"{row[name]:.3f}" for name in fields)
        about = (row["task"], str(row["clips"]), str(row["classes"]), majority)
        cells.append((*about, row["representation"], *numbers))
    return table(header, cells) if cells else ""


def _tokens(rows: Sequence[dict[str, Any]]) -> str:
    numbers = {
        "size": ("size", "d"),
        "usage": ("usage", ".3f"),
        "entropy": ("entropy", ".2f"),
        "perplexity": ("perplexity", ".0f"),
        "bit/s": ("nominal_bits_per_second", ".0f"),
        "needed": ("bits_per_second", ".0f"),
        "pairs": ("bigram_bits_per_second", ".0f"),
        "coded": ("coded_bits_per_second", ".0f"),
        "run": ("run_length", ".2f"),
        "purity": ("purity", ".3f"),
        "by chance": ("shuffled_purity", ".3f"),
        "NMI": ("nmi", ".3f"),
        "chance": ("shuffled_nmi", ".3f"),
    }
    shown = {title: how for title, how in numbers.items() if any(how[0] in row for row in rows)}
    changes = [change for change in CHANGES if any(change in row["stability"] for row in rows)]
    cells: list[tuple[str, ...]] = []
    for row in rows:
        counted = (_number(row.get(key), form) for key, form in shown.values())
        kept = (_number(row["stability"].get(change, {}).get("unchanged"), ".3f") for change in changes)
        cells.append((row["task"], row["stream"], *counted, *kept))
    return table(("task", "stream", *shown, *changes), cells) if cells else ""


def _abx(rows: Sequence[dict[str, Any]]) -> str:
    header = ("task", "representation", "speakers", "ABX error", "±", "class pairs", "triples")
    cells: list[tuple[str, ...]] = [
        (
            row["task"],
            row["representation"],
            row["mode"],
            f"{row['error']:.3f}",
            _number(row["standard_error"], ".3f"),
            str(row["pairs"]),
            str(row["triples"]),
        )
        for row in rows
    ]
    return table(header, cells) if cells else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
