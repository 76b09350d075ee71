"""`sctok tokenize`: write the tokens of a corpus, semantic only or both streams, to WebDataset shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sctok.cli.shared.codebooks import DEFAULT_ENCODER, wanted_codebook
from sctok.cli.shared.codecs import codec_path
from sctok.cli.shared.command import command
from sctok.cli.shared.options import (
    DEFAULT_ROOT,
    AudioArgument,
    ChannelOption,
    FileSelection,
    JsonOption,
    OutOption,
    PrecisionOption,
    RootOption,
    RunOptions,
    ShardOption,
    checked_name,
)
from sctok.cli.shared.runs import RunReporter, show_results

if TYPE_CHECKING:
    from sctok.corpus.runs.sharding import Execution
    from sctok.corpus.tokenization import MakeTokenizer
    from sctok.formats.codebooks import Codebook

CODEC_WINDOWS_ON_CPU = 16  # as many as the acoustic encoder takes at once


@dataclass(frozen=True)
class TokenOptions:
    """What turns audio into tokens."""

    panel: ClassVar[str] = "Codebooks and codec"
    codebook: Annotated[
        str | None,
        typer.Option(
            help="Codebooks, separated by commas: sizes of merged ones in ROOT/codebooks, bundled names such as "
            "merged-4096-r50, or files.",
            show_default="the largest in ROOT/codebooks or of the codec, else the bundled one",
        ),
    ] = None
    codec: Annotated[
        str | None,
        typer.Option(
            help="Also write acoustic tokens, with this codec: mini (bundled), a name in ROOT/codecs, or a folder."
        ),
    ] = None
    token_rate: Annotated[
        int | None,
        typer.Option(
            help="Tokens per second of both streams together: 100, 50 or 25.",
            show_default="100, or that of the codebook file or codec",
        ),
    ] = None
    encoder: Annotated[
        str | None,
        typer.Option(
            help="AudioMAE encoder: mini (bundled), base, or a file of weights.", show_default="mini, or the codec's"
        ),
    ] = None

    def load(
        self, root: Path, run: RunOptions, precision: str
    ) -> tuple[list["Codebook"], "MakeTokenizer", "Execution"]:
        """Return the codebooks, a function that loads the tokenizer, and how the run is executed."""
        from sctok.codec.tokenizer import CodecTokenizer
        from sctok.features.tokenizer import load_semantic_tokenizer

        wanted = [None] if self.codebook is None else self.codebook.split(",")
        if self.codec is None:
            folder = root / "codebooks"
            books = [wanted_codebook(folder, one, self.token_rate, self.encoder) for one in wanted]
            execution, chosen = run.execution(precision)
            load = partial(load_semantic_tokenizer, books, self.encoder or DEFAULT_ENCODER)
            return books, partial(load, precision=chosen, padding=_padding_of(books)), execution
        source = codec_path(self.codec, root)
        books = _codec_codebooks(source, wanted, self.token_rate, self.encoder)
        execution, chosen = run.execution(precision, CODEC_WINDOWS_ON_CPU)
        return books, partial(CodecTokenizer.load, books, source, precision=chosen), execution


@command(
    "sctok tokenize ~/LibriSpeech",
    "sctok tokenize dataset/ --codebook 4096,32768 --name dataset",
    "sctok tokenize dataset/ --codec mini --device all",
)
def tokenize(
    audio: AudioArgument,
    tokens: TokenOptions,
    files: FileSelection,
    run: RunOptions,
    name: Annotated[str | None, typer.Option(help="Name of the result.", show_default="that of the input")] = None,
    precision: PrecisionOption = "auto",
    channel: ChannelOption = None,
    files_per_shard: ShardOption = 256,
    root: RootOption = DEFAULT_ROOT,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tokens of AUDIO into WebDataset shards under ROOT/tokens/NAME, one entry for each file.

    By default these are semantic tokens. With --codec they are the semantic and acoustic tokens of that codec, which
    sctok decode turns back into sound. With several codebooks, audio is read and encoded once, and the tokens of each
    go to ROOT/tokens/NAME-SIZE.

    Run the same command again to resume after an interruption or to add new files. Several commands may share one
    folder. Files that cannot be read are listed in failed.jsonl. If files changed or vanished since they were read,
    the command stops; --refresh updates their shards.
    """
    name = checked_name(name, "--name") if name is not None else _default_name(audio)

    from sctok.corpus.tokenization import TokenizationConfig, tokenize_corpus

    books, make_tokenizer, execution = tokens.load(root, run, precision)
    targets = _targets(root / "tokens", name, out, books)
    config = TokenizationConfig(channel, files_per_shard)
    with RunReporter(f"tokenize {name}") as reporter:
        results = tokenize_corpus(audio, targets, make_tokenizer, config, execution, reporter, files.selection())
    show_results(results, reporter, as_json)


def _codec_codebooks(
    codec: str, wanted: list[str] | list[None], token_rate: int | None, encoder: str | None
) -> list["Codebook"]:
    """Return the codebooks of a codec that --codebook selects; another rate or encoder is wrong usage."""
    from sctok.codec.storage.codec_folder import load_codebooks
    from sctok.features.checkpoints import load_weights

    books = load_codebooks(codec)
    info = books[0].metadata
    if token_rate not in (None, info.token_rate):
        raise typer.BadParameter(
            f"the codec {codec} has {info.token_rate} tokens per second, not {token_rate}", param_hint="--token-rate"
        )
    if encoder is not None and (other := load_weights(encoder).hash) != info.encoder_hash:
        raise typer.BadParameter(
            f"the codec {codec} uses its own encoder ({info.encoder_hash}), not {encoder} ({other}); omit --encoder",
            param_hint="--encoder",
        )
    return [_of_codec(codec, books, one) for one in wanted]


def _of_codec(codec: str, books: "Sequence[Codebook]", wanted: str | None) -> "Codebook":
    """Return the codebook of a codec by its size, hash or file; the largest if `wanted` is None."""
    from sctok.features.extractor import CUT, padding_of
    from sctok.formats.codebooks import codebook_hash, load_codebook

    if wanted is not None and Path(wanted).suffix:
        book = load_codebook(wanted)
        if padding_of(book.metadata.encoder_hash) == CUT:
            raise typer.BadParameter(
                f"{wanted} was made from features with --padding cut, which codecs do not support; omit --codec, or "
                "choose a codebook of the codec",
                param_hint="--codebook",
            )
        wanted = codebook_hash(book)
    fitting = [book for book in books if wanted in (None, str(book.k), codebook_hash(book))]
    if fitting:
        return max(fitting, key=lambda book: book.k)
    existing = ", ".join(f"{codebook_hash(book)} ({book.k} rows)" for book in books)
    raise typer.BadParameter(f"the codec {codec} has no codebook {wanted}; it has {existing}", param_hint="--codebook")


def _padding_of(books: list["Codebook"]) -> str:
    """Return the --padding of the features that the codebooks were made from; two kinds are wrong usage."""
    from sctok.features.extractor import padding_of

    found = {padding_of(book.metadata.encoder_hash) for book in books}
    if len(found) > 1:
        raise typer.BadParameter(
            "some codebooks were made from features with --padding keep, some with cut; run a command for each",
            param_hint="--codebook",
        )
    return found.pop()


def _targets(folder: Path, name: str, out: Path | None, books: list["Codebook"]) -> list[Path]:
    """Return the codebook of each run folder: NAME for one codebook, NAME-SIZE for several."""
    if len(books) == 1:
        return [out or folder / name]
    targets = [(out or folder) / f"{name}-{book.k}" for book in books]
    if len(set(targets)) < len(books):
        raise typer.BadParameter("two codebooks have the same size; run a command for each", param_hint="--codebook")
    return targets


def _default_name(audio: list[str]) -> str:
    """Return the name of the input folder, or of the input file without its suffix."""
    from sctok.corpus.runs.run_folder import safe_name

    if len(audio) > 1:
        raise typer.BadParameter("several inputs need a name for their tokens", param_hint="--name")
    path = Path(audio[0]).resolve()
    return safe_name(path.name if path.is_dir() else path.stem)
