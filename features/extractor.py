"""From waveforms to contextual embeddings on one device, the same for a window in whatever batch it comes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctok.audio.filterbank import check_spans, filterbank
from sctok.audio.published_filterbank import published_filterbank
from sctok.audio.windows import MEL_BINS, PATCH_ROWS, WINDOW_COLUMNS, WINDOW_FRAMES, windows_at_once
from sctok.runtime.devices import DTYPES, Use, resolve_device, resolve_precision

from .acceleration import Forward, accelerate
from .checkpoints import EncoderWeights, load_weights

# Matrix libraries choose other kernels, and round otherwise, for other batch shapes. So that an embedding depends on
# its window alone, the model always runs in one shape: a window at a time on a CPU, this many on a GPU, filled up. An
# H100 encodes 10,551 windows a second 16 at a time, 12,451 so, and 12,764 64 at a time (bundled encoder, bf16).
GPU_BATCH = 32

# What becomes of the silence that fills up the last window of a file: the encoder sees it, as in the published code, or
# it is cut off. Features differ, so the hash of an encoder that cuts it has an ending of its own.
KEEP, CUT = PADDINGS = ("keep", "cut")
_CUT_ENDING = "-cut"

ENCODER = Use("the encoder", "sctok.features.capabilities:encoder_steps")


def padding_of(encoder_hash: str) -> str:
    """Return what an encoder did with padding, keep or cut, by the hash that features and codebooks know it by."""
    return CUT if encoder_hash.endswith(_CUT_ENDING) else KEEP


def weights_hash(encoder_hash: str) -> str:
    """Return the hash of an encoder's weights by the hash that features and codebooks know it by."""
    return encoder_hash.removesuffix(_CUT_ENDING)


class FeatureExtractor:
    """An AudioMAE encoder with its front end.

    hash: of its weights, and whether it cuts padding. Raises ValueError for another `padding` than keep and cut.
    """

    def __init__(self, weights: EncoderWeights, device: torch.device, precision: str, padding: str = KEEP) -> None:
        if padding not in PADDINGS:
            raise ValueError(f"padding {padding!r} is none of {', '.join(PADDINGS)}")
        self.name, self.width, self.padding = weights.name, weights.config.width, padding
        self.hash = weights.hash + (_CUT_ENDING if padding == CUT else "")
        self.device, self.precision = device, precision
        self.batch_size = 1 if device.type == "cpu" else GPU_BATCH
        self.way = "eager" if device.type == "cpu" else "graph"  # of `accelerate`
        self.published_steps = weights.published_steps
        self._filterbank = published_filterbank if weights.published_steps else filterbank
        self._model = _store_in(weights.build(), DTYPES[precision]).to(device)
        self._forward: Forward | None = None
        # Called with the name of each stage, gives the context in which it is done: by it a caller can time them.
        self.stage: Callable[[str], AbstractContextManager[Any]] = nullcontext

    @overload
    def embed(self, waves: NDArray[np.float32], last: NDArray[np.bool_]) -> NDArray[np.float32]: ...

    @overload
    def embed(self, waves: Tensor, last: Tensor) -> Tensor: ...

    def embed(self, waves: Any, last: Any) -> Any:
        """Return the contextual embeddings of windows.

        Args:
            waves: float32 (n, 164,080) samples at 16 kHz, an array or a tensor on any device. With `published_steps`
                the mean of the file should have been removed (`sctok.audio.published_filterbank.centre`), for else
                features differ by some 1e-5. With padding cut also (n, 2560·c + 240): the c columns of last windows
                that get tokens.
            last: bool (n,), true where the window is its file's last one; of the same kind.

        Returns:
            float32 (n, 512, width), or (n, 8·c, width), time-major, eight frequency rows per column: an array for
            arrays, for tensors one on the extractor's device.

        Raises:
            ValueError: a shape is wrong.
        """
        embedded = self._embed(torch.as_tensor(waves), torch.as_tensor(last), None)
        return embedded if isinstance(waves, Tensor) else embedded.cpu().numpy()

    def embed_with_mel(self, waves: Any, last: Any) -> tuple[Any, Any]:
        """Return what `embed` does, and the filterbanks float32 (n, 1024, 128) that were embedded.

        Those are in this machine's memory: an array for arrays, a tensor for tensors.
        """
        mels = torch.empty(len(waves), WINDOW_FRAMES, MEL_BINS)
        embedded = self._embed(torch.as_tensor(waves), torch.as_tensor(last), mels)
        return (embedded, mels) if isinstance(waves, Tensor) else (embedded.cpu().numpy(), mels.numpy())

    @torch.inference_mode()
    def _embed(self, waves: Tensor, last: Tensor, mels: Tensor | None) -> Tensor:
        columns = check_spans(waves)
        if last.shape != waves.shape[:1]:
            raise ValueError(f"expected which of {len(waves)} windows are last ones, got {tuple(last.shape)}")
        if columns < WINDOW_COLUMNS and self.padding == KEEP:
            raise ValueError(f"expected windows of {WINDOW_COLUMNS} columns, got {columns}; load it with padding cut")
        embedded = torch.empty(len(waves), columns * PATCH_ROWS, self.width, device=self.device)
        size = self.batch_size * windows_at_once(columns)
        for start in range(0, len(waves), size):
            part = slice(start, start + size)
            count = len(waves[part])
            with self.stage("filterbank"):
                batch, ends = (_filled(each[part], size).to(self.device) for each in (waves, last))
                mel = self._filterbank(batch, ends)
                if mels is not None:
                    mels[part] = mel[:count]
            with self.stage("encoder"):
                embedded[part] = self._embed_batch(mel)[:count]
        return embedded

    def _embed_batch(self, mel: Tensor) -> Tensor:
        if mel.shape[1] < WINDOW_FRAMES:  # a graph for each of 63 shapes is not worth its memory
            return self._autocast(mel)
        if self._forward is None:
            self._forward = accelerate(self._autocast, mel, self.way)
        return self._forward(mel)

    def _autocast(self, mel: Tensor) -> Tensor:
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return self._model(mel).float()


def _store_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the weights of products in `dtype`, to which autocast would convert them at every call."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return model


def _filled(rows: Tensor, size: int) -> Tensor:
    """Return rows (n, …) with zeros behind them, (size, …)."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows


def load_encoder(
    name_or_path: str | Path = "mini", device: str = "auto", precision: str = "auto", padding: str = KEEP
) -> FeatureExtractor:
    """Load an encoder by name or path onto a device.

    Args:
        name_or_path: see `sctok.features.checkpoints.load_weights`.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16; low precision on a CPU is tried in a child process first.
        padding: keep, or cut: whether the encoder sees what fills up the last window of a file.

    Raises:
        ValueError: the encoder, device, precision or padding is unknown or out of reach.
    """
    chosen = resolve_device(device)
    return FeatureExtractor(
        load_weights(name_or_path), chosen, resolve_precision(precision, chosen, [ENCODER]), padding
    )
