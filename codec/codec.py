"""The codec: audio to semantic and acoustic tokens, and back."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk, file_chunks
from sctok.audio.packing import FileEnd, encode_files
from sctok.audio.pieces import cut_pieces
from sctok.audio.transfer import DirectLanes
from sctok.audio.windows import COLUMN_SAMPLES, PATCH_ROWS, SAMPLE_RATE, token_count
from sctok.codec.storage.codec_folder import load_codec
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.features.tokenizer import UNDECIDED, SemanticQuantizer
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.sct import CodecTokens
from sctok.runtime.devices import Use, resolve_device, resolve_precision

from .codec_parts import CodecParts
from .decoding import DECODER, TokenWindow, WindowDecoder
from .encoding import WindowEncoder, centred
from .overlap import cross_fade, decode_window_count, window_tokens
from .samplers import SamplerConfig, visited_steps
from .waves import is_whole, mono_blocks

DECODED_AT_ONCE = {"cpu": 4, "cuda": 16}  # windows

Key = TypeVar("Key")
WindowProgress = Callable[[float], object]  # called with the number of windows finished since the last call


class DecodingError(ValueError):
    """The tokens of a file decode to values that are not finite."""


class Codec:
    """An encoder and a decoder on one device. Each is set up at its first use.

    The tokens of a file depend only on the file, the codec, the codebook and the precision of the feature encoder. The
    acoustic encoder always computes in float32. Decoded audio depends on the tokens and the sampler with its seed.
    Which windows are decoded together changes it only by rounding (tested to 1e-4 of full scale).
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self, parts: CodecParts, device: torch.device, precision: str, batch_windows: int | None = None
    ) -> None:
        if batch_windows is not None and not (is_whole(batch_windows) and batch_windows >= 1):
            raise ValueError(f"batch_windows must be an integer of at least 1, not {batch_windows!r}")
        self.info, self.device, self.precision = parts.info, device, precision
        self.batch_windows = batch_windows or DECODED_AT_ONCE[device.type]
        self._parts = parts
        self._books = {codebook_hash(book): book for book in parts.tokens.codebooks}
        self._quantizers: dict[str, SemanticQuantizer] = {}

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "mini",
        device: str = "auto",
        precision: str = "auto",
        batch_windows: int | None = None,
        uses: Sequence[Use] = (ENCODER, DECODER),
    ) -> Self:
        """Load a codec.

        Args:
            name_or_path: "mini" (bundled) or the folder of a codec.
            device: auto, cpu, cuda or cuda:N.
            precision: auto, fp32, bf16 or fp16.
            batch_windows: number of windows of 10.24 s to decode at once; by default 4 on a CPU and 16 on a GPU.
            uses: planned uses of the codec. If one of them fails in low precision on this CPU, all of them are computed
                in fp32, with a warning.

        Raises:
            ValueError: the codec, device or precision is unknown, or the files of the codec do not fit each other.
        """
        chosen = resolve_device(device)
        return cls(load_codec(name_or_path), chosen, resolve_precision(precision, chosen, uses), batch_windows)

    @property
    def token_rate(self) -> int:
        """Tokens per second of both streams together: 100, 50 or 25."""
        return self.info.token_rate

    @property
    def stack_factor(self) -> int:
        """Number of patch embeddings per token: 1, 2 or 4."""
        return self.info.stack_factor

    @property
    def hash(self) -> str:
        """Hash of everything except the codebook that determines the tokens."""
        return self.info.token_hash

    @cached_property
    def encoder_hash(self) -> str:
        """Hash of the weights of the feature encoder."""
        return self._parts.tokens.encoder.hash

    @property
    def codebooks(self) -> dict[int, str]:
        """Hashes of the semantic codebooks by their number of rows."""
        return {book.k: name for name, book in self._books.items()}

    def codebook_hash(self, codebook: int | str | None = None) -> str:
        """Return the hash of a codebook, given its rows or hash; by default of the largest. Raises ValueError."""
        return self._book(codebook)[0]

    def codebook_sizes(self, codebook: int | str | None = None) -> tuple[int, int]:
        """Return the rows of a semantic codebook, chosen as in `codebook_hash`, and of the acoustic codebook."""
        return self._book(codebook)[1].k, len(self._parts.tokens.acoustic.quantizer.codes)

    def encode(
        self, wave: ArrayLike, sample_rate: int, *, codebook: int | str | None = None, channel: int | None = None
    ) -> CodecTokens:
        """Encode audio in memory.

        Args:
            wave: (n,), (channels, n) or (n, channels); the shorter axis is the channels. Full scale is 1 for floating
                types, and the largest value for signed integers. Silence is encoded like any other sound.
            sample_rate: sample rate of the wave, 1,000 to 10,000,000 Hz.
            codebook: rows or hash of the semantic codebook; by default the largest.
            channel: channel to encode; by default the mean of all channels.

        Raises:
            ValueError: the shape or the rate is invalid, there are no samples, a sample is not finite or beyond 2^31,
                or the codebook or the channel does not exist.
        """
        return self.encode_blocks(mono_blocks(wave, sample_rate, channel), codebook)

    def encode_blocks(self, blocks: Iterable[NDArray[np.float32]], codebook: int | str | None = None) -> CodecTokens:
        """Encode audio of any length, given as mono blocks, float32 (n,) at 16 kHz.

        `sctok.audio.decoding.decode.stream_audio` yields the blocks of a file. Memory: a few batches of windows, and
        the tokens. Raises ValueError like `encode`.
        """
        chunks = file_chunks(AudioItem("audio", "audio"), cut_pieces(blocks, self._encoder.batch_size))
        ((_, result),) = self.encode_many(chunks, codebook)
        if isinstance(result, str):
            raise ValueError(result)
        return result

    def encode_many(
        self, chunks: Iterable[Chunk], codebook: int | str | None = None, progress: WindowProgress | None = None
    ) -> Iterator[tuple[AudioItem, CodecTokens | str]]:
        """Encode files, packing the windows of several files into each batch.

        Args:
            chunks: windows of the files, as `sctok.audio.loader.load_windows` yields them.
            codebook: rows or hash of the semantic codebook; by default the largest.
            progress: called with the number of windows encoded since the last call.

        Yields:
            Each file in order with its tokens, or with the reason why it cannot be read or encoded.

        Raises:
            ValueError: the codebook does not exist.
        """
        name, book = self._book(codebook)
        if name not in self._quantizers:
            self._quantizers[name] = SemanticQuantizer(book, self.device)
        encoder, quantizer = self._encoder, self._quantizers[name]
        chunks = centred(chunks) if encoder.published_steps else chunks
        lanes = DirectLanes(partial(encoder.encode, quantizer=quantizer), encoder.batch_size)
        for event in encode_files(chunks, lanes, _EncodedFile):
            if isinstance(event, FileEnd):
                yield event.item, event.reason or self._finish(event.clip.tokens, event.samples, codebook)
                continue
            event.clip.tokens.append(event.values.astype(np.int32))
            if progress is not None:
                progress(1)

    def _finish(self, tokens: list[NDArray[np.int32]], samples: int, codebook: int | str | None) -> CodecTokens | str:
        pairs = np.concatenate(tokens)[: token_count(samples, self.stack_factor)]
        if (pairs == UNDECIDED).any():
            return "the encoder returns features that are not finite; check the audio"
        return self._describe(pairs, samples, codebook)

    def tokens(self, pairs: ArrayLike, samples: int | None = None, *, codebook: int | str | None = None) -> CodecTokens:
        """Convert pairs of tokens from any source, integers (n, 2), to `CodecTokens`.

        samples: length of their audio at 16 kHz; by default the longest that n tokens can have.

        Raises:
            ValueError: the shape is invalid, a token is outside its codebook, or the samples do not fit the tokens.
        """
        try:
            array = np.asarray(pairs.cpu() if isinstance(pairs, torch.Tensor) else pairs)
        except (ValueError, TypeError) as error:
            raise ValueError(f"tokens must be integers (n, 2), semantic and acoustic: {error}") from None
        if array.ndim != 2:
            raise ValueError(f"tokens must be integers (n, 2), semantic and acoustic, not {array.dtype} {array.shape}")
        if samples is not None and not is_whole(samples):
            raise ValueError(f"samples must be an integer, not {samples!r}")
        length = len(array) * self._token_samples if samples is None else samples
        tokens = self._describe(array, length, codebook)
        self.check(tokens)
        return tokens

    def check(self, tokens: CodecTokens) -> None:
        """Raise ValueError with the reason if this codec cannot decode the tokens."""
        if not isinstance(tokens, CodecTokens):
            kind = type(tokens).__name__
            raise ValueError(f"decoding takes CodecTokens, as encode, tokens and read_sct return them, not {kind}")
        if tokens.token_rate != self.token_rate:
            raise ValueError(
                f"the tokens have a rate of {tokens.token_rate} per second, but the codec {self.info.name} has a rate "
                f"of {self.token_rate}"
            )
        if tokens.codec_hash != self.hash:
            raise ValueError(
                f"the tokens were made with the codec {tokens.codec_hash}, not with {self.info.name} ({self.hash}); "
                "give that codec with --codec"
            )
        self._describe(tokens.tokens, tokens.samples, tokens.codebook_hash)  # checks the codebook and the ranges
        count, samples = len(tokens.tokens), tokens.samples
        if not samples:
            raise ValueError("the tokens have no samples of audio")
        if not -(-samples // self._token_samples) <= count <= token_count(samples, self.stack_factor):
            needed = token_count(samples, self.stack_factor)
            raise ValueError(f"{count} tokens do not fit {samples} samples of audio, which need {needed} tokens")

    def decode(self, tokens: CodecTokens, sampler: SamplerConfig | None = None) -> NDArray[np.float32]:
        """Decode tokens to audio, float32 (samples,) at 16 kHz, as long as the encoded audio.

        Raises ValueError like `check`, and DecodingError if a window decodes to values that are not finite.
        """
        return np.concatenate(list(self.decode_blocks(tokens, sampler)))

    def decode_blocks(
        self, tokens: CodecTokens, sampler: SamplerConfig | None = None, progress: WindowProgress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Decode tokens to blocks (n,) of at most 10.24 s. Memory: `batch_windows` windows.

        progress: called with the number of windows sampled since the last call, which can be a fraction.
        """
        for _, blocks in self.decode_many([(None, tokens)], sampler, progress):
            yield from blocks

    def decode_many(
        self,
        files: Iterable[tuple[Key, CodecTokens]],
        sampler: SamplerConfig | None = None,
        progress: WindowProgress | None = None,
    ) -> Iterator[tuple[Key, Iterator[NDArray[np.float32]]]]:
        """Decode files, given as (key, tokens), packing windows of several short files into a batch.

        Yields each key with its blocks, as `decode_blocks` yields them, in order. Take all blocks of a file before the
        next file. They raise DecodingError if a window is not finite; the next file can still be taken.

        Raises:
            ValueError: tokens do not fit the codec. Use `check` to find out beforehand.
        """
        decoded = self._decode_windows(self._windows(files), sampler, progress)
        for file, group in itertools.groupby(decoded, key=lambda pair: pair[0].file):
            yield file.key, cross_fade((self._check_finite(each.window, wave) for each, wave in group), file.samples)

    def _windows(self, files: Iterable[tuple[Key, CodecTokens]]) -> "Iterator[_FileWindow[Key]]":
        for key, tokens in files:
            self.check(tokens)
            file, (_, book) = _File(key, tokens.samples), self._book(tokens.codebook_hash)
            for number in range(decode_window_count(tokens.samples)):
                pairs = window_tokens(tokens.tokens, number, self.stack_factor)
                yield _FileWindow(file, TokenWindow(pairs, book, number))

    def _decode_windows(
        self, windows: "Iterator[_FileWindow[Key]]", sampler: SamplerConfig | None, progress: WindowProgress | None
    ) -> "Iterator[tuple[_FileWindow[Key], NDArray[np.float32]]]":
        sampler = SamplerConfig() if sampler is None else sampler
        if not isinstance(sampler, SamplerConfig):
            raise ValueError(f"the sampler must be a SamplerConfig, not {sampler!r}")
        steps = len(visited_steps(sampler, len(self._parts.decoder.schedule)))
        while batch := list(itertools.islice(windows, self.batch_windows)):
            share = len(batch) / steps
            on_step = None if progress is None else lambda count, share=share: progress(count * share)
            waves = self._decoder.decode([each.window for each in batch], sampler, on_step)
            yield from zip(batch, waves, strict=True)

    def _check_finite(self, window: TokenWindow, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        if np.isfinite(wave).all():
            return wave
        advice = "try fp32" if self.precision != "fp32" else "the codec may be damaged"
        raise DecodingError(
            f"window {window.number} decodes to values that are not finite in {self.precision}; {advice}"
        )

    @property
    def _token_samples(self) -> int:
        """Number of samples per token: 320, 640 or 1,280."""
        return COLUMN_SAMPLES // PATCH_ROWS * self.stack_factor

    @cached_property
    def _encoder(self) -> WindowEncoder:
        tokens = self._parts.tokens
        extractor = FeatureExtractor(tokens.encoder, self.device, self.precision)
        return WindowEncoder(extractor, tokens.acoustic, self.stack_factor, self.device)

    @cached_property
    def _decoder(self) -> WindowDecoder:
        return WindowDecoder(self._parts, self.device, self.precision)

    def _book(self, wanted: int | str | None) -> tuple[str, Codebook]:
        """Return the hash and the codebook, given its number of rows or its hash; by default the largest."""
        if not (wanted is None or isinstance(wanted, str) or is_whole(wanted)):
            raise ValueError(f"codebook must be a number of rows or a hash, not {wanted!r:.80}")
        matching = [(name, book) for name, book in self._books.items() if wanted in (None, name, book.k)]
        if matching:
            return max(matching, key=lambda match: match[1].k)
        existing = ", ".join(f"{name} ({rows} rows)" for rows, name in sorted(self.codebooks.items()))
        raise ValueError(f"the codec {self.info.name} has no codebook {wanted}; it has {existing}")

    def _describe(self, pairs: NDArray[Any], samples: int, codebook: int | str | None) -> CodecTokens:
        sizes, name = self.codebook_sizes(codebook), self.codebook_hash(codebook)
        return CodecTokens(pairs, samples, self.token_rate, sizes, name, self.hash)


@dataclass(eq=False)
class _EncodedFile:
    """The tokens of the windows of one file so far."""

    item: AudioItem
    tokens: list[NDArray[np.int32]] = field(default_factory=list)

    def wants(self, window: int, samples: int | None) -> bool:
        """Return True: every window is encoded."""
        return True


@dataclass(frozen=True, eq=False)
class _File(Generic[Key]):
    """A file to decode: the caller's key and its length. Compared by identity."""

    key: Key
    samples: int


class _FileWindow(NamedTuple, Generic[Key]):
    """A window to decode, and its file."""

    file: _File[Key]
    window: TokenWindow
