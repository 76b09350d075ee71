"""Windows of audio to pairs of tokens on one device. The tokens of a window do not depend on its batch."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.loader import Chunk
from sctok.audio.published_filterbank import centre
from sctok.audio.transfer import Ends, Waves
from sctok.codec.models.acoustic import AcousticEncoder, is_batch_invariant
from sctok.codec.models.condition import mark_out
from sctok.features.extractor import FeatureExtractor
from sctok.features.tokenizer import UNDECIDED, SemanticQuantizer
from sctok.formats.stacking import stack_patches

BATCH = {"cpu": 16, "cuda": 16}  # windows in a batch of the acoustic encoder, which reads its weights once per batch
CENTRED_WINDOWS = 128  # longest file whose mean is removed: 22 minutes, all of which are in memory


class Embedded(NamedTuple):
    """Embedded windows on the device: stacked features, float32 (w, L, F), and padding, bool (w, L)."""

    features: Tensor
    padded: Tensor


class WindowEncoder:
    """A frozen feature encoder and an acoustic encoder on one device."""

    def __init__(
        self, extractor: FeatureExtractor, acoustic: AcousticEncoder, stack_factor: int, device: torch.device
    ) -> None:
        self._extractor, self._stack, self._device = extractor, stack_factor, device
        self._acoustic = acoustic.to(device).eval().requires_grad_(False)
        self.batch_size = BATCH[device.type]
        self.published_steps = extractor.published_steps
        # Matrix libraries round differently for other batch shapes. To make tokens depend only on their window, batches
        # are padded with empty windows unless the encoder is batch-invariant.
        self._padded_size = 1 if is_batch_invariant(device) else self.batch_size

    def encode(self, waves: Waves, last: Ends, quantizer: SemanticQuantizer) -> NDArray[np.int64]:
        """Return the tokens of windows.

        Args:
            waves: float32 (w, 164,080) samples at 16 kHz, w > 0; array, or tensor on any device.
            last: bool (w,), True for the last window of a file.
            quantizer: the semantic codebook, on the device.

        Returns:
            Semantic and acoustic tokens, int64 (w, 512 / stack factor, 2). All tokens of a window with a feature that
            is not finite are -1.
        """
        embedded = self.embed(waves, last)
        return self.pair(embedded, quantizer.labels(embedded.features), quantizer)

    @torch.inference_mode()
    def embed(self, waves: Waves, last: Ends) -> Embedded:
        """Embed windows, as `encode` takes them, for `pair` with any number of codebooks."""
        patches, mel = self._extractor.embed_with_mel(waves, last)
        features = stack_patches(torch.as_tensor(patches, device=self._device), self._stack)
        return Embedded(features, mark_out(torch.as_tensor(mel), features.shape[1]).to(self._device))

    @torch.inference_mode()
    def pair(self, embedded: Embedded, semantic: Tensor, quantizer: SemanticQuantizer) -> NDArray[np.int64]:
        """Return the tokens that `encode` returns, given the labels (w, L) of the features."""
        invalid = (semantic == UNDECIDED).any(dim=1)[:, None]
        semantic, features = semantic.masked_fill(invalid, 0), embedded.features.masked_fill(invalid[..., None], 0.0)
        acoustic = self._acoustic_tokens(features, quantizer.vectors(semantic), embedded.padded)
        return torch.stack([semantic, acoustic], dim=-1).masked_fill(invalid[..., None], UNDECIDED).cpu().numpy()

    def _acoustic_tokens(self, features: Tensor, quantized: Tensor, padded: Tensor) -> Tensor:
        """Return acoustic tokens, int64 (w, L), given features and centroids (w, L, F) and padding, bool (w, L)."""
        found = []
        for start in range(0, len(features), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = [_pad_batch(each[part], self._padded_size) for each in (features, quantized, padded)]
            found.append(self._acoustic(*batch).indices[: len(features[part])])
        return torch.cat(found)


def _pad_batch(rows: Tensor, size: int) -> Tensor:
    """Append zeros to rows (w, …) up to (size, …)."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows


def centred(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Subtract the mean of each file from its windows, as published codecs do.

    This changes little, because the mean of every frame is removed later. To bound memory, files of more than
    128 windows are not changed.
    """
    for _, group in itertools.groupby(chunks, key=lambda chunk: chunk.item):
        pieces = iter(group)
        held = [next(pieces)]
        while not held[-1].last and sum(len(chunk.waves) for chunk in held) <= CENTRED_WINDOWS:
            held.append(next(pieces))
        waves = np.concatenate([chunk.waves for chunk in held])
        if held[-1].last and held[-1].error is None and len(waves) <= CENTRED_WINDOWS:
            waves = centre(torch.from_numpy(waves)).numpy()
        ends = itertools.accumulate(len(chunk.waves) for chunk in held)
        for chunk, end in zip(held, ends, strict=True):
            yield replace(chunk, waves=waves[end - len(chunk.waves) : end])
        yield from pieces
