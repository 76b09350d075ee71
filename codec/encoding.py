"""Windows of audio to pairs of tokens on one device, the same for a window in whatever batch it comes."""

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
from sctok.codec.models.acoustic import AcousticEncoder, windows_alone
from sctok.codec.models.condition import mark_out
from sctok.features.extractor import FeatureExtractor
from sctok.formats.stacking import stack_patches

from .semantic import UNDECIDED, SemanticQuantizer

BATCH = {
    "cpu": 16,
    "cuda": 16,
}  # windows that the acoustic encoder takes at once: as many share a reading of its weights
CENTRED_WINDOWS = 128  # of a file, 22 minutes; more are not held


class Embedded(NamedTuple):
    """Windows, embedded: stacked features float32 (w, L, F), and positions without audio bool (w, L), on the device."""

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
        # Matrix libraries round otherwise for other batch shapes. So that a token depends on its window alone, batches
        # are filled up with empty windows where they matter.
        self._filled = 1 if windows_alone(device) else self.batch_size

    def encode(
        self, waves: NDArray[np.float32], last: NDArray[np.bool_], quantizer: SemanticQuantizer
    ) -> NDArray[np.int64]:
        """Return the tokens of windows.

        Args:
            waves: float32 (w, 164,080) samples at 16 kHz, w > 0.
            last: bool (w,), true where the window is its file's last one.
            quantizer: the semantic codebook, on the device.

        Returns:
            int64 (w, 512 / stack factor, 2), semantic and acoustic; -1 throughout a window of which the encoder gives
            a feature that is not finite.
        """
        embedded = self.embed(waves, last)
        return self.pair(embedded, quantizer.labels(embedded.features), quantizer)

    @torch.inference_mode()
    def embed(self, waves: NDArray[np.float32] | Tensor, last: NDArray[np.bool_] | Tensor) -> Embedded:
        """Return windows as `pair` takes them, with as many codebooks as there are.

        Arguments as of `encode`, or tensors of the same, on any device.
        """
        patches, mel = self._extractor.embed_with_mel(waves, last)
        features = stack_patches(torch.as_tensor(patches, device=self._device), self._stack)
        return Embedded(features, mark_out(torch.as_tensor(mel), features.shape[1]).to(self._device))

    @torch.inference_mode()
    def pair(self, embedded: Embedded, semantic: Tensor, quantizer: SemanticQuantizer) -> NDArray[np.int64]:
        """Return what `encode` does, of the labels (w, L) that the quantizer gives the features."""
        lost = (semantic == UNDECIDED).any(dim=1)[:, None]
        semantic, features = semantic.masked_fill(lost, 0), embedded.features.masked_fill(lost[..., None], 0.0)
        acoustic = self._acoustic_tokens(features, quantizer.vectors(semantic), embedded.padded)
        return torch.stack([semantic, acoustic], dim=-1).masked_fill(lost[..., None], UNDECIDED).cpu().numpy()

    def _acoustic_tokens(self, features: Tensor, quantized: Tensor, padded: Tensor) -> Tensor:
        """Return int64 (w, L) of features and their centroids (w, L, F) and padded bool (w, L)."""
        found = []
        for start in range(0, len(features), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = [_filled(each[part], self._filled) for each in (features, quantized, padded)]
            found.append(self._acoustic(*batch).indices[: len(features[part])])
        return torch.cat(found)


def _filled(rows: Tensor, size: int) -> Tensor:
    """Return rows (w, …) with zeros behind them, (size, …)."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows


def centred(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the windows of files without the mean of their file, as published codecs read them.

    That is rounding, mostly: a frame's mean is removed later on. Files of more than 128 windows are left as they are,
    so that memory stays bounded.
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
