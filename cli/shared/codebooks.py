"""The codebook that --codebook selects: a size, a bundled codebook or a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .terminal import say

if TYPE_CHECKING:
    from sctok.features.checkpoints import EncoderWeights
    from sctok.formats.codebooks import Codebook

DEFAULT_TOKEN_RATE = 100
DEFAULT_ENCODER = "mini"


def wanted_codebook(
    folder: Path, wanted: str | None, token_rate: int | None, encoder: "str | EncoderWeights | None"
) -> "Codebook":
    """Return the codebook that --codebook and --token-rate select, and report if it is the bundled one.

    A size, or None for the largest, selects a merged codebook in `folder` or, if none fits, the bundled one. A name
    such as merged-4096-r100 selects a bundled codebook; anything else is a file. encoder: as the user gave it.
    """
    from sctok.corpus.codebook_choice import choose_codebook
    from sctok.formats.bundled import BUNDLED_CODEBOOKS, bundled_codebook
    from sctok.formats.codebooks import load_codebook
    from sctok.formats.stacking import stack_factor

    try:
        stack = stack_factor(token_rate or DEFAULT_TOKEN_RATE)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--token-rate") from None
    if wanted is None or wanted.isdecimal():
        size = int(wanted) if wanted else None
        book, message = choose_codebook(folder, size, token_rate or DEFAULT_TOKEN_RATE, encoder)
        if message:
            say(message)
        return book
    if wanted.endswith(".npy"):
        return _of_array(wanted, stack, encoder or DEFAULT_ENCODER)
    is_bundled = wanted in BUNDLED_CODEBOOKS and not Path(wanted).exists()
    book = bundled_codebook(BUNDLED_CODEBOOKS[wanted]) if is_bundled else load_codebook(wanted)
    if token_rate not in (None, book.metadata.token_rate):
        raise typer.BadParameter(
            f"{wanted} is for {book.metadata.token_rate} tokens per second, not {token_rate}", param_hint="--token-rate"
        )
    return book


def _of_array(path: str, stack: int, encoder: "str | EncoderWeights") -> "Codebook":
    from sctok.features.checkpoints import load_weights
    from sctok.formats.codebooks import load_npy

    weights = load_weights(encoder) if isinstance(encoder, str) else encoder
    return load_npy(path, stack_factor=stack, encoder=weights.name, encoder_hash=weights.hash)
