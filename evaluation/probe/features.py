"""What a probe looks at: features, what is left of them in tokens, and log-mel frames, clip by clip."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sctok.audio.decoding.decode import stream_audio
from sctok.audio.filterbank import filterbank
from sctok.audio.inputs.sources import AudioItem
from sctok.audio.pieces import empty_span, window_rows
from sctok.audio.published_filterbank import centre
from sctok.audio.windows import COLUMN_SAMPLES, FRAME_SHIFT, PATCH_ROWS, SAMPLE_RATE, WINDOW_SAMPLES, audio_columns
from sctok.codec.semantic import UNDECIDED, SemanticQuantizer
from sctok.codec.storage.codec_folder import load_token_parts
from sctok.codec.tokenizer import CodecTokenizer
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.stacking import stack_patches
from sctok.runtime.devices import resolve_device, resolve_precision

from .labels import LabelledClip, Rejected

RANDOM_WIDTH = 256  # of the random vectors that stand for tokens
LOG_MEL, LOG_MEL_DEVIATION = "log-mel", "log-mel with deviation"
Samples = NDArray[np.float32]
Progress = Callable[[int], object]


class Frames(NamedTuple):
    """A representation: values float32 (T, R, D), R frequency rows (1 where there are none) of T steps in seconds."""

    values: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class ClipCodes:
    """What a system makes of a clip. vectors: by representation. tokens: by stream, int64 (T, R)."""

    vectors: Mapping[str, Frames]
    tokens: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """A stream of tokens: how many there are to choose from, how many come in a second, and what made them."""

    size: int
    per_second: float
    codebook: str
    codebook_hash: str


class System(Protocol):
    """What makes representations and tokens of a clip.

    streams: by name, those of `ClipCodes.tokens`. about: which one it is, as JSON values.
    """

    @property
    def streams(self) -> Mapping[str, Stream]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def encode(self, samples: Samples) -> ClipCodes:
        """Return what the system makes of samples float32 (n,), n > 0, at 16 kHz. Raises ValueError if it cannot."""
        ...


class MelSystem:
    """The baseline: log-mel frames of 10 ms, (T, 1, 128)."""

    streams: Mapping[str, Stream] = {}
    about: Mapping[str, Any] = {"system": LOG_MEL}

    def encode(self, samples: Samples) -> ClipCodes:
        """Return the log-mel frames that hold audio."""
        waves, last = clip_windows(samples)
        frames = filterbank(torch.from_numpy(waves), torch.zeros(len(last), dtype=torch.bool)).flatten(0, 1)
        held = frames[: -(-len(samples) // FRAME_SHIFT)].numpy()
        return ClipCodes({LOG_MEL: Frames(held[:, None], FRAME_SHIFT / SAMPLE_RATE)})


class EncoderSystem:
    """A feature encoder, and codebooks for its features.

    Representations, for each token rate of the codebooks (100 where there are none): `NAME/features-rRATE`, stacked and
    not quantized; and for each codebook BOOK, `NAME/BOOK` its centroids and `NAME/BOOK/embedding`, for each token a
    random vector of 256 values, always the same, which knows nothing of where the centroids lie.

    Raises ValueError for a codebook of another encoder.
    """

    def __init__(
        self, extractor: FeatureExtractor, codebooks: Sequence[Codebook] = (), name: str | None = None
    ) -> None:
        self._extractor, self._name = extractor, name or extractor.name
        self._books: dict[str, _Book] = {}
        for book in codebooks:
            info = book.metadata
            if info.encoder_hash != extractor.hash:
                raise ValueError(
                    f"the codebook {book_name(book)} is for the encoder {info.encoder} ({info.encoder_hash}), "
                    f"not for {extractor.name} ({extractor.hash})"
                )
            self._books[_free_name(f"{self._name}/{book_name(book)}", self._books)] = _Book(book, extractor.device)
        self.streams: Mapping[str, Stream] = {name: each.stream for name, each in self._books.items()}
        hashes = {name: stream.codebook_hash for name, stream in self.streams.items()}
        self.about: Mapping[str, Any] = {
            "system": "encoder",
            "name": self._name,
            "hash": extractor.hash,
            "precision": extractor.precision,
            "codebooks": hashes,
        }

    def encode(self, samples: Samples) -> ClipCodes:
        """Return features, centroids and tokens of the columns that hold audio."""
        waves, last = clip_windows(samples, self._extractor.published_steps)
        patches = self._extractor.embed(waves, last)
        vectors: dict[str, Frames] = {}
        tokens: dict[str, NDArray[np.int64]] = {}
        stacks = {each.stack: each.rate for each in self._books.values()} or {1: 100}
        for stack, rate in stacks.items():
            features = audio_grid(stack_patches(patches, stack), len(samples), stack)
            check_finite(features)
            seconds = step_seconds(stack)
            vectors[f"{self._name}/features-r{rate}"] = Frames(features, seconds)
            for name, book in self._books.items():
                if book.stack == stack:
                    tokens[name] = book.labels(features)
                    vectors[name] = Frames(book.centroids[tokens[name]], seconds)
                    vectors[f"{name}/embedding"] = Frames(book.random[tokens[name]], seconds)
        return ClipCodes(vectors, tokens)


class CodecSystem:
    """The encoders of a codec, with one of its semantic codebooks.

    Representations: `NAME/features`, stacked and not quantized; `NAME/semantic`, centroids; `NAME/acoustic`, codes;
    `NAME/semantic+acoustic`, both beside each other. Tokens: the streams `NAME/semantic` and `NAME/acoustic`.
    """

    def __init__(self, tokenizer: CodecTokenizer, book: Codebook, codes: NDArray[np.float32], name: str) -> None:
        self._tokenizer, self._name, self._codes = tokenizer, name, codes
        self._book = _Book(book, tokenizer.extractor.device)
        stream = self._book.stream
        acoustic = Stream(len(codes), stream.per_second, f"{name} acoustic", tokenizer.info.token_hash)
        self.streams: Mapping[str, Stream] = {f"{name}/semantic": stream, f"{name}/acoustic": acoustic}
        self.about: Mapping[str, Any] = {
            "system": "codec",
            "name": name,
            "hash": tokenizer.info.token_hash,
            "precision": tokenizer.extractor.precision,
            "codebooks": {f"{name}/semantic": stream.codebook_hash},
        }

    def encode(self, samples: Samples) -> ClipCodes:
        """Return features, codes and tokens of the columns that hold audio."""
        windows, book = self._tokenizer.windows, self._book
        embedded = windows.embed(*clip_windows(samples, windows.published_steps))
        pairs = windows.pair(embedded, book.quantizer.labels(embedded.features), book.quantizer)
        if (pairs == UNDECIDED).any():
            raise ValueError("the encoder gives features that are not finite; check the audio")
        features = audio_grid(embedded.features.cpu().numpy(), len(samples), book.stack)
        both = audio_grid(pairs, len(samples), book.stack)
        tokens = {f"{self._name}/semantic": both[..., 0], f"{self._name}/acoustic": both[..., 1]}
        semantic, acoustic = book.centroids[both[..., 0]], self._codes[both[..., 1]]
        vectors = {
            f"{self._name}/features": features,
            f"{self._name}/semantic": semantic,
            f"{self._name}/acoustic": acoustic,
            f"{self._name}/semantic+acoustic": np.concatenate([semantic, acoustic], axis=-1),
        }
        seconds = step_seconds(book.stack)
        return ClipCodes({key: Frames(values, seconds) for key, values in vectors.items()}, tokens)


class _Book:
    """A codebook that is ready for use, with a random vector for each of its tokens."""

    def __init__(self, book: Codebook, device: torch.device) -> None:
        self.quantizer, self.centroids, self._device = SemanticQuantizer(book, device), book.centroids, device
        self.stack, self.rate = book.metadata.stack_factor, book.metadata.token_rate
        self.stream = Stream(book.k, self.rate / 2, book_name(book), codebook_hash(book))
        drawn = np.random.default_rng(0).standard_normal((book.k, RANDOM_WIDTH), np.float32)
        self.random = drawn / np.float32(np.sqrt(RANDOM_WIDTH))

    def labels(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the nearest centroids int64 (…) of finite features (…, F)."""
        return self.quantizer.labels(torch.from_numpy(features).to(self._device)).cpu().numpy()


def book_name(book: Codebook) -> str:
    """Return what a codebook is called, such as merged-4096-r100."""
    return f"{book.metadata.domain}-{book.k}-r{book.metadata.token_rate}"


def _free_name(name: str, taken: Iterable[str]) -> str:
    numbered = (name, *(f"{name}-{i}" for i in range(2, 1 + 2 + len(list(taken)))))
    return next(each for each in numbered if each not in taken)


def clip_windows(samples: Samples, without_mean: bool = False) -> tuple[Samples, NDArray[np.bool_]]:
    """Return the windows float32 (w, 164,080) that a clip (n,), n > 0, needs, and which of them is the last.

    without_mean: whether the mean of the clip is removed, as published codecs do.
    """
    count = -(-len(samples) // WINDOW_SAMPLES)
    span = empty_span(count)
    span[: len(samples)] = samples
    waves = window_rows(span)
    if without_mean:
        waves = centre(torch.from_numpy(waves)).numpy()
    return waves, np.arange(count) == count - 1


def audio_grid(windows: NDArray[Any], samples: int, stack: int) -> NDArray[Any]:
    """Lay the vectors or tokens (w, L, …) of a clip's windows out by time and frequency, (T, R, …), without padding.

    T: the steps that hold audio: 0.16 s each, 0.32 s at stack factor 4. R: 8 frequency rows at stack factor 1, else 4.
    """
    rows = PATCH_ROWS if stack == 1 else PATCH_ROWS // 2
    steps = audio_columns(samples) if stack < 4 else -(-audio_columns(samples) // 2)
    return windows.reshape(-1, rows, *windows.shape[2:])[:steps]


def step_seconds(stack: int) -> float:
    """Return how long a step of `audio_grid` is."""
    return COLUMN_SAMPLES / SAMPLE_RATE * (2 if stack == 4 else 1)


def check_finite(features: NDArray[np.float32]) -> None:
    """Raise ValueError unless all features are finite."""
    if not np.isfinite(features).all():
        raise ValueError("the encoder gives features that are not finite; check the audio")


def pool_clip(codes: ClipCodes, pooling: str, wanted: Callable[[str], bool]) -> dict[str, NDArray[np.float32]]:
    """Return one vector (d,) for each representation that is wanted.

    pooling: "mean" over time and frequency rows, (D,), as in the paper; or "rows", the mean over time of the rows
    beside each other, (R · D,). Log-mel frames give two: their mean, and mean and deviation.
    """
    pooled = {}
    for name, (values, _) in codes.vectors.items():
        if wanted(name):
            pooled[name] = values.mean(axis=(0, 1)) if pooling == "mean" else values.mean(axis=0).reshape(-1)
        if name == LOG_MEL and wanted(LOG_MEL_DEVIATION):
            pooled[LOG_MEL_DEVIATION] = np.concatenate([values.mean(axis=0)[0], values.std(axis=0)[0]])
    return pooled


def name_filter(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a representation's name fits one of some shell patterns; all do where there are none."""
    return partial(_fits, tuple(patterns))


def _fits(patterns: tuple[str, ...], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, eq=False)
class EmbeddedClips:
    """Clips that could be read, in their order, with a row of each of `vectors` (n, d) and its `tokens` (T, R)."""

    clips: tuple[LabelledClip, ...]
    vectors: Mapping[str, NDArray[np.float32]]
    tokens: Mapping[str, list[NDArray[np.int64]]]
    failed: tuple[Rejected, ...]
    seconds: float


def embed_clips(
    clips: Sequence[LabelledClip],
    systems: Sequence[System],
    *,
    seconds: float = 30.0,
    pooling: str = "mean",
    wanted: Callable[[str], bool] = lambda name: True,
    progress: Progress = lambda count: None,
) -> EmbeddedClips:
    """Run clips through systems; one that cannot be read or encoded is among those that failed.

    seconds: how much of each clip is used, from its start. Memory: one clip, and what is returned.
    """
    kept: list[LabelledClip] = []
    failed: list[Rejected] = []
    vectors: dict[str, list[NDArray[np.float32]]] = {}
    tokens: dict[str, list[NDArray[np.int64]]] = {}
    total = 0
    for clip in clips:
        try:
            samples = clip_samples(clip.item, seconds)
            coded = [system.encode(samples) for system in systems]
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed.append(Rejected(clip.item.key, " ".join(str(error).split()) or type(error).__name__))
        else:
            kept.append(clip)
            total += len(samples)
            for codes in coded:
                for name, vector in pool_clip(codes, pooling, wanted).items():
                    vectors.setdefault(name, []).append(vector)
                for name, stream in codes.tokens.items():
                    tokens.setdefault(name, []).append(stream)
        progress(1)
    stacked = {name: np.stack(rows).astype(np.float32, copy=False) for name, rows in vectors.items()}
    return EmbeddedClips(tuple(kept), stacked, tokens, tuple(failed), total / SAMPLE_RATE)


def clip_samples(item: AudioItem, seconds: float) -> Samples:
    """Return the first `seconds` of a clip, float32 (n,) at 16 kHz, n > 0. Raises AudioError."""
    limit = max(1, round(seconds * SAMPLE_RATE))
    blocks: list[Samples] = []
    held = 0
    for block in stream_audio(item.open(), name=item.name):
        blocks.append(block)
        held += len(block)
        if held >= limit:
            break
    return np.concatenate(blocks)[:limit]


def load_codec_system(
    name_or_path: str | Path, device: str, precision: str, codebook: int | str | None = None
) -> CodecSystem:
    """Load the encoders of a codec, with the semantic codebook of some rows or hash, its largest where None.

    Raises ValueError as `sctok.codec.codec.Codec.load`, and for a codebook that the codec lacks.
    """
    parts, chosen = load_token_parts(name_or_path), resolve_device(device)
    fitting = [book for book in parts.codebooks if codebook in (None, book.k, codebook_hash(book))]
    if not fitting:
        there = ", ".join(f"{codebook_hash(book)} ({book.k} rows)" for book in parts.codebooks)
        raise ValueError(f"the codec {parts.info.name} has no codebook {codebook}; it has {there}")
    tokenizer = CodecTokenizer(parts, chosen, resolve_precision(precision, chosen, [ENCODER]))
    codes = parts.acoustic.quantizer.codes.cpu().numpy()
    return CodecSystem(tokenizer, max(fitting, key=lambda book: book.k), codes, f"codec {parts.info.name}")
