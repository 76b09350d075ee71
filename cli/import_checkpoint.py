"""`sctok import-checkpoint`: a published SemantiCodec becomes a codec of ours."""

from pathlib import Path
from typing import Annotated

import typer

from sctok.cli.shared.codecs import codec_name
from sctok.cli.shared.common import DEFAULT_ROOT, JsonOption, RootOption, StartsOver, emit, say


def import_checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with encoder.ckpt and decoder.ckpt, or a hub repository owner/name; semanticodec for the "
            "published one."
        ),
    ],
    rate: Annotated[
        int | None, typer.Option("--rate", help="100, 50 or 25, where the source has several.", show_default=False)
    ] = None,
    codebooks: Annotated[
        Path | None,
        typer.Option("--codebooks", help="A .npy file or a folder of them. Default: codebook_idx in or beside SOURCE."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: semanticodec-RATE.", show_default=False)] = None,
    average: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of the T-UNet, which the published code does not.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a codec of this name.")] = False,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Turn published SemantiCodec checkpoints into a codec under ROOT/codecs, without running code in them."""
    if rate not in (None, 25, 50, 100):
        raise typer.BadParameter(f"{rate} is none of 100, 50, 25", param_hint="--rate")
    if name is not None:
        codec_name(name)

    from sctok.codec.published.checkpoints import read_published
    from sctok.codec.published.files import find_published
    from sctok.codec.storage.codec_folder import save_codec

    try:
        parts = read_published(find_published(source, rate, codebooks), name, rate=rate, average=average)
        folder = root / "codecs" / parts.info.name
        say(f"writing {folder}")
        info = save_codec(folder, parts, overwrite=overwrite)
    except KeyboardInterrupt:
        raise StartsOver("nothing is kept of a codec that is not whole; run the same command again") from None
    result = {
        "name": info.name,
        "path": str(folder),
        "token_rate": info.token_rate,
        "codec_hash": info.token_hash,
        "codebooks": [book.k for book in parts.tokens.codebooks],
    }
    sizes = ", ".join(f"{book.k:,}" for book in parts.tokens.codebooks)
    emit(
        result,
        as_json,
        f"{folder}: {info.token_rate} tokens per second, codebooks of {sizes} rows\n"
        f"use it with --codec {info.name}; licence of the weights: {parts.info.provenance['licence']}",
    )
