"""A codec: audio to semantic and acoustic tokens, and back."""

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
from sctok.audio.loader import Chunk
from sctok.audio.packing import FileEnd, encode_files
from sctok.audio.pieces import cut_pieces, empty_span, window_rows
from sctok.audio.transfer import lanes_for
from sctok.audio.windows import COLUMN_SAMPLES, PATCH_ROWS, SAMPLE_RATE, token_count
from sctok.codec.storage.codec_folder import load_codec
from sctok.features.extractor import ENCODER, FeatureExtractor
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.sct import CodecTokens
from sctok.runtime.devices import Use, resolve_device, resolve_precision

from .codec_parts import CodecParts
from .decoding import DECODER, TokenWindow, WindowDecoder
from .encoding import WindowEncoder, centred
from .overlap import cross_fade, decode_window_count, window_tokens
from .samplers import SamplerConfig, visited_steps
from .semantic import UNDECIDED, SemanticQuantizer
from .waves import is_whole, mono_blocks

DECODED_AT_ONCE = {"cpu": 4, "cuda": 16}  # windows

Key = TypeVar("Key")
T = TypeVar("T")
WindowProgress = Callable[[float], object]  # gets the number of windows finished since the last call


class DecodingError(ValueError):
    """Tokens of one file that decode to values that are not finite."""


class Codec:
    """An encoder and a decoder on one device, each set up when it is first used.

    The tokens of a file depend on the file, the codec, the codebook and the precision (of the feature encoder; the
    acoustic encoder keeps to float32) alone. The sound that they are
    decoded to depends on them, the sampler and its seed, and by rounding alone (tested to 1e-4 of full scale) on which
    windows were decoded together.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self, parts: CodecParts, device: torch.device, precision: str, batch_windows: int | None = None
    ) -> None:
        if batch_windows is not None and not (is_whole(batch_windows) and batch_windows >= 1):
            raise ValueError(f"batch_windows must be a whole number of at least 1, not {batch_windows!r}")
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
            batch_windows: windows of 10.24 s that are decoded at once; 4 on a CPU and 16 on a GPU where None.
            uses: what the codec will be used for. If this CPU fails at one of them in low precision, all of them are
                computed in fp32, with a warning.

        Raises:
            ValueError: the codec, device or precision is unknown, or the codec's files do not fit each other.
        """
        chosen = resolve_device(device)
        return cls(load_codec(name_or_path), chosen, resolve_precision(precision, chosen, uses), batch_windows)

    @property
    def token_rate(self) -> int:
        """Tokens per second of both streams together: 100, 50 or 25."""
        return self.info.token_rate

    @property
    def stack_factor(self) -> int:
        """Patch embeddings behind each token: 1, 2 or 4."""
        return self.info.stack_factor

    @property
    def hash(self) -> str:
        """Hash of all that decides about tokens, but for the codebook."""
        return self.info.token_hash

    @cached_property
    def encoder_hash(self) -> str:
        """Hash of the weights of the feature encoder."""
        return self._parts.tokens.encoder.hash

    @property
    def codebooks(self) -> dict[int, str]:
        """The semantic codebooks: their hashes by their number of rows."""
        return {book.k: name for name, book in self._books.items()}

    def codebook_hash(self, codebook: int | str | None = None) -> str:
        """Return the hash of a codebook by its number of rows or hash, the largest where None; else ValueError."""
        return self._book(codebook)[0]

    def codebook_sizes(self, codebook: int | str | None = None) -> tuple[int, int]:
        """Return the rows of a semantic codebook, chosen as in `codebook_hash`, and of the acoustic one."""
        return self._book(codebook)[1].k, len(self._parts.tokens.acoustic.quantizer.codes)

    def encode(
        self, wave: ArrayLike, sample_rate: int, *, codebook: int | str | None = None, channel: int | None = None
    ) -> CodecTokens:
        """Return the tokens of audio in memory.

        Args:
            wave: (n,), (channels, n) or (n, channels), the shorter axis being the channels; floating, full scale at 1,
                or signed integers, full scale at the ends of their range. Silence has tokens like any other sound.
            sample_rate: of the wave, 1,000 to 10,000,000 Hz.
            codebook: rows or hash of the semantic codebook; the largest where None.
            channel: the one to encode; the mean of all where None.

        Raises:
            ValueError: another shape or rate, no samples, a sample that is not finite or beyond 2^31, or a codebook or
                channel that is not there.
        """
        return self.encode_blocks(mono_blocks(wave, sample_rate, channel), codebook)

    def encode_blocks(self, blocks: Iterable[NDArray[np.float32]], codebook: int | str | None = None) -> CodecTokens:
        """Return the tokens of audio of any length, given as mono blocks float32 (n,) at 16 kHz.

        `sctok.audio.decoding.decode.stream_audio` yields such blocks of a file. Memory: some windows, and the tokens.
        Raises ValueError as `encode`.
        """
        ((_, found),) = self.encode_many(_chunks(blocks, self._encoder.batch_size), codebook)
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def encode_many(
        self, chunks: Iterable[Chunk], codebook: int | str | None = None, progress: WindowProgress | None = None
    ) -> Iterator[tuple[AudioItem, CodecTokens | str]]:
        """Yield the files whose windows `sctok.audio.loader.load_windows` gives, each with its tokens, in their order.

        Where a file cannot be read or encoded, the reason takes the place of its tokens. Windows of several files are
        encoded together. progress: is told how many have been. Raises ValueError for a codebook that is not there.
        """
        name, book = self._book(codebook)
        if name not in self._quantizers:
            self._quantizers[name] = SemanticQuantizer(book, self.device)
        encoder, quantizer = self._encoder, self._quantizers[name]
        chunks = centred(chunks) if encoder.published_steps else chunks
        with lanes_for(partial(encoder.encode, quantizer=quantizer), encoder.batch_size, self.device) as lanes:
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
            return "the encoder gives features that are not finite; check the audio"
        return self._describe(pairs, samples, codebook)

    def tokens(self, pairs: ArrayLike, samples: int | None = None, *, codebook: int | str | None = None) -> CodecTokens:
        """Return pairs of tokens, integers (n, 2), from wherever they come, as `decode` takes them.

        samples: how much audio at 16 kHz they stand for; all that n tokens can where None.
        Raises ValueError for another shape, tokens outside the codebooks, and samples that need other tokens.
        """
        try:
            given = np.asarray(pairs.cpu() if isinstance(pairs, torch.Tensor) else pairs)
        except (ValueError, TypeError) as error:
            raise ValueError(f"tokens must be integers (n, 2), semantic and acoustic: {error}") from None
        if given.ndim != 2:
            raise ValueError(f"tokens must be integers (n, 2), semantic and acoustic, not {given.dtype} {given.shape}")
        if samples is not None and not is_whole(samples):
            raise ValueError(f"samples must be a whole number, not {samples!r}")
        length = len(given) * self._token_samples if samples is None else samples
        described = self._describe(given, length, codebook)
        self.check(described)
        return described

    def check(self, tokens: CodecTokens) -> None:
        """Raise ValueError, saying what does not fit, unless this codec made the tokens, or could have."""
        if not isinstance(tokens, CodecTokens):
            what = type(tokens).__name__
            raise ValueError(f"{what} is not CodecTokens, as encode, tokens and read_sct return them")
        if tokens.token_rate != self.token_rate:
            raise ValueError(
                f"the tokens are of {tokens.token_rate} per second, the codec {self.info.name} of {self.token_rate}"
            )
        if tokens.codec_hash != self.hash:
            raise ValueError(
                f"the tokens were made with the codec {tokens.codec_hash}, not with {self.info.name} ({self.hash}); "
                "name that codec with --codec"
            )
        self._describe(tokens.tokens, tokens.samples, tokens.codebook_hash)  # checks the codebook and the ranges
        count, samples = len(tokens.tokens), tokens.samples
        if not samples:
            raise ValueError("the tokens stand for no audio")
        if not -(-samples // self._token_samples) <= count <= token_count(samples, self.stack_factor):
            needed = token_count(samples, self.stack_factor)
            raise ValueError(f"{count} tokens do not fit {samples} samples of audio, which have {needed}")

    def decode(self, tokens: CodecTokens, sampler: SamplerConfig | None = None) -> NDArray[np.float32]:
        """Return the audio of tokens, float32 (samples,) at 16 kHz, as long as what was encoded.

        Raises ValueError as `check` does, and DecodingError where a window decodes to values that are not finite.
        """
        return np.concatenate(list(self.decode_blocks(tokens, sampler)))

    def decode_blocks(
        self, tokens: CodecTokens, sampler: SamplerConfig | None = None, progress: WindowProgress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield what `decode` returns in blocks (n,) of at most 10.24 s. Memory: `batch_windows` windows.

        progress: is told how many windows' worth of sampling has been done since it was last called.
        """
        for _, blocks in self.decode_many([(None, tokens)], sampler, progress):
            yield from blocks

    def decode_many(
        self,
        files: Iterable[tuple[Key, CodecTokens]],
        sampler: SamplerConfig | None = None,
        progress: WindowProgress | None = None,
    ) -> Iterator[tuple[Key, Iterator[NDArray[np.float32]]]]:
        """Yield for each (key, tokens) the key and the blocks that `decode_blocks` yields, in their order.

        Windows of several files are decoded together where files are short. The blocks of a file have to be taken
        before the next file is asked for. They raise DecodingError where a window is not finite, after which the next
        file can be taken. Raises ValueError as `check`, which can be asked beforehand.
        """
        decoded = self._decode_windows(_batched(self._windows(files), self.batch_windows), sampler, progress)
        for file, group in itertools.groupby(decoded, key=lambda pair: pair[0].file):
            yield file.key, cross_fade((self._finite(window, wave) for (_, window), wave in group), file.samples)

    def _windows(self, files: Iterable[tuple[Key, CodecTokens]]) -> "Iterator[_Placed[Key]]":
        for key, tokens in files:
            self.check(tokens)
            file, (_, book) = _File(key, tokens.samples), self._book(tokens.codebook_hash)
            for number in range(decode_window_count(tokens.samples)):
                pairs = window_tokens(tokens.tokens, number, self.stack_factor)
                yield _Placed(file, TokenWindow(pairs, book, number))

    def _decode_windows(
        self, batches: "Iterable[list[_Placed[Key]]]", sampler: SamplerConfig | None, progress: WindowProgress | None
    ) -> "Iterator[tuple[_Placed[Key], NDArray[np.float32]]]":
        sampler = SamplerConfig() if sampler is None else sampler
        if not isinstance(sampler, SamplerConfig):
            raise ValueError(f"the sampler must be a SamplerConfig, not {sampler!r}")
        steps = len(visited_steps(sampler, len(self._parts.decoder.schedule)))
        for batch in batches:
            share = len(batch) / steps
            told = None if progress is None else lambda count, share=share: progress(count * share)
            waves = self._decoder.decode([placed.window for placed in batch], sampler, told)
            yield from zip(batch, waves, strict=True)

    def _finite(self, window: TokenWindow, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        if np.isfinite(wave).all():
            return wave
        advice = "try fp32" if self.precision != "fp32" else "the codec may be damaged"
        raise DecodingError(
            f"window {window.number} decodes to values that are not finite in {self.precision}; {advice}"
        )

    @property
    def _token_samples(self) -> int:
        """Samples of audio that a token stands for: 320, 640 or 1,280."""
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
        """Return hash and codebook by its number of rows or its hash, the largest where None."""
        if not (wanted is None or isinstance(wanted, str) or is_whole(wanted)):
            raise ValueError(f"codebook must be a number of rows or a hash, not {wanted!r:.80}")
        fitting = [(name, book) for name, book in self._books.items() if wanted in (None, name, book.k)]
        if fitting:
            return max(fitting, key=lambda found: found[1].k)
        there = ", ".join(f"{name} ({rows} rows)" for rows, name in sorted(self.codebooks.items()))
        raise ValueError(f"the codec {self.info.name} has no codebook {wanted}; it has {there}")

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


def _chunks(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[Chunk]:
    """Yield the windows of audio in memory as those of a file."""
    item, first = AudioItem("audio", "audio"), 0
    for piece in cut_pieces(blocks, size):
        span = empty_span(piece.windows)
        span[: len(piece.audio)] = piece.audio
        yield Chunk(item, first, window_rows(span), piece.samples is not None, piece.samples, None)
        first += piece.windows


@dataclass(frozen=True, eq=False)
class _File(Generic[Key]):
    """A file to decode: what the caller calls it, and its length; equal to itself alone."""

    key: Key
    samples: int


class _Placed(NamedTuple, Generic[Key]):
    """A window to decode and the file that it is of."""

    file: _File[Key]
    window: TokenWindow


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
