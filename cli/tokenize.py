"""`sctok tokenize`: semantic tokens of a whole corpus into WebDataset shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import DEFAULT_ROOT, JsonOption, PrecisionOption, RootOption
from .runs import (
    AddressOption,
    AudioArgument,
    BatchOption,
    ChannelOption,
    DevicesOption,
    EncoderOption,
    EngineOption,
    ExcludeOption,
    IncludeOption,
    MaxSecondsOption,
    MinSecondsOption,
    OutOption,
    ProfileOption,
    RankOption,
    RetryOption,
    RunReporter,
    ShardOption,
    WorkersOption,
    WorldOption,
    checked_name,
    prepare,
    select,
    show_results,
)

if TYPE_CHECKING:
    from sctok.formats.codebooks import Codebook

DEFAULT_TOKEN_RATE = 100


def tokenize(
    audio: AudioArgument,
    codebook: Annotated[
        str | None,
        typer.Option(
            "--codebook",
            help="Sizes of merged codebooks, or files, with commas between.  [default: the largest in ROOT/codebooks]",
        ),
    ] = None,
    token_rate: Annotated[
        int | None, typer.Option("--token-rate", help="100, 50 or 25.  [default: 100, or that of the codebook file]")
    ] = None,
    encoder: EncoderOption = "mini",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the result.  [default: that of the input folder]")
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

    With several codebooks, audio is decoded and encoded once, and the tokens go to ROOT/tokens/NAME-SIZE for each.

    Interrupted, it goes on where it stopped when the same command is run again; new files go to new shards. Several
    commands may work on one folder at the same time. Files that cannot be read are listed in failed.jsonl.
    """
    name = checked_name(name, "--name") if name is not None else _default_name(audio)

    from sctok.corpus.tokenization import TokenizationConfig, tokenize_corpus

    wanted = [None] if codebook is None else codebook.split(",")
    books = [_load_codebook(root / "codebooks", one, token_rate, encoder) for one in wanted]
    targets = _targets(root / "tokens", name, out, books)
    config = TokenizationConfig(channel, files_per_shard)
    selection = select(include, exclude, min_seconds, max_seconds)
    how: dict[str, Any] = {"retry_failed": retry_failed, "rank": rank, "world_size": world_size, "profile": profile}
    how |= {"engine": engine, "address": address}
    make_extractor, execution = prepare(encoder, device, precision, batch_size, workers, **how)
    with RunReporter(f"tokenize {name}") as reporter:
        results = tokenize_corpus(audio, targets, make_extractor, config, execution, reporter, selection)
    show_results(results, reporter, as_json)


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
    from sctok.corpus.runs import safe_name

    if len(audio) > 1:
        raise typer.BadParameter("several inputs need a name for their tokens", param_hint="--name")
    path = Path(audio[0]).resolve()
    return safe_name(path.name if path.is_dir() else path.stem)


def _load_codebook(folder: Path, wanted: str | None, token_rate: int | None, encoder: str) -> "Codebook":
    """Return the codebook that --codebook and --token-rate mean."""
    from sctok.corpus.tokenization import choose_codebook
    from sctok.features.checkpoints import load_weights
    from sctok.formats.codebooks import load_codebook, load_named_codebook, load_npy
    from sctok.formats.stacking import stack_factor

    try:
        stack = stack_factor(token_rate or DEFAULT_TOKEN_RATE)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--token-rate") from None
    if wanted is None or wanted.isdecimal():
        size = int(wanted) if wanted else None
        return load_named_codebook(choose_codebook(folder, size, token_rate or DEFAULT_TOKEN_RATE))
    if wanted.endswith(".npy"):
        weights = load_weights(encoder)
        return load_npy(wanted, stack_factor=stack, encoder=weights.name, encoder_hash=weights.hash)
    book = load_codebook(wanted)
    if token_rate not in (None, book.metadata.token_rate):
        raise typer.BadParameter(
            f"{wanted} is for {book.metadata.token_rate} tokens per second, not {token_rate}", param_hint="--token-rate"
        )
    return book
