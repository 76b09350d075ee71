"""`sctok import-checkpoint`: convert a published SemantiCodec checkpoint to a codec in ROOT/codecs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sctok.cli.shared.codecs import codec_name
from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, JsonOption, OverwriteOption, RootOption
from sctok.cli.shared.terminal import StartsOver, emit, say

if TYPE_CHECKING:
    from sctok.codec.codec_parts import CodecInfo
    from sctok.formats.codebooks import Codebook


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and under which name."""

    rate: Annotated[
        int | None, typer.Option(help="Token rate to import: 100, 50 or 25.", show_default="the only one in SOURCE")
    ] = None
    codebooks: Annotated[
        Path | None,
        typer.Option(help="A .npy file or a folder of them.", show_default="codebook_idx in or next to SOURCE"),
    ] = None
    name: Annotated[str | None, typer.Option(help="Name of the codec.", show_default="semanticodec-RATE")] = None
    average: Annotated[
        bool, typer.Option("--ema", help="Use the moving average of the T-UNet's weights, unlike the published code.")
    ] = False
    overwrite: OverwriteOption = False


@command(
    "sctok import-checkpoint semanticodec --rate 50",
    "sctok import-checkpoint downloads/semanticodec_50 --name published-50",
)
def import_checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with encoder.ckpt and decoder.ckpt, a Hugging Face repository OWNER/NAME, or semanticodec for "
            "the published repository."
        ),
    ],
    options: ImportOptions,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Convert published SemantiCodec checkpoints to a codec in ROOT/codecs, without running any code from them."""
    if options.rate not in (None, 25, 50, 100):
        raise typer.BadParameter(f"{options.rate} is not one of 100, 50, 25", param_hint="--rate")
    if options.name is not None:
        codec_name(options.name)

    from sctok.codec.published.checkpoints import read_published
    from sctok.codec.published.files import find_published
    from sctok.codec.storage.codec_folder import save_codec

    try:
        found = find_published(source, options.rate, options.codebooks)
        parts = read_published(found, options.name, rate=options.rate, average=options.average)
        folder = root / "codecs" / parts.info.name
        say(f"writing {folder}")
        info = save_codec(folder, parts, overwrite=options.overwrite)
    except KeyboardInterrupt:
        raise StartsOver("an incomplete codec is not kept; run the same command again") from None
    _show(info, folder, parts.tokens.codebooks, parts.info.provenance["licence"], as_json)


def _show(info: "CodecInfo", folder: Path, codebooks: "Sequence[Codebook]", licence: str, as_json: bool) -> None:
    sizes = [book.k for book in codebooks]
    result = {
        "name": info.name,
        "path": str(folder),
        "token_rate": info.token_rate,
        "codec_hash": info.token_hash,
        "codebooks": sizes,
    }
    emit(
        result,
        as_json,
        f"{folder}: {info.token_rate} tokens per second, codebooks of {', '.join(f'{k:,}' for k in sizes)} rows\n"
        f"use it with --codec {info.name}; licence of the weights: {licence}",
    )
