"""`sctok tokenize`: tokens of a whole corpus, semantic or of both streams, into WebDataset shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctok.cli.shared.codebooks import DEFAULT_ENCODER, wanted_codebook
from sctok.cli.shared.codecs import codec_path
from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, PrecisionOption, RootOption
from sctok.cli.shared.runs import (
    WINDOWS_ON_CPU,
    AddressOption,
    AudioArgument,
    BatchOption,
    ChannelOption,
    DevicesOption,
    EngineOption,
    ExcludeOption,
    IncludeOption,
    MaxSecondsOption,
    MinSecondsOption,
    OutOption,
    ProfileOption,
    RankOption,
    RefreshOption,
    RetryOption,
    RunReporter,
    ShardOption,
    WorkersOption,
    WorldOption,
    checked_name,
    prepare_execution,
    select,
    show_results,
)

if TYPE_CHECKING:
    from sctok.corpus.runs.sharding import Execution
    from sctok.corpus.tokenization import MakeTokenizer
    from sctok.formats.codebooks import Codebook

CODEC_WINDOWS_ON_CPU = 16  # as many as the acoustic encoder takes at once


def tokenize(
    audio: AudioArgument,
    codebook: Annotated[
        str | None,
        typer.Option(
            "--codebook",
            help="Sizes of merged codebooks, bundled ones such as merged-4096-r50, or files, with commas between.",
            show_default="the largest in ROOT/codebooks or of the codec, else the bundled one",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            help="Write acoustic tokens, too: mini (bundled), the name of a codec in ROOT/codecs, or its folder.",
        ),
    ] = None,
    token_rate: Annotated[
        int | None,
        typer.Option("--token-rate", help="100, 50 or 25.", show_default="100, or that of the codebook file or codec"),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="mini, base, or a file of AudioMAE weights.", show_default="mini, or the codec's"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the result.", show_default="that of the input folder")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    out: OutOption = None,
    device: DevicesOption = "auto",
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    precision: PrecisionOption = "auto",
    channel: ChannelOption = None,
    files_per_shard: ShardOption = 256,
    retry_failed: RetryOption = False,
    refresh: RefreshOption = False,
    rank: RankOption = 0,
    world_size: WorldOption = 1,
    profile: ProfileOption = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    min_seconds: MinSecondsOption = None,
    max_seconds: MaxSecondsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the semantic tokens of audio to ROOT/tokens/NAME, one entry per file under its path in the input.

    With --codec, semantic and acoustic tokens: those of sctok encode, as pairs that sctok decode turns back into sound.

    If ROOT/codebooks has no merged codebook that fits, the bundled one of the encoder mini is used, and named.

    With several codebooks, audio is decoded and encoded once, and the tokens go to ROOT/tokens/NAME-SIZE for each. With
    codebooks of features that were extracted with --padding cut, the encoder does not see padding here either.

    Interrupted, it goes on where it stopped when the same command is run again; new files go to new shards. Several
    commands may work on one folder at the same time. Files that cannot be read are listed in failed.jsonl. Files whose
    size or modification time changed since they were read, or that vanished, end the command; --refresh updates them.
    """
    name = checked_name(name, "--name") if name is not None else _default_name(audio)

    from sctok.corpus.tokenization import TokenizationConfig, tokenize_corpus

    wanted = [None] if codebook is None else codebook.split(",")
    source = None if codec is None else codec_path(codec, root)
    if source is None:
        books = [wanted_codebook(root / "codebooks", one, token_rate, encoder) for one in wanted]
    else:
        books = _codec_codebooks(source, wanted, token_rate, encoder)
    targets = _targets(root / "tokens", name, out, books)
    config = TokenizationConfig(channel, files_per_shard)
    selection = select(include, exclude, min_seconds, max_seconds)
    how: dict[str, Any] = {"retry_failed": retry_failed, "rank": rank, "world_size": world_size, "profile": profile}
    how |= {"engine": engine, "address": address, "refresh": refresh}
    make, execution = _prepare(source, encoder, books, device, precision, batch_size, workers, **how)
    with RunReporter(f"tokenize {name}") as reporter:
        results = tokenize_corpus(audio, list(targets), make, config, execution, reporter, selection)
    show_results(results, reporter, as_json)


def _prepare(
    codec: str | None,
    encoder: str | None,
    books: list["Codebook"],
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    **how: Any,
) -> tuple["MakeTokenizer", "Execution"]:
    """Return a function that loads the tokenizer onto a device, and the execution that the options describe."""
    from functools import partial

    from sctok.codec.tokenizer import CodecTokenizer
    from sctok.features.tokenizer import load_semantic_tokenizer

    on_cpu = WINDOWS_ON_CPU if codec is None else CODEC_WINDOWS_ON_CPU
    execution, chosen = prepare_execution(device, precision, batch_size, workers, on_cpu, **how)
    if codec is not None:
        return partial(CodecTokenizer.load, books, codec, precision=chosen), execution
    name, padding = encoder or DEFAULT_ENCODER, _padding_of(books)
    return partial(load_semantic_tokenizer, books, name, precision=chosen, padding=padding), execution


def _codec_codebooks(
    codec: str, wanted: list[str] | list[None], token_rate: int | None, encoder: str | None
) -> list["Codebook"]:
    """Return the codebooks of a codec that --codebook means; another rate or encoder than its own is wrong usage."""
    from sctok.codec.storage.codec_folder import load_codebooks
    from sctok.features.checkpoints import load_weights

    books = load_codebooks(codec)
    info = books[0].metadata
    if token_rate not in (None, info.token_rate):
        raise typer.BadParameter(
            f"the codec {codec} is of {info.token_rate} tokens per second, not {token_rate}", param_hint="--token-rate"
        )
    if encoder is not None and (other := load_weights(encoder).hash) != info.encoder_hash:
        raise typer.BadParameter(
            f"the codec {codec} has an encoder of its own ({info.encoder_hash}), not {encoder} ({other}); leave it out",
            param_hint="--encoder",
        )
    return [_of_codec(codec, books, one) for one in wanted]


def _of_codec(codec: str, books: "Sequence[Codebook]", wanted: str | None) -> "Codebook":
    """Return the codebook of some size or hash, or of a file, that a codec has; its largest where None."""
    from sctok.features.extractor import CUT, padding_of
    from sctok.formats.codebooks import codebook_hash, load_codebook

    if wanted is not None and Path(wanted).suffix:
        book = load_codebook(wanted)
        if padding_of(book.metadata.encoder_hash) == CUT:
            raise typer.BadParameter(
                f"{wanted} is of features with --padding cut, which codecs do not know; leave --codec out, or take a "
                "codebook of the codec",
                param_hint="--codebook",
            )
        wanted = codebook_hash(book)
    fitting = [book for book in books if wanted in (None, str(book.k), codebook_hash(book))]
    if fitting:
        return max(fitting, key=lambda book: book.k)
    there = ", ".join(f"{codebook_hash(book)} ({book.k} rows)" for book in books)
    raise typer.BadParameter(f"the codec {codec} has no codebook {wanted}; it has {there}", param_hint="--codebook")


def _padding_of(books: list["Codebook"]) -> str:
    """Return the --padding of the features that codebooks were made of; several is wrong usage."""
    from sctok.features.extractor import padding_of

    found = {padding_of(book.metadata.encoder_hash) for book in books}
    if len(found) > 1:
        raise typer.BadParameter(
            "some codebooks are of features with --padding keep, some with cut; run a command for each",
            param_hint="--codebook",
        )
    return found.pop()


def _targets(folder: Path, name: str, out: Path | None, books: list["Codebook"]) -> dict[Path, "Codebook"]:
    """Return the run folder of each codebook: of one, that which is asked for; of several, NAME-SIZE there."""
    if len(books) == 1:
        return {out or folder / name: books[0]}
    targets = {(out or folder) / f"{name}-{book.k}": book for book in books}
    if len(targets) < len(books):
        raise typer.BadParameter("two codebooks have the same size; run a command for each", param_hint="--codebook")
    return targets


def _default_name(audio: list[str]) -> str:
    """Return the name of the one input: of a folder, or of a file without its suffix."""
    from sctok.corpus.runs.run_folder import safe_name

    if len(audio) > 1:
        raise typer.BadParameter("several inputs need a name for their tokens", param_hint="--name")
    path = Path(audio[0]).resolve()
    return safe_name(path.name if path.is_dir() else path.stem)
