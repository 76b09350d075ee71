"""The codebooks inside the package: one merged codebook of the bundled encoder for each token rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from .codebooks import MERGED_DOMAIN, Codebook, codebook_hash, load_codebook

BUNDLED_SIZE = 4096
BUNDLED_ENCODER = "mini"  # as for --encoder; the codec's codebook has the name of its file instead
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
    """Return the bundled codebook of 4096 centroids for token rate 100, 50 or 25. Raises KeyError for other rates."""
    with as_file(files("sctok.weights").joinpath(_FILES[token_rate])) as path:
        book = load_codebook(path)
    return replace(book, metadata=replace(book.metadata, encoder=BUNDLED_ENCODER))


def bundled_name(wanted: str) -> str | None:
    """Return the name of the bundled codebook with a hash, such as merged-4096-r100; None if there is none."""
    for name, rate in BUNDLED_CODEBOOKS.items():
        if codebook_hash(bundled_codebook(rate)) == wanted:
            return name
    return None


@contextmanager
def bundled_place(name: str) -> Iterator[Path | None]:
    """Yield the file or folder in the package of a name in `BUNDLED_NAMES`; None for any other name."""
    if name not in _PLACES:
        yield None
        return
    with as_file(files("sctok.weights").joinpath(_PLACES[name])) as path:
        yield path
