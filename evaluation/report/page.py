"""The report: one self-contained HTML file about evaluations, probes, codebooks and listening tests."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sctok
from sctok.evaluation.scores import ALL_DOMAINS
from sctok.formats.codebooks import Codebook, load_codebook
from sctok.formats.describe import count_summary
from sctok.formats.files import atomic_path, hash_json

from .clips import ReportClip, build_clip, choose_files, frequency_marks
from .mushra import ListeningScores, MushraConfig, Rating, load_ratings, score_ratings
from .plots import (
    Plot,
    centroid_map,
    inertia_plot,
    inline_svg,
    quality_plot,
    ratings_plot,
    save_plot,
    spectrogram_plot,
    usage_plot,
)
from .runs import EvaluationRun, failures, load_run
from .tables import Table, codec_scores, probe_part, record_table, run_metrics, score_tables

PAGE = "page.html.j2"
WIDE = 7.0  # inches


@dataclass(frozen=True)
class ReportConfig:
    """The content of a report. Raises ValueError if a value is out of range.

    Attributes:
        title: title of the page.
        clips: maximum number of clips of each run, 0 for no audio.
        seconds: length at which clips are cut.
        listening_only: whether to include only the listening test.
        mushra: scoring of listening tests.
    """

    title: str = "Evaluation report"
    clips: int = 6
    seconds: float = 10.0
    listening_only: bool = False
    mushra: MushraConfig = field(default_factory=MushraConfig)

    def __post_init__(self) -> None:
        if self.clips < 0:
            raise ValueError(f"clips={self.clips} must be at least 0")
        if not 0.1 <= self.seconds <= 600:
            raise ValueError(f"seconds={self.seconds} must be between 0.1 and 600")
        if self.listening_only and not self.clips:
            raise ValueError("a listening test needs clips")


@dataclass(frozen=True)
class ReportResult:
    """The path of the page, its size in bytes, its number of clips, the files of plots, and the listening scores."""

    path: Path
    bytes: int
    clips: int
    plots: tuple[Path, ...]
    scores: tuple[ListeningScores, ...]


def write_report(
    out: str | os.PathLike[str],
    runs: Sequence[str | os.PathLike[str]],
    *,
    codebooks: Sequence[str | os.PathLike[str]] = (),
    ratings: Sequence[str | os.PathLike[str]] = (),
    config: ReportConfig | None = None,
    plots: str | os.PathLike[str] | None = None,
) -> ReportResult:
    """Write a report to `out`, atomically.

    Args:
        out: the HTML file.
        runs: folders of `sctok evaluate` and `sctok probe`.
        codebooks: codebook files.
        ratings: files or folders of ratings from the listening test.
        config: content of the report.
        plots: folder for all figures, and the spectrograms of each clip, as PNG and SVG; None to write none.

    Raises:
        ImportError: jinja2 or matplotlib is missing; the message names the extra to install.
        ValueError: there is nothing to report on.
        FileNotFoundError, FormatError: a run, codebook or file of ratings is missing or damaged.
    """
    config = config or ReportConfig()
    _check_libraries()
    if not runs and not codebooks and not ratings:
        raise ValueError("nothing to report on: give a run folder, --codebook or --ratings")
    loaded = [load_run(folder) for folder in runs]
    books = _load_codebooks([Path(path) for path in codebooks])
    scores = score_ratings(load_ratings(ratings), config.mushra)
    clips = _clips(loaded, config)

    drawn: list[Plot] = []
    page = {
        "title": config.title,
        "version": sctok.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "listening_only": config.listening_only,
        "runs": [] if config.listening_only else [_run_part(run, i, drawn) for i, run in enumerate(loaded)],
        "codebooks": _codebook_part(books, drawn) if books and not config.listening_only else None,
        "ratings": [] if config.listening_only else [_ratings_part(test, i, drawn) for i, test in enumerate(scores)],
        "rule": _rule(config.mushra),
        "clips": clips,
        "many_runs": len(loaded) > 1,
        "test_data": _test_data(clips, config.title),
    }
    page["contents"] = _contents(page)
    with atomic_path(out) as temporary:
        temporary.write_text(_render(page), encoding="utf-8")
    files = [] if plots is None else _save_all(drawn, clips, Path(plots))
    return ReportResult(Path(out), Path(out).stat().st_size, len(clips), tuple(files), tuple(scores))


def _check_libraries() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing; install sctok[eval] to write reports") from None


def _load_codebooks(paths: Sequence[Path]) -> dict[str, Codebook]:
    """Return codebooks by the names of their files, or by their paths if names are equal."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): load_codebook(path) for path in paths}


def _clips(runs: Sequence[EvaluationRun], config: ReportConfig) -> list[ReportClip]:
    chosen = [(run, file) for run in runs for file in choose_files(run, config.clips)]
    return [build_clip(run, file, f"clip{index}", config.seconds) for index, (run, file) in enumerate(chosen)]


def _run_part(run: EvaluationRun, index: int, drawn: list[Plot]) -> dict[str, Any]:
    tables = score_tables(run) if run.summary else []
    plot = quality_plot(
        codec_scores(run, ALL_DOMAINS),
        run_metrics(run),
        f"quality-{index + 1}-{_plain(run.name)}",
        f"{run.name}: quality against bit rate",
    )
    failed = failures(run)
    facts = [f"{len(run.files)} files", f"{len(run.codecs)} codecs"] if run.codecs else []
    facts += [f"evaluated {run.created[:10]}"] if run.created else []
    facts += [f"by sctok {run.sctok}"] if run.sctok else []
    notes = list(run.notes)
    if run.codecs and run.files and not choose_files(run, 1):
        notes.append("The run has no audio to listen to; evaluate without --no-audio to keep it.")
    return {
        "id": f"run{index}",
        "name": run.name,
        "facts": ", ".join(facts),
        "notes": notes,
        "tables": tables,
        "has_intervals": any(cell.interval for table in tables for row in table.rows for cell in row),
        "plots": _shown([plot], drawn),
        "failures": record_table("Failures", failed) if failed else None,
        "metrics": [metric for metric in run.metrics if metric.get("protocol")],
        "probe": probe_part(run.probe),
    }


def _codebook_part(books: dict[str, Codebook], drawn: list[Plot]) -> dict[str, Any]:
    notes = []
    curves = {
        name: [value / book.metadata.n_vectors / book.metadata.stack_factor for value in book.metadata.inertia_history]
        for name, book in books.items()
        if book.metadata.inertia_history and book.metadata.n_vectors
    }
    if missing := [name for name in books if name not in curves]:
        notes.append(f"No inertia history: {', '.join(missing)}.")
    plots: list[Plot | None] = [inertia_plot(curves), usage_plot({name: book.counts for name, book in books.items()})]
    merged = {name: book for name, book in books.items() if len(book.metadata.segments) > 1}
    if not merged:
        notes.append("No map of centroids by domain: none of the codebooks is merged.")
    for name, book in merged.items():
        plots.append(centroid_map(name, book.centroids, book.metadata.segments, f"centroids-{_plain(name)}"))
    table = record_table("Codebooks", [_codebook_record(name, book) for name, book in books.items()])
    return {"table": table, "plots": _shown(plots, drawn), "notes": notes}


def _codebook_record(name: str, book: Codebook) -> dict[str, Any]:
    info = book.metadata
    record: dict[str, Any] = {"codebook": name, "domain": info.domain, "centroids": book.k, "rate": info.token_rate}
    if info.segments and len(info.segments) > 1:
        record["domain"] = " + ".join(f"{s.stop - s.start} {s.domain}" for s in info.segments)
    if book.counts.any():
        usage = count_summary(book.counts)
        record |= {"vectors": info.n_vectors, "dead": usage["dead"], "perplexity": usage["perplexity"]}
        record["perplexity_per_centroid"] = usage["perplexity"] / book.k
    certificate = info.certificate or {}
    record |= {key: certificate[key] for key in ("inertia", "explained_variance") if key in certificate}
    return record | {"encoder": info.encoder}


def _ratings_part(scores: ListeningScores, index: int, drawn: list[Plot]) -> dict[str, Any]:
    count, excluded = len(scores.listeners), len(scores.excluded)
    names = ", ".join(scores.listeners)
    domains = list(dict.fromkeys(rating.domain for rating in scores.ratings))
    rows = [
        {"label": _stimulus_name(r), "mean": r.mean, "low": r.low, "high": r.high}
        for r in scores.ratings
        if r.domain == ALL_DOMAINS
    ]
    plot = ratings_plot(rows, f"ratings-{index + 1}", f"Mean ratings of test {scores.test}")
    return {
        "listeners": f"Test {scores.test}: {count} listener{'s' * (count != 1)} ({names}), {excluded} excluded.",
        "excluded": scores.excluded,
        "tables": [_ratings_table(scores, domain) for domain in domains],
        "plots": _shown([plot], drawn),
    }


def _stimulus_name(rating: Rating) -> str:
    return {"reference": "hidden reference", "anchor": "anchor (3.5 kHz)"}.get(rating.role, rating.codec)


def _ratings_table(scores: ListeningScores, domain: str) -> Table:
    records = [
        {
            "sound": _stimulus_name(rating),
            "mean": rating.mean,
            "interval": "–" if rating.low is None or rating.high is None else f"{rating.low:.1f} to {rating.high:.1f}",
            "ratings": rating.n,
            "listeners": rating.listeners,
        }
        for rating in scores.ratings
        if rating.domain == domain
    ]
    return record_table("All domains" if domain == ALL_DOMAINS else domain.capitalize(), records)


def _rule(config: MushraConfig) -> str:
    return (
        f"Means with {config.confidence:.0%} intervals (Student's t over single ratings). Following ITU-R BS.1534, "
        f"listeners who rated the hidden reference below {config.least_reference:g} in more than "
        f"{config.most_misses:.0%} of the clips are excluded."
    )


def _test_data(clips: Sequence[ReportClip], title: str) -> dict[str, Any] | None:
    entries = []
    for clip in clips:
        stimuli = [s for s in clip.stimuli if s.audio]
        if any(s.role == "codec" for s in stimuli):
            sounds = [{"id": s.id, "role": s.role, "codec": s.name} for s in stimuli]
            entry = {"id": clip.id, "key": clip.key, "run": clip.run, "domain": clip.domain, "seconds": clip.seconds}
            entries.append({**entry, "stimuli": sounds})
    if not entries:
        return None
    return {"test": hash_json([clip.digest for clip in clips]), "title": title, "clips": entries}


def _shown(plots: Sequence[Plot | None], drawn: list[Plot]) -> list[dict[str, Any]]:
    own = [plot for plot in plots if plot is not None]
    drawn += own
    return [{"svg": inline_svg(plot), "title": plot.title, "wide": plot.width > WIDE} for plot in own]


def _contents(page: dict[str, Any]) -> list[tuple[str, str]]:
    entries = [(run["id"], run["name"]) for run in page["runs"]]
    entries += [("codebooks", "Codebooks")] if page["codebooks"] else []
    entries += [("ratings", "Ratings")] if page["ratings"] else []
    entries += [("compare", "Listen and compare")] if page["clips"] and not page["listening_only"] else []
    return entries + ([("listening", "Listening test")] if page["clips"] else [])


def _render(page: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sctok.evaluation.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE).render(page)


def _save_all(drawn: Sequence[Plot], clips: Sequence[ReportClip], folder: Path) -> list[Path]:
    paths = [path for plot in drawn for path in save_plot(plot, folder)]
    for index, clip in enumerate(clips):
        title = f"Spectrograms of {clip.key}"
        plot = spectrogram_plot(clip.levels, clip.seconds, frequency_marks(), f"spectrograms-{index + 1}", title)
        paths += save_plot(plot, folder)
    return paths


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)[:80]
