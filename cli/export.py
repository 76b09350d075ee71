"""`sctok export`: write tokens in the formats that language models are trained on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, JsonOption, RootOption, byte_count, one_of
from sctok.cli.shared.terminal import Progress, ProgressReporter, emit, say, table_of

if TYPE_CHECKING:
    from sctok.corpus.exports.run import ExportConfig, ExportResult
    from sctok.corpus.runs.events import ExportEvent

FORMATS = ("parquet", "megatron", "jsonl", "km", "npy", "hf-dataset")
LAYOUTS = ("flat", "interleaved", "delayed", "parallel")


@dataclass(frozen=True)
class SequenceOptions:
    """How the tokens of a file become a sequence of ids, and how ids are split into files."""

    panel: ClassVar[str] = "Ids and files"
    layout: Annotated[
        str, typer.Option(help=f"Order of the streams in a sequence: {', '.join(LAYOUTS)}.", callback=one_of(*LAYOUTS))
    ] = "flat"
    streams: Annotated[
        str | None,
        typer.Option(
            help="Streams to export, separated by commas, such as semantic,acoustic.", show_default="all in the tokens"
        ),
    ] = None
    offset: Annotated[
        str | None,
        typer.Option(
            help="Number added to ids: one per stream, or one for the first stream, which the others follow.",
            show_default="0, with the other streams following in flat and interleaved",
        ),
    ] = None
    pad: Annotated[
        int | None,
        typer.Option(
            help="Id that stands for no token in the layout delayed.", show_default="the first free id", min=0
        ),
    ] = None
    end_of_document: Annotated[
        str | None,
        typer.Option(help="Id to append to each file, or auto for the first free id.", show_default="no such id"),
    ] = None
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Merge equal neighbouring steps and write their durations.")
    ] = False
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Bytes of ids in one output file, such as 512M.",
            show_default="512M; no limit for megatron, km and npy",
        ),
    ] = None
    codebook_sizes: Annotated[
        str | None,
        typer.Option(help="Number of ids of each stream, such as 4096,8192, for shards without their run.json."),
    ] = None

    def config(self, to: str) -> "ExportConfig":
        """Return the configuration for the library; options that contradict each other are wrong usage."""
        from sctok.corpus.exports.run import ExportConfig
        from sctok.corpus.runs.run_folder import RunError

        offsets, end = _numbers(self.offset, "--offset"), _end(self.end_of_document)
        part_bytes = byte_count(self.shard_size, "--shard-size")
        try:
            return ExportConfig(
                to=to,
                layout=self.layout,
                streams=tuple(self.streams.split(",")) if self.streams else None,
                offsets=offsets,
                pad=self.pad,
                end=end,
                dedup=self.dedup,
                part_bytes=part_bytes,
            )
        except RunError as error:
            raise typer.BadParameter(str(error)) from None


@command(
    "sctok export dataset --to parquet",
    "sctok export dataset --to megatron --end-of-document auto --layout interleaved",
)
def export(
    tokens: Annotated[
        list[str],
        typer.Argument(metavar="TOKENS...", help="Name in ROOT/tokens, folder of a run, or .tar token shards."),
    ],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(FORMATS)}.", callback=one_of(*FORMATS))],
    sequence: SequenceOptions,
    out: Annotated[Path | None, typer.Option(help="Folder to create.", show_default="ROOT/exports/NAME-FORMAT")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Export tokens as Parquet, Megatron .bin/.idx, JSON lines, fairseq .km, NumPy or a Hugging Face dataset.

    export.json in the output folder describes the source, the meaning of the ids and the counts. The folder appears
    when the export is complete. Run the same command again to resume.
    """
    from sctok.corpus.exports.run import export_tokens
    from sctok.corpus.exports.sources import open_tokens

    config = sequence.config(to)
    paths = [_find_tokens(name, root) for name in tokens]
    if len(paths) > 1 and out is None:
        raise typer.BadParameter("several shards need a folder for their export", param_hint="--out")
    source = open_tokens(paths, _numbers(sequence.codebook_sizes, "--codebook-sizes"))
    folder = out or root / "exports" / f"{_name(paths[0])}-{to}"
    with ExportReporter(f"export {folder.name}") as reporter:
        result = export_tokens(source, folder, config, reporter)
    if result.existed:
        say(f"{folder}: nothing left to do")
    _show(result, as_json)


def _numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0,32768", param_hint=option)
    return tuple(map(int, parts))


def _end(text: str | None) -> int | bool:
    if text is None or text == "auto":
        return text is not None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither auto nor an id", param_hint="--end-of-document")
    return int(text)


def _find_tokens(name: str, root: Path) -> Path:
    """Return the path of a shard or run folder, or of the run with this name in ROOT/tokens."""
    path, run = Path(name), root / "tokens" / name
    if path.is_file() or (path / "run.json").exists():
        return path
    if run.exists() or path.exists():  # the folder of the audio often has the same name
        return run if run.exists() else path
    existing = sorted(found.parent.name for found in (root / "tokens").glob("*/run.json"))
    raise FileNotFoundError(
        f"{name} is neither a folder nor a shard nor a name in {root / 'tokens'}, which has "
        f"{', '.join(existing) or 'no runs'}"
    )


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


class ExportReporter(ProgressReporter):
    """Show the progress of an export."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._files = self._ids = 0

    def __call__(self, event: "ExportEvent") -> None:
        from sctok.corpus.runs.events import DocumentExported, ExportPlanned

        if isinstance(event, ExportPlanned):
            self.bar = Progress(self._label, total=event.shards, unit="shards")
        elif self.bar is not None and isinstance(event, DocumentExported):
            self._files += 1
            self._ids += event.ids
            if self._files % 100 == 0:
                self.bar.update(0, self._note())
        elif self.bar is not None:
            self.bar.update(1, self._note())

    def _note(self) -> str:
        return f"{self._files:,} files, {self._ids:,} ids"


def _show(result: "ExportResult", as_json: bool) -> None:
    facts = asdict(result)
    shown = ("documents", "ids", "vocabulary_size", "parts", "bytes")
    columns = {name.replace("_", " "): f"{name}:," for name in shown}
    emit(facts, as_json, lambda: f"{table_of([facts], columns)}\n\n{result.folder}")
