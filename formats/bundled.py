"""The codebooks inside the package: merged ones of the bundled encoder, one for each token rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from .codebooks import MERGED_DOMAIN, Codebook, codebook_hash, load_codebook

BUNDLED_SIZE = 4096
BUNDLED_ENCODER = "mini"  # as --encoder takes it; the codec's codebook gives the name of its file instead
_FILES = {
    100: "codebooks-mini/merged-4096-r100.safetensors",
    50: "codec-mini/codebook-4096.safetensors",
    25: "codebooks-mini/merged-4096-r25.safetensors",
}
BUNDLED_CODEBOOKS = {f"{MERGED_DOMAIN}-{BUNDLED_SIZE}-r{rate}": rate for rate in _FILES}  # names and token rates
_PLACES = {
    "encoder-mini": "encoder-mini.safetensors",
    "codec-mini": "codec-mini",
    **{name: _FILES[rate] for name, rate in BUNDLED_CODEBOOKS.items()},
}
BUNDLED_NAMES = tuple(_PLACES)


@cache
def bundled_codebook(token_rate: int) -> Codebook:
    """Return the bundled codebook of 4096 centroids for 100, 50 or 25 tokens per second. Raises KeyError for others."""
    with as_file(files("sctok.weights").joinpath(_FILES[token_rate])) as path:
        book = load_codebook(path)
    return replace(book, metadata=replace(book.metadata, encoder=BUNDLED_ENCODER))


def bundled_name(known: str) -> str | None:
    """Return the name of the bundled codebook that has a hash, such as merged-4096-r100; None if none has it."""
    for name, rate in BUNDLED_CODEBOOKS.items():
        if codebook_hash(bundled_codebook(rate)) == known:
            return name
    return None


@contextmanager
def bundled_place(name: str) -> Iterator[Path | None]:
    """Yield the file or folder inside the package that a name of `BUNDLED_NAMES` means; None for any other name."""
    if name not in _PLACES:
        yield None
        return
    with as_file(files("sctok.weights").joinpath(_PLACES[name])) as path:
        yield path
