"""From windows to tokens: what a process does for each file of runs of tokenization."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk
from sctok.audio.transfer import Ends, Waves
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count
from sctok.codec.encoding import centred
from sctok.codec.semantic import UNDECIDED, SemanticQuantizer
from sctok.codec.tokenizer import CodecTokenizer
from sctok.corpus.runs.run_folder import RunFolder
from sctok.corpus.runs.sharding import Extractor, describe_source
from sctok.corpus.runs.stages import ACOUSTIC, NEAREST, Stage
from sctok.features.extractor import CUT
from sctok.formats.codebooks import Codebook
from sctok.formats.files import FormatError
from sctok.formats.stacking import stack_patches
from sctok.formats.token_shards import TokenShardWriter, read_token_shard

INFO = ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash")  # of a run, repeated for each file
TokenEncoder = Extractor | CodecTokenizer  # gives the semantic stream alone, or both
Tokens = npt.NDArray[np.int64]
StoredTokens = tuple[str, npt.NDArray[Any], dict[str, Any]]  # key, tokens (n, streams), info


def codebook_sizes(run: RunFolder) -> list[int]:
    """Return how many different tokens each stream of a run has."""
    both: list[int] | None = run.config.get("codebook_sizes")
    return both or [run.config["codebook_size"]]


def extractor_of(encoder: TokenEncoder) -> Extractor:
    """Return the feature encoder behind tokens."""
    return encoder.extractor if isinstance(encoder, CodecTokenizer) else encoder


class TokenizeJob:
    """Turns windows into tokens: those of each run, which has a codebook of its own."""

    def __init__(self, runs: Sequence[RunFolder], codebooks: Sequence[Codebook], encoder: TokenEncoder, device: str):
        self.stage: Stage = nullcontext
        self._runs = runs
        self._encoder = encoder
        self.device = torch.device(device)
        self.cut = extractor_of(encoder).padding == CUT
        self._stacks = [codebook.metadata.stack_factor for codebook in codebooks]
        self._quantizers = [SemanticQuantizer(codebook, self.device) for codebook in codebooks]

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return windows as the encoder wants them: a published codec without the mean of their file."""
        encoder = self._encoder
        return centred(chunks) if isinstance(encoder, CodecTokenizer) and encoder.windows.published_steps else chunks

    def encode(self, waves: Waves, last: Ends) -> Iterable[tuple[Tokens, ...]]:
        """Return for each window the tokens (8 · columns / stack factor, streams) int64 of each run.

        They are -1 where a feature is not finite; with a codec, throughout such a window.
        """
        encoder = self._encoder
        extractor_of(encoder).stage = self.stage
        if isinstance(encoder, CodecTokenizer):
            return zip(*self._pairs(encoder, waves, last), strict=True)
        return zip(*self._labels(encoder, waves, last), strict=True)

    def _labels(self, extractor: Extractor, waves: Waves, last: Ends) -> list[Tokens]:
        patches = torch.as_tensor(extractor.embed(waves, last), device=self.device)
        with self.stage(NEAREST):
            stacked = [stack_patches(patches, stack) for stack in self._stacks]
            labels = [quantizer.labels(each) for quantizer, each in zip(self._quantizers, stacked, strict=True)]
            return [each[..., None].cpu().numpy() for each in labels]

    def _pairs(self, codec: CodecTokenizer, waves: Waves, last: Ends) -> list[Tokens]:
        embedded = codec.windows.embed(waves, last)
        with self.stage(NEAREST):
            labels = [quantizer.labels(embedded.features) for quantizer in self._quantizers]
        with self.stage(ACOUSTIC):
            found = zip(labels, self._quantizers, strict=True)
            return [codec.windows.pair(embedded, each, quantizer) for each, quantizer in found]

    def open_clip(self, item: AudioItem) -> "TokenClip":
        """Begin a file."""
        return TokenClip(item, self._stacks)

    @contextmanager
    def open_shard(self, path: Path, run: int) -> Iterator["TokenSink"]:
        """Begin a token shard."""
        folder = self._runs[run]
        info = {**{name: folder.config[name] for name in INFO}, "sample_rate": SAMPLE_RATE}
        with TokenShardWriter(path, codebook_sizes=codebook_sizes(folder)) as writer:
            yield TokenSink(writer, run, {**info, "config_hash": folder.config_hash}, self._stacks[run])

    @contextmanager
    def read_shard(self, path: Path) -> Iterator[Iterator[tuple[str, StoredTokens]]]:
        """Open a finished shard."""
        yield ((entry[0], entry) for entry in read_token_shard(path))


class TokenClip:
    """One file on its way: the tokens of its windows so far, for each run."""

    def __init__(self, item: AudioItem, stacks: Sequence[int]) -> None:
        self.item = item
        self.tokens: list[list[npt.NDArray[np.uint32]]] = [[] for _ in stacks]
        self._stacks = stacks

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether the file has tokens in the window: it may end where its last window begins."""
        return samples is None or any(
            token_count(samples, stack) > window * (WINDOW_PATCHES // stack) for stack in self._stacks
        )


@dataclass(frozen=True)
class TokenSink:
    """An open token shard of the run at `place`, and what the files of that run share."""

    writer: TokenShardWriter
    place: int
    shared: dict[str, Any]
    stack: int

    def take(self, clip: TokenClip, window: int, values: tuple[npt.NDArray[np.int64], ...]) -> None:
        """Keep the tokens (8 · columns / stack factor, streams) of a window."""
        tokens = values[self.place]
        if (tokens == UNDECIDED).any():
            raise FormatError(f"the encoder gives features that are not finite in window {window}; check the audio")
        clip.tokens[self.place].append(tokens.astype(np.uint32))

    def finish(self, clip: TokenClip, samples: int) -> None:
        """Store the tokens of a file, without those of padding."""
        tokens = np.concatenate(clip.tokens[self.place])[: token_count(samples, self.stack)]
        self.writer.add(
            clip.item.key, tokens, {**self.shared, "samples": samples, "source": describe_source(clip.item)}
        )

    def discard(self, clip: TokenClip) -> None:
        """Do nothing: a file is stored whole or not at all."""

    def copy(self, entry: StoredTokens) -> None:
        """Store a file as an earlier shard has it."""
        self.writer.add(*entry)
