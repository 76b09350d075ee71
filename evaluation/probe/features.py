"""The representations that probes classify: features, tokens and log-mel frames of clips."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
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
from sctok.codec.storage.codec_folder import load_token_parts
from sctok.codec.tokenizer import CodecTokenizer
from sctok.evaluation.codecs.base import Wave
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.features.tokenizer import UNDECIDED, SemanticQuantizer, check_codebook
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.stacking import stack_patches
from sctok.runtime.devices import resolve_device, resolve_precision

from .labels import LabelledClip, Rejected

EMBEDDING_WIDTH = 256  # of the random vectors of tokens
LOG_MEL, LOG_MEL_DEVIATION = "log-mel", "log-mel with deviation"
_NOT_FINITE = "the encoder returned features that are not finite; check the audio"


class Representation(NamedTuple):
    """Values float32 (T, R, D) of T steps of `seconds` each and R frequency rows (1 if there are none)."""

    values: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class EncodedClip:
    """The representations of a clip by name, and its tokens int64 (T, R) by stream."""

    vectors: Mapping[str, Representation]
    tokens: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenStream:
    """A stream of tokens: the size of its codebook, tokens per second, and the codebook's name and hash."""

    size: int
    per_second: float
    codebook: str
    codebook_hash: str


class System(Protocol):
    """The interface of a system to probe, which encodes clips to representations and tokens.

    streams: the streams of `EncodedClip.tokens` by name. about: its identity as JSON values.
    """

    @property
    def streams(self) -> Mapping[str, TokenStream]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def encode(self, samples: Wave) -> EncodedClip:
        """Encode samples float32 (n,), n > 0, at 16 kHz. Raises ValueError if that fails."""
        ...


class MelSystem:
    """The baseline: log-mel frames of 10 ms, (T, 1, 128)."""

    streams: Mapping[str, TokenStream] = {}
    about: Mapping[str, Any] = {"system": LOG_MEL}

    def encode(self, samples: Wave) -> EncodedClip:
        """Return the log-mel frames that contain audio."""
        waves, last = clip_windows(samples)
        frames = filterbank(torch.from_numpy(waves), torch.zeros(len(last), dtype=torch.bool)).flatten(0, 1)
        values = frames[: -(-len(samples) // FRAME_SHIFT), None].numpy()
        return EncodedClip({LOG_MEL: Representation(values, FRAME_SHIFT / SAMPLE_RATE)})


class EncoderSystem:
    """A feature encoder with codebooks for its features.

    Representations: `NAME/features-rRATE`, the stacked features, for each token rate of the codebooks (without
    codebooks, 100); for each codebook BOOK, `NAME/BOOK`, its centroids, and `NAME/BOOK/embedding`, a fixed random
    vector of 256 values for each token, which has no information about the centroids.

    Raises ValueError if a codebook was made with another encoder.
    """

    def __init__(
        self, extractor: FeatureExtractor, codebooks: Sequence[Codebook] = (), name: str | None = None
    ) -> None:
        self._extractor, self._name = extractor, name or extractor.name
        self._books: dict[str, _Book] = {}
        for book in codebooks:
            check_codebook(book, extractor.name, extractor.hash)
            self._books[_unique_name(f"{self._name}/{book_name(book)}", self._books)] = _Book(book, extractor.device)
        self.streams: Mapping[str, TokenStream] = {name: each.stream for name, each in self._books.items()}
        hashes = {name: stream.codebook_hash for name, stream in self.streams.items()}
        self.about: Mapping[str, Any] = {
            "system": "encoder",
            "name": self._name,
            "hash": extractor.hash,
            "precision": extractor.precision,
            "codebooks": hashes,
        }

    def encode(self, samples: Wave) -> EncodedClip:
        """Return features, centroids and tokens of the columns that contain audio."""
        waves, last = clip_windows(samples, self._extractor.published_steps)
        patches = self._extractor.embed(waves, last)
        vectors: dict[str, Representation] = {}
        tokens: dict[str, NDArray[np.int64]] = {}
        stacks = {each.stack: each.rate for each in self._books.values()} or {1: 100}
        for stack, rate in stacks.items():
            features = audio_grid(stack_patches(patches, stack), len(samples), stack)
            if not np.isfinite(features).all():
                raise ValueError(_NOT_FINITE)
            seconds = step_seconds(stack)
            vectors[f"{self._name}/features-r{rate}"] = Representation(features, seconds)
            for name, book in self._books.items():
                if book.stack == stack:
                    tokens[name] = book.labels(features)
                    vectors[name] = Representation(book.centroids[tokens[name]], seconds)
                    vectors[f"{name}/embedding"] = Representation(book.embedding[tokens[name]], seconds)
        return EncodedClip(vectors, tokens)


class CodecSystem:
    """The encoders of a codec with one of its semantic codebooks.

    Representations: `NAME/features`, the stacked features; `NAME/semantic`, the centroids; `NAME/acoustic`, the
    acoustic codes; `NAME/semantic+acoustic`, both concatenated. Streams: `NAME/semantic` and `NAME/acoustic`.
    """

    def __init__(self, tokenizer: CodecTokenizer, book: Codebook, codes: NDArray[np.float32], name: str) -> None:
        self._tokenizer, self._name, self._codes = tokenizer, name, codes
        self._book = _Book(book, tokenizer.extractor.device)
        stream = self._book.stream
        acoustic = TokenStream(len(codes), stream.per_second, f"{name} acoustic", tokenizer.info.token_hash)
        self.streams: Mapping[str, TokenStream] = {f"{name}/semantic": stream, f"{name}/acoustic": acoustic}
        self.about: Mapping[str, Any] = {
            "system": "codec",
            "name": name,
            "hash": tokenizer.info.token_hash,
            "precision": tokenizer.extractor.precision,
            "codebooks": {f"{name}/semantic": stream.codebook_hash},
        }

    def encode(self, samples: Wave) -> EncodedClip:
        """Return features, codes and tokens of the columns that contain audio."""
        windows, book = self._tokenizer.windows, self._book
        embedded = windows.embed(*clip_windows(samples, windows.published_steps))
        pairs = windows.pair(embedded, book.quantizer.labels(embedded.features), book.quantizer)
        if (pairs == UNDECIDED).any():
            raise ValueError(_NOT_FINITE)
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
        return EncodedClip({key: Representation(values, seconds) for key, values in vectors.items()}, tokens)


class _Book:
    """A codebook on a device, with a random vector for each token."""

    def __init__(self, book: Codebook, device: torch.device) -> None:
        self.quantizer, self.centroids, self._device = SemanticQuantizer(book, device), book.centroids, device
        self.stack, self.rate = book.metadata.stack_factor, book.metadata.token_rate
        self.stream = TokenStream(book.k, self.rate / 2, book_name(book), codebook_hash(book))
        random = np.random.default_rng(0).standard_normal((book.k, EMBEDDING_WIDTH), np.float32)
        self.embedding = random / np.float32(np.sqrt(EMBEDDING_WIDTH))

    def labels(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the nearest centroids int64 (…) of finite features (…, F)."""
        return self.quantizer.labels(torch.from_numpy(features).to(self._device)).cpu().numpy()


def book_name(book: Codebook) -> str:
    """Return the name of a codebook, such as merged-4096-r100."""
    return f"{book.metadata.domain}-{book.k}-r{book.metadata.token_rate}"


def _unique_name(name: str, existing: Collection[str]) -> str:
    names = (name, *(f"{name}-{i}" for i in range(2, len(existing) + 3)))
    return next(each for each in names if each not in existing)


def clip_windows(samples: Wave, without_mean: bool = False) -> tuple[Wave, NDArray[np.bool_]]:
    """Split a clip (n,), n > 0, into windows float32 (w, 164,080), and return which window is the last.

    without_mean: whether to subtract the mean of the clip, as published codecs do.
    """
    count = -(-len(samples) // WINDOW_SAMPLES)
    span = empty_span(count)
    span[: len(samples)] = samples
    waves = window_rows(span)
    if without_mean:
        waves = centre(torch.from_numpy(waves)).numpy()
    return waves, np.arange(count) == count - 1


def audio_grid(windows: NDArray[Any], samples: int, stack: int) -> NDArray[Any]:
    """Arrange the vectors or tokens (w, L, …) of a clip's windows by time and frequency, (T, R, …), without padding.

    T: steps that contain audio, of 0.16 s each (0.32 s at stack factor 4). R: frequency rows, 8 at stack factor 1,
    else 4.
    """
    rows = PATCH_ROWS if stack == 1 else PATCH_ROWS // 2
    steps = audio_columns(samples) if stack < 4 else -(-audio_columns(samples) // 2)
    return windows.reshape(-1, rows, *windows.shape[2:])[:steps]


def step_seconds(stack: int) -> float:
    """Return the duration of a step of `audio_grid`."""
    return COLUMN_SAMPLES / SAMPLE_RATE * (2 if stack == 4 else 1)


def pool_clip(encoded: EncodedClip, pooling: str, wanted: Callable[[str], bool]) -> dict[str, NDArray[np.float32]]:
    """Return one vector (d,) for each wanted representation.

    pooling: "mean" over time and frequency rows, (D,), as in the paper; or "rows", the mean over time of concatenated
    rows, (R · D,). Log-mel frames give two vectors: their mean, and their mean with their standard deviation.
    """
    pooled = {}
    for name, (values, _) in encoded.vectors.items():
        if wanted(name):
            pooled[name] = values.mean(axis=(0, 1)) if pooling == "mean" else values.mean(axis=0).reshape(-1)
        if name == LOG_MEL and wanted(LOG_MEL_DEVIATION):
            pooled[LOG_MEL_DEVIATION] = np.concatenate([values.mean(axis=0)[0], values.std(axis=0)[0]])
    return pooled


def name_filter(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a name matches a shell pattern; without patterns, every name matches."""
    return lambda name: not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, eq=False)
class EmbeddedClips:
    """The clips that could be encoded, in order. Each has a row in all `vectors` (n, d), and its `tokens` (T, R)."""

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
    progress: Callable[[int], object] = lambda clips: None,
) -> EmbeddedClips:
    """Encode clips with systems and pool their representations. Memory holds one clip and the result.

    Args:
        clips: clips to encode. Those that cannot be read or encoded are in `failed` of the result.
        systems: systems to encode with.
        seconds: seconds of each clip to use, from its start.
        pooling: see `pool_clip`.
        wanted: tells whether to pool a representation, by its name.
        progress: called with the number of clips just finished.
    """
    encoded_clips: list[LabelledClip] = []
    failed: list[Rejected] = []
    vectors: dict[str, list[NDArray[np.float32]]] = {}
    tokens: dict[str, list[NDArray[np.int64]]] = {}
    total = 0
    for clip in clips:
        try:
            samples, encoded = encode_clip(clip.item, systems, seconds)
        except ValueError as error:
            failed.append(Rejected(clip.item.key, str(error)))
        else:
            encoded_clips.append(clip)
            total += samples
            for each in encoded:
                for name, vector in pool_clip(each, pooling, wanted).items():
                    vectors.setdefault(name, []).append(vector)
                for name, stream in each.tokens.items():
                    tokens.setdefault(name, []).append(stream)
        progress(1)
    stacked = {name: np.stack(rows).astype(np.float32, copy=False) for name, rows in vectors.items()}
    return EmbeddedClips(tuple(encoded_clips), stacked, tokens, tuple(failed), total / SAMPLE_RATE)


def encode_clip(item: AudioItem, systems: Sequence[System], seconds: float) -> tuple[int, list[EncodedClip]]:
    """Encode the start of a clip with each system; return its number of samples, and the results.

    Raises ValueError with a one-line reason if the clip cannot be read or encoded.
    """
    try:
        samples = clip_samples(item, seconds)
        return len(samples), [system.encode(samples) for system in systems]
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def clip_samples(item: AudioItem, seconds: float) -> Wave:
    """Read the first `seconds` of a clip, float32 (n,) at 16 kHz, n > 0. Raises AudioError."""
    limit = max(1, round(seconds * SAMPLE_RATE))
    blocks: list[Wave] = []
    count = 0
    for block in stream_audio(item.open(), name=item.name):
        blocks.append(block)
        count += len(block)
        if count >= limit:
            break
    return np.concatenate(blocks)[:limit]


def load_codec_system(name_or_path: str | Path, device: str, precision: str) -> CodecSystem:
    """Load the encoders of a codec, with its largest semantic codebook. Raises ValueError like `Codec.load`."""
    parts, chosen = load_token_parts(name_or_path), resolve_device(device)
    tokenizer = CodecTokenizer(parts, chosen, resolve_precision(precision, chosen, [ENCODER]))
    codes = parts.acoustic.quantizer.codes.cpu().numpy()
    return CodecSystem(tokenizer, max(parts.codebooks, key=lambda book: book.k), codes, f"codec {parts.info.name}")
