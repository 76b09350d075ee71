"""Compute contextual embeddings of windows on one device. The embedding of a window does not depend on its batch."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctok.audio.filterbank import check_spans, filterbank
from sctok.audio.published_filterbank import published_filterbank
from sctok.audio.windows import MEL_BINS, PATCH_ROWS, WINDOW_COLUMNS, WINDOW_FRAMES, WINDOW_SPAN, windows_at_once
from sctok.runtime.cuda_graphs import captured
from sctok.runtime.devices import DTYPES, Use, resolve_device, resolve_precision
from sctok.runtime.low_precision import Step, filled
from sctok.runtime.stages import EMBEDDING, FILTERBANK, Stage

from .checkpoints import EncoderWeights, load_weights
from .encoder import AudioMAE, EncoderConfig

# Matrix libraries choose other kernels, which round differently, for other batch shapes. To make an embedding depend
# only on its window, the model always runs in one shape: one window on a CPU, this many on a GPU, padded with zeros.
# An H100 encodes 10,551 windows a second with batches of 16, 12,451 with 32 and 12,764 with 64 (bundled encoder, bf16).
GPU_BATCH = 32

# What the encoder does with the silence that fills up the last window of a file: it sees the silence, as in the
# published code, or the silence is cut off. The features differ, so an encoder that cuts has another hash.
KEEP, CUT = PADDINGS = ("keep", "cut")
_CUT_ENDING = "-cut"

BACKENDS = ("eager", "graph", "compile")
ENCODER = Use("the encoder", "sctok.features.extractor:encoder_steps")

Forward = Callable[[Tensor], Tensor]


class Extractor(Protocol):
    """A frozen encoder on one device.

    stage: called with the name of each stage, returns the context in which to run it; callers set it to measure times.
    device: the torch device, or its name. name: of the encoder. hash: of its weights, with a suffix if it cuts padding.
    width: number of values in a patch embedding. precision: fp32, bf16 or fp16. padding: whether it sees
    the silence that fills up the last window of a file, keep or cut.
    """

    stage: Stage
    device: Any
    name: str
    hash: str
    width: int
    precision: str
    padding: str

    def embed(self, waves: Any, last: Any) -> Any:
        """Map windows (w, 164,080), and bool (w,) telling which ones end a file, to patch embeddings (w, 512, width).

        With padding cut also (w, 2560·c + 240) to (w, 8·c, width). Arrays give an array, tensors a tensor on the
        device. The embedding of a window does not depend on the others.
        """


def padding_of(encoder_hash: str) -> str:
    """Return the padding (keep or cut) of an encoder, given its hash."""
    return CUT if encoder_hash.endswith(_CUT_ENDING) else KEEP


def weights_hash(encoder_hash: str) -> str:
    """Return the hash of the weights of an encoder, given its hash, which also depends on the padding."""
    return encoder_hash.removesuffix(_CUT_ENDING)


class FeatureExtractor:
    """An AudioMAE encoder with its filterbank; implements `Extractor`. Raises ValueError for an unknown padding."""

    def __init__(self, weights: EncoderWeights, device: torch.device, precision: str, padding: str = KEEP) -> None:
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")
        self.name, self.width, self.padding = weights.name, weights.config.width, padding
        self.hash = weights.hash + (_CUT_ENDING if padding == CUT else "")
        self.device, self.precision = device, precision
        self.batch_size = 1 if device.type == "cpu" else GPU_BATCH
        self.backend = "eager" if device.type == "cpu" else "graph"  # of `accelerate`
        self.published_steps = weights.published_steps
        self.stage: Stage = nullcontext
        self._filterbank = published_filterbank if weights.published_steps else filterbank
        self._model = _store_in(weights.build(), DTYPES[precision]).to(device)
        self._forward: Forward | None = None

    @overload
    def embed(self, waves: NDArray[np.float32], last: NDArray[np.bool_]) -> NDArray[np.float32]: ...

    @overload
    def embed(self, waves: Tensor, last: Tensor) -> Tensor: ...

    def embed(self, waves: Any, last: Any) -> Any:
        """Return the contextual embeddings of windows.

        Args:
            waves: float32 (n, 164,080) samples at 16 kHz, an array or a tensor on any device. With `published_steps`,
                remove the mean of the file first (`sctok.audio.published_filterbank.centre`); otherwise features
                differ by about 1e-5. With padding cut, (n, 2560·c + 240) is allowed too: the c columns of last windows
                that get tokens.
            last: bool (n,), true if the window is the last one of its file; of the same kind.

        Returns:
            float32 (n, 512, width), or (n, 8·c, width), time-major, eight frequency rows per column: an array for
            arrays, a tensor on the extractor's device for tensors.

        Raises:
            ValueError: a shape is wrong.
        """
        embedded = self._embed(torch.as_tensor(waves), torch.as_tensor(last), None)
        return embedded if isinstance(waves, Tensor) else embedded.cpu().numpy()

    def embed_with_mel(self, waves: Any, last: Any) -> tuple[Any, Any]:
        """Return the embeddings that `embed` returns, and the filterbanks float32 (n, 1024, 128) that were embedded.

        The filterbanks are in the memory of the CPU: an array for arrays, a tensor for tensors.
        """
        mels = torch.empty(len(waves), WINDOW_FRAMES, MEL_BINS)
        embedded = self._embed(torch.as_tensor(waves), torch.as_tensor(last), mels)
        return (embedded, mels) if isinstance(waves, Tensor) else (embedded.cpu().numpy(), mels.numpy())

    @torch.inference_mode()
    def _embed(self, waves: Tensor, last: Tensor, mels: Tensor | None) -> Tensor:
        columns = check_spans(waves)
        if last.shape != waves.shape[:1]:
            raise ValueError(
                f"`last` must have one value for each of {len(waves)} windows, not shape {tuple(last.shape)}"
            )
        if columns < WINDOW_COLUMNS and self.padding == KEEP:
            raise ValueError(
                f"expected windows of {WINDOW_COLUMNS} columns, got {columns}; load the encoder with padding cut"
            )
        embedded = torch.empty(len(waves), columns * PATCH_ROWS, self.width, device=self.device)
        size = self.batch_size * windows_at_once(columns)
        for start in range(0, len(waves), size):
            part = slice(start, start + size)
            count = len(waves[part])
            with self.stage(FILTERBANK):
                batch, ends = (_pad(each[part], size).to(self.device) for each in (waves, last))
                mel = self._filterbank(batch, ends)
                if mels is not None:
                    mels[part] = mel[:count]
            with self.stage(EMBEDDING):
                embedded[part] = self._embed_batch(mel)[:count]
        return embedded

    def _embed_batch(self, mel: Tensor) -> Tensor:
        if mel.shape[1] < WINDOW_FRAMES:  # a graph for each of the 63 shorter shapes would take too much memory
            return self._autocast(mel)
        if self._forward is None:
            self._forward = accelerate(self._autocast, mel, self.backend)
        return self._forward(mel)

    def _autocast(self, mel: Tensor) -> Tensor:
        dtype = DTYPES[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return self._model(mel).float()


def _store_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of linear and convolutional layers to `dtype` once, instead of by autocast at every call."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return model


def _pad(rows: Tensor, size: int) -> Tensor:
    """Append zeros to rows (n, …) up to (size, …)."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows


def accelerate(forward: Forward, example: Tensor, backend: str) -> Forward:
    """Return a function that computes `forward` for inputs of one shape in a single launch.

    Args:
        forward: maps a tensor to a tensor; it must use no randomness and must not look at values.
        example: a tensor with the shape, dtype and device of all later inputs.
        backend: eager returns `forward` itself. graph captures its kernels in a CUDA graph, with the same bits; the
            next call overwrites the returned tensor. compile generates kernels with torch.compile, which round
            differently, and captures them on a CUDA device.

    Raises:
        ValueError: the backend is unknown, or it is graph on a device without CUDA.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "eager":
        return forward
    if backend == "graph" and example.device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, not {example.device}")
    wanted: Forward = torch.compile(forward, dynamic=False) if backend == "compile" else forward
    return captured(wanted, [example]) if example.device.type == "cuda" else wanted


def load_encoder(
    name_or_path: str | Path = "mini", device: str = "auto", precision: str = "auto", padding: str = KEEP
) -> FeatureExtractor:
    """Load an encoder by name or path onto a device.

    Args:
        name_or_path: see `sctok.features.checkpoints.load_weights`.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16; low precision on a CPU is tried in a child process first.
        padding: keep or cut the silence that fills up the last window of a file.

    Raises:
        ValueError: the encoder, device, precision or padding is unknown, or the encoder cannot be fetched.
    """
    chosen = resolve_device(device)
    return FeatureExtractor(
        load_weights(name_or_path), chosen, resolve_precision(precision, chosen, [ENCODER]), padding
    )


def encoder_steps() -> list[Step]:
    """Return small steps that embed a window as sctok's and as imported encoders do, to try low precision on a CPU."""
    sizes = EncoderConfig(128, 3, 2)
    tensors = {name: tensor.detach() for name, tensor in filled(AudioMAE(sizes)).state_dict().items()}
    waves, last = 0.1 * np.random.default_rng(0).standard_normal((1, WINDOW_SPAN), np.float32), np.array([True])

    def embed(published: bool, precision: str) -> Tensor:
        weights = EncoderWeights("probe", sizes, tensors, {"published_steps": published})
        return torch.from_numpy(FeatureExtractor(weights, torch.device("cpu"), precision).embed(waves, last))

    return [
        Step("AudioMAE's linear layers and attention", partial(embed, False)),
        Step("AudioMAE's patch convolution and attention in separate steps", partial(embed, True)),
    ]
