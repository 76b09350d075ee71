"""The encoders of a codec as a tokenizer: semantic and acoustic streams, without the decoder."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch

from sctok.audio.loader import Chunk
from sctok.codec.codec_parts import TokenParts
from sctok.codec.storage.codec_folder import load_token_parts
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.features.tokenizer import SemanticQuantizer, Tokens, TokenStreams, check_codebook
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.runtime.devices import resolve_device, resolve_precision
from sctok.runtime.stages import ACOUSTIC, NEAREST, Stage

from .encoding import WindowEncoder, centred
from .listing import STREAMS


class CodecTokenizer:
    """The encoders of a codec on one device, with codebooks; implements `sctok.features.tokenizer.Tokenizer`.

    extractor: the feature encoder. windows: the feature encoder together with the acoustic encoder. Raises ValueError
    for a codebook that is not one of the codec's.
    """

    def __init__(
        self, parts: TokenParts, device: torch.device, precision: str, codebooks: Sequence[Codebook] = ()
    ) -> None:
        self.info = parts.info
        self.stage: Stage = nullcontext
        self.extractor = FeatureExtractor(parts.encoder, device, precision)
        self.windows = WindowEncoder(self.extractor, parts.acoustic, parts.info.stack_factor, device)
        self.outputs = [_describe(parts, book, self.extractor) for book in codebooks]
        self._quantizers = [SemanticQuantizer(book, device) for book in codebooks]

    @classmethod
    def load(
        cls,
        codebooks: Sequence[Codebook],
        name_or_path: str | Path = "mini",
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """Load a codec's encoders onto a device. The other arguments and errors are those of `Codec.load`."""
        chosen = resolve_device(device)
        return cls(load_token_parts(name_or_path), chosen, resolve_precision(precision, chosen, [ENCODER]), codebooks)

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the windows of files; for a published codec, subtract the mean of each file."""
        return centred(chunks) if self.windows.published_steps else chunks

    def tokenize(self, waves: Any, last: Any) -> list[Tokens]:
        """Return the tokens of windows, as `Tokenizer.tokenize` describes; UNDECIDED fills a whole window."""
        self.extractor.stage = self.stage
        embedded = self.windows.embed(waves, last)
        with self.stage(NEAREST):
            labels = [quantizer.labels(embedded.features) for quantizer in self._quantizers]
        with self.stage(ACOUSTIC):
            found = zip(labels, self._quantizers, strict=True)
            return [self.windows.pair(embedded, each, quantizer) for each, quantizer in found]


def _describe(parts: TokenParts, book: Codebook, extractor: FeatureExtractor) -> TokenStreams:
    check_codebook(book, extractor.name, extractor.hash)
    own, name, info = sorted(map(codebook_hash, parts.codebooks)), codebook_hash(book), parts.info
    if name not in own:
        raise ValueError(f"the codec {info.name} has no codebook {name} of {book.k} centroids; it has {', '.join(own)}")
    sizes = (book.k, len(parts.acoustic.quantizer.codes))
    return TokenStreams(tuple(STREAMS), sizes, book.metadata.token_rate, name, info.token_hash)
