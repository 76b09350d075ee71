"""The side of a codec that makes tokens, without the decoder."""

from pathlib import Path
from typing import Self

import torch

from sctok.codec.storage.codec_folder import TokenParts, load_token_parts
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.formats.codebooks import codebook_hash
from sctok.runtime.devices import resolve_device, resolve_precision

from .encoding import WindowEncoder


class CodecTokenizer:
    """The encoders of a codec on one device: tokens of whole corpora come from here.

    extractor: the feature encoder. windows: it and the acoustic encoder. codebooks: hashes of the semantic ones.
    """

    def __init__(self, parts: TokenParts, device: torch.device, precision: str) -> None:
        self.info = parts.info
        self.codebooks = frozenset(map(codebook_hash, parts.codebooks))
        self.acoustic_size = len(parts.acoustic.quantizer.codes)
        self.extractor = FeatureExtractor(parts.encoder, device, precision)
        self.windows = WindowEncoder(self.extractor, parts.acoustic, parts.info.stack_factor, device)

    @classmethod
    def load(cls, name_or_path: str | Path = "mini", device: str = "auto", precision: str = "auto") -> Self:
        """Load a codec's encoders onto a device. Arguments and errors as of `Codec.load`."""
        chosen = resolve_device(device)
        return cls(load_token_parts(name_or_path), chosen, resolve_precision(precision, chosen, [ENCODER]))
