"""The interface of everything that turns windows of audio into tokens; the tokenizer of an encoder with codebooks."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.loader import Chunk
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.stacking import stack_factor, stack_patches
from sctok.kernels.assign import nearest_centroid, prepare_centroids
from sctok.runtime.stages import NEAREST, Stage

from .extractor import KEEP, Extractor, load_encoder

UNDECIDED = -1  # the label of a vector that is not finite
SEMANTIC = "semantic"  # name of a stream

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenStreams:
    """What the tokens of one codebook are.

    names: of the streams. sizes: number of different tokens in each stream. token_rate: tokens per second, counting a
    semantic and an acoustic stream: 100, 50 or 25. codebook_hash: of the semantic codebook. codec_hash: of everything
    else that determines the tokens, apart from the encoder; None if there is nothing else.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    token_rate: int
    codebook_hash: str
    codec_hash: str | None = None

    @property
    def stack_factor(self) -> int:
        """Patch embeddings per token: 1, 2 or 4."""
        return stack_factor(self.token_rate)


class Tokenizer(Protocol):
    """Turns windows into tokens on one device. The tokens of a window do not depend on the other windows of its batch.

    stage: called with the name of each stage, returns the context in which to run it; callers set it to measure times.
    """

    stage: Stage

    @property
    def extractor(self) -> Extractor:
        """The feature encoder."""

    @property
    def outputs(self) -> Sequence[TokenStreams]:
        """One description for each codebook."""

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the windows of files as `tokenize` expects them."""

    def tokenize(self, waves: Any, last: Any) -> Sequence[Tokens]:
        """Return the tokens of windows.

        Args:
            waves: float32 (w, samples) at 16 kHz, an array or a tensor, as `Extractor.embed` takes them.
            last: bool (w,), true if the window is the last one of its file; of the same kind.

        Returns:
            for each of `outputs`, int64 (w, 8 · columns / stack factor, streams), UNDECIDED where a feature is not
            finite.
        """


def check_codebook(codebook: Codebook, encoder: str, encoder_hash: str) -> None:
    """Raise ValueError unless a codebook was made with an encoder, given by its name and hash."""
    info = codebook.metadata
    if info.encoder_hash != encoder_hash:
        raise ValueError(
            f"the codebook of {codebook.k} centroids was made with the encoder {info.encoder} ({info.encoder_hash}), "
            f"not with {encoder} ({encoder_hash}); use the codebook's encoder, or cluster features that were extracted "
            "with this one and the same --padding"
        )


class SemanticQuantizer:
    """A codebook on a device, prepared for exact nearest-centroid search."""

    def __init__(self, codebook: Codebook, device: torch.device) -> None:
        self._prepared = prepare_centroids(torch.from_numpy(codebook.centroids).to(device))

    def labels(self, features: Tensor) -> Tensor:
        """Return the index of the nearest centroid, int64 (…), for features float32 (…, F) on the device.

        The lowest index wins ties. A feature that is not finite gets -1. A label does not depend on other features.
        """
        points = features.reshape(-1, features.shape[-1])
        finite = torch.isfinite(points).all(dim=1)
        labels = nearest_centroid(torch.where(finite[:, None], points, 0.0), self._prepared).labels
        return torch.where(finite, labels, UNDECIDED).reshape(features.shape[:-1])

    def vectors(self, labels: Tensor) -> Tensor:
        """Return the centroids float32 (…, F) of non-negative labels int64 (…)."""
        return torch.nn.functional.embedding(labels, self._prepared.centroids)


class SemanticTokenizer:
    """A feature encoder and codebooks for it; implements `Tokenizer` with one semantic stream for each codebook.

    Raises ValueError if a codebook was made with another encoder, or for features of another width.
    """

    def __init__(self, extractor: Extractor, codebooks: Sequence[Codebook]) -> None:
        for codebook in codebooks:
            check_codebook(codebook, extractor.name, extractor.hash)
            if codebook.width != extractor.width:
                raise ValueError(
                    f"the codebook of {codebook.k} centroids is for features of width {codebook.width}, not "
                    f"{extractor.width}; use another codebook"
                )
        self.stage: Stage = nullcontext
        self.extractor = extractor
        self.outputs = [
            TokenStreams((SEMANTIC,), (book.k,), book.metadata.token_rate, codebook_hash(book)) for book in codebooks
        ]
        self._device = torch.device(extractor.device)
        self._quantizers = [SemanticQuantizer(codebook, self._device) for codebook in codebooks]

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the windows unchanged."""
        return chunks

    def tokenize(self, waves: Any, last: Any) -> list[Tokens]:
        """Return the tokens of windows, as `Tokenizer.tokenize` describes."""
        self.extractor.stage = self.stage
        patches = torch.as_tensor(self.extractor.embed(waves, last), device=self._device)
        with self.stage(NEAREST):
            stacked = [stack_patches(patches, output.stack_factor) for output in self.outputs]
            labels = [quantizer.labels(each) for quantizer, each in zip(self._quantizers, stacked, strict=True)]
            return [each[..., None].cpu().numpy() for each in labels]


def load_semantic_tokenizer(
    codebooks: Sequence[Codebook],
    encoder: str = "mini",
    device: str = "auto",
    precision: str = "auto",
    padding: str = KEEP,
) -> SemanticTokenizer:
    """Load an encoder onto a device and combine it with codebooks.

    The arguments after `codebooks` and their errors are those of `load_encoder`. Raises ValueError if a codebook was
    made with another encoder.
    """
    return SemanticTokenizer(load_encoder(encoder, device, precision, padding), codebooks)
