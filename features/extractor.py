"""From waveforms to contextual embeddings on one device, the same for a window in whatever batch it comes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctok.audio.filterbank import filterbank
from sctok.audio.published_filterbank import published_filterbank
from sctok.audio.windows import MEL_BINS, WINDOW_FRAMES, WINDOW_PATCHES, WINDOW_SPAN
from sctok.kernels.devices import DTYPES, resolve_device, resolve_precision

from .checkpoints import EncoderWeights, load_weights

# Matrix libraries choose other kernels, and round otherwise, for other batch shapes. So that an embedding depends on
# its window alone, the model always runs in one shape: a window at a time on a CPU, this many on a GPU, filled up.
GPU_BATCH = 16


class FeatureExtractor:
    """An AudioMAE encoder with its front end."""

    def __init__(self, weights: EncoderWeights, device: torch.device, precision: str) -> None:
        self.name, self.hash, self.width = weights.name, weights.hash, weights.config.width
        self.device, self.precision = device, precision
        self.batch_size = 1 if device.type == "cpu" else GPU_BATCH
        self.published_steps = weights.published_steps
        self._filterbank = published_filterbank if weights.published_steps else filterbank
        self._model = weights.build().to(device)
        # Called with the name of each stage, gives the context in which it is done: by it a caller can time them.
        self.stage: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def embed(self, waves: NDArray[np.float32], last: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the contextual embeddings of windows.

        Args:
            waves: float32 (n, 164,080) samples at 16 kHz. With `published_steps` the mean of the file should have been
                removed (`sctok.audio.published_filterbank.centre`), for else features differ by some 1e-5.
            last: bool (n,), true where the window is its file's last one.

        Returns:
            float32 (n, 512, width), time-major, eight frequency rows per column.

        Raises:
            ValueError: a shape is wrong.
        """
        return self.embed_with_mel(waves, last)[0]

    @torch.inference_mode()
    def embed_with_mel(
        self, waves: NDArray[np.float32], last: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what `embed` does, and the filterbanks float32 (n, 1024, 128) that were embedded."""
        if waves.ndim != 2 or waves.shape[1] != WINDOW_SPAN or last.shape != waves.shape[:1]:
            raise ValueError(f"expected waves (n, {WINDOW_SPAN}) and last (n,), got {waves.shape} and {last.shape}")
        embedded = np.empty((len(waves), WINDOW_PATCHES, self.width), np.float32)
        mels = np.empty((len(waves), WINDOW_FRAMES, MEL_BINS), np.float32)
        for start in range(0, len(waves), self.batch_size):
            count = min(self.batch_size, len(waves) - start)
            batch = torch.zeros(self.batch_size, WINDOW_SPAN)
            batch[:count] = torch.from_numpy(waves[start : start + count])
            ends = torch.ones(self.batch_size, dtype=torch.bool)
            ends[:count] = torch.from_numpy(last[start : start + count])
            with self.stage("filterbank"):
                mel = self._filterbank(batch.to(self.device), ends.to(self.device))
                mels[start : start + count] = mel[:count].cpu().numpy()
            with self.stage("encoder"):
                embedded[start : start + count] = self._embed_batch(mel)[:count].cpu().numpy()
        return embedded, mels

    def _embed_batch(self, mel: Tensor) -> Tensor:
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self._model(mel).float()


def load_encoder(name_or_path: str | Path = "mini", device: str = "auto", precision: str = "auto") -> FeatureExtractor:
    """Load an encoder by name or path onto a device.

    Args:
        name_or_path: see `sctok.features.checkpoints.load_weights`.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16; low precision on a CPU is tried in a child process first.

    Raises:
        ValueError: the encoder, device or precision is unknown or out of reach.
    """
    chosen = resolve_device(device)
    return FeatureExtractor(load_weights(name_or_path), chosen, resolve_precision(precision, chosen))
