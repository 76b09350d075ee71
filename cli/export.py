"""`sctok export`: tokens in the formats that language models are trained from."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, Progress, RootOption, byte_count, emit, one_of, say, table

if TYPE_CHECKING:
    from sctok.corpus.exports.run import ExportConfig, ExportResult
    from sctok.corpus.runs.events import ExportEvent

FORMATS = ("parquet", "megatron", "jsonl", "km", "npy", "hf-dataset")
LAYOUTS = ("flat", "interleaved", "delayed", "parallel")


def export(
    tokens: Annotated[
        list[str],
        typer.Argument(metavar="TOKENS...", help="Name in ROOT/tokens or folder of a run, or single .tar shards."),
    ],
    to: Annotated[str, typer.Option("--to", help=f"{', '.join(FORMATS)}.", callback=one_of(*FORMATS))],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to make. Default: ROOT/exports/NAME-FORMAT.")
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help=f"{', '.join(LAYOUTS)}: order of the streams.", callback=one_of(*LAYOUTS))
    ] = "flat",
    streams: Annotated[
        str | None, typer.Option("--streams", help="Which streams, such as semantic or semantic,acoustic.")
    ] = None,
    offset: Annotated[
        str | None,
        typer.Option(
            "--offset",
            help="Added to ids: one number for each stream, or where the first begins and the others follow. "
            "Default: 0, with the others following in flat and interleaved.",
        ),
    ] = None,
    pad: Annotated[
        int | None, typer.Option("--pad", help="Id of delayed for no token. Default: the first free one.", min=0)
    ] = None,
    end_of_document: Annotated[
        str | None, typer.Option("--end-of-document", help="Id to put after each file; auto is the first free one.")
    ] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Merge equal steps and keep their durations.")] = False,
    shard_size: Annotated[
        str | None,
        typer.Option("--shard-size", help="Bytes of ids in one output file. Default: 512M; in megatron, km, npy all."),
    ] = None,
    codebook_sizes: Annotated[
        str | None, typer.Option("--codebook-sizes", help="Of each stream, for shards without their run.json.")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write tokens as Parquet, Megatron .bin/.idx, JSON lines, fairseq .km, NumPy or a Hugging Face dataset.

    export.json beside the output says what made it, which ids mean what, and how much there is. Interrupted, an
    export goes on when the same command is run again; the folder appears when it is whole.
    """
    from sctok.corpus.exports.run import export_tokens
    from sctok.corpus.exports.sources import open_tokens

    config = _config(
        to=to,
        layout=layout,
        streams=tuple(streams.split(",")) if streams else None,
        offsets=_numbers(offset, "--offset"),
        pad=pad,
        end=_end(end_of_document),
        dedup=dedup,
        part_bytes=_size(shard_size),
    )
    paths = [_find_tokens(name, root) for name in tokens]
    if len(paths) > 1 and out is None:
        raise typer.BadParameter("several shards need a folder for their export", param_hint="--out")
    source = open_tokens(paths, _numbers(codebook_sizes, "--codebook-sizes"))
    folder = out or root / "exports" / f"{_name(paths[0])}-{to}"
    with ExportReporter(f"export {folder.name}") as reporter:
        result = export_tokens(source, folder, config, reporter)
    if result.existed:
        say(f"{folder}: nothing left to do")
    _show(result, as_json)


def _config(**options: Any) -> "ExportConfig":
    from sctok.corpus.exports.run import ExportConfig
    from sctok.corpus.runs.run_folder import RunError

    try:
        return ExportConfig(**options)
    except RunError as error:
        raise typer.BadParameter(str(error)) from None


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


def _size(text: str | None) -> int | None:
    try:
        return byte_count(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint="--shard-size") from None


def _find_tokens(name: str, root: Path) -> Path:
    """Return the path that TOKENS means: a shard or run under it, or the run of that name in ROOT/tokens."""
    path, run = Path(name), root / "tokens" / name
    if path.is_file() or (path / "run.json").exists():
        return path
    if run.exists() or path.exists():  # a folder of the audio is often called as its tokens are
        return run if run.exists() else path
    there = sorted(found.parent.name for found in (root / "tokens").glob("*/run.json"))
    raise FileNotFoundError(
        f"{name} is neither a folder or shard nor a name in {root / 'tokens'}, which has {', '.join(there) or 'none'}"
    )


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


class ExportReporter:
    """Shows the shards of an export as they are read."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self._files = self._ids = 0

    def __enter__(self) -> "ExportReporter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def __call__(self, event: "ExportEvent") -> None:
        from sctok.corpus.runs.events import DocumentExported, ExportPlanned

        if isinstance(event, ExportPlanned):
            self._bar = Progress(self._label, total=event.shards, unit="shards")
        elif self._bar is not None and isinstance(event, DocumentExported):
            self._files += 1
            self._ids += event.ids
            if self._files % 100 == 0:
                self._bar.update(0, self._note())
        elif self._bar is not None:
            self._bar.update(1, self._note())

    def _note(self) -> str:
        return f"{self._files:,} files, {self._ids:,} ids"


def _show(result: "ExportResult", as_json: bool) -> None:
    facts = asdict(result)
    names = ("documents", "ids", "vocabulary_size", "parts", "bytes")
    header = tuple(name.replace("_", " ") for name in names)
    emit(facts, as_json, lambda: f"{table(header, [tuple(f'{facts[n]:,}' for n in names)])}\n\n{result.folder}")
