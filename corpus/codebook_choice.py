"""Choose the merged codebook for a size and a token rate: from a work directory, or the bundled one."""

from collections.abc import Sequence
from pathlib import Path

from sctok.corpus.runs.run_folder import RunError
from sctok.features.checkpoints import HUB_MODELS, EncoderWeights, load_weights
from sctok.features.extractor import weights_hash
from sctok.formats.bundled import bundled_codebook
from sctok.formats.codebooks import MERGED_DOMAIN, Codebook, CodebookFile, find_codebooks, load_named_codebook
from sctok.formats.files import is_repository
from sctok.formats.tensors import read_header

Encoder = str | EncoderWeights


def choose_codebook(
    folder: Path, size: int | None, token_rate: int, encoder: Encoder | None = None
) -> tuple[Codebook, str]:
    """Return a merged codebook of `folder`, or the bundled one if none fits, and a message for the user.

    Args:
        folder: of codebooks; it may be absent.
        size: number of centroids; None for the largest in `folder`.
        token_rate: 100, 50 or 25 tokens per second.
        encoder: name, file or weights of the encoder that the codebook must fit. None accepts any codebook.

    Returns:
        the codebook, and a message if it is the bundled one, otherwise an empty string.

    Raises:
        RunError: no codebook has that size, rate and encoder; the message lists the existing ones.
        ValueError: the encoder is unknown. FormatError: a codebook is damaged.
    """
    existing = find_codebooks(folder)
    known = None if encoder is None else _local_hash(encoder)
    merged = [book for book in existing if book.domain == MERGED_DOMAIN and book.token_rate == token_rate]
    merged = [book for book in merged if size in (None, book.k)]
    fitting = [book for book in merged if encoder is None or _fits(book, encoder, known)]
    if fitting:
        return load_named_codebook(max(fitting, key=lambda book: book.k).path), ""
    bundled = bundled_codebook(token_rate)
    if size in (None, bundled.k) and (encoder is None or known == bundled.metadata.encoder_hash):
        return bundled, _bundled_message(bundled, folder, _names(existing, merged))
    raise RunError(_nothing_fits(folder, _names(existing, merged), size, token_rate, encoder, bundled))


def _local_hash(encoder: Encoder) -> str | None:
    """Return the hash of an encoder; None if it is on the hub, because it is not downloaded for this."""
    if isinstance(encoder, EncoderWeights):
        return encoder.hash
    on_hub = (encoder in HUB_MODELS or is_repository(encoder)) and not Path(encoder).is_file()
    return None if on_hub else load_weights(encoder).hash


def _fits(book: CodebookFile, encoder: Encoder, known: str | None) -> bool:
    """Return whether a codebook was made with an encoder, by its hash, or by its name if the hash is not known."""
    metadata, _ = read_header(book.path)
    if known is None:
        return metadata.get("encoder") == encoder
    return weights_hash(str(metadata.get("encoder_hash"))) == known


def _names(existing: Sequence[CodebookFile], merged: Sequence[CodebookFile]) -> str:
    """Return a list of codebooks for messages; those in `merged` fit except for their encoder."""
    return ", ".join(
        f"{book.domain}-{book.k} at {book.token_rate}{' of another encoder' if book in merged else ''}"
        for book in existing
    )


def _bundled_message(bundled: Codebook, folder: Path, names: str) -> str:
    info = bundled.metadata
    why = f", because none in {folder} fits, only {names} exist there" if names else ""
    return (
        f"using the bundled codebook {MERGED_DOMAIN}-{bundled.k}-r{info.token_rate} (encoder {info.encoder}){why}; "
        "run sctok cluster and sctok merge to make your own"
    )


def _nothing_fits(
    folder: Path, names: str, size: int | None, token_rate: int, encoder: Encoder | None, bundled: Codebook
) -> str:
    name = encoder.name if isinstance(encoder, EncoderWeights) else encoder
    wanted = f"no merged codebook{'' if size is None else f' of {size} centroids'} at {token_rate} tokens per second"
    of_encoder = f" for the encoder {name}" if name else ""
    own = f"; it has {names}" if names else ", nor any other codebook"
    return (
        f"{folder} has {wanted}{of_encoder}{own}. The bundled codebook has {bundled.k} centroids and is for the "
        f"encoder {bundled.metadata.encoder}. Run sctok extract{f' --encoder {name}' if name else ''}, sctok cluster "
        "and sctok merge first, or give a codebook file"
    )
