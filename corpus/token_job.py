"""From windows to tokens: what a process does for each file of runs of tokenization."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.sources import AudioItem
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count
from sctok.formats.codebooks import Codebook
from sctok.formats.files import FormatError
from sctok.formats.stacking import stack_patches
from sctok.formats.token_shards import TokenShardWriter, read_token_shard
from sctok.kernels.assign import nearest_centroid, prepare_centroids

from .runs import RunFolder
from .sharding import Extractor, describe_source
from .stages import NEAREST, Stage

INFO = ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash")  # of a run, repeated for each file
UNDECIDED = -1  # the label of a vector that is not finite
StoredTokens = tuple[str, npt.NDArray[Any], dict[str, Any]]  # key, tokens (n, streams), info


def codebook_sizes(run: RunFolder) -> list[int]:
    """Return how many different tokens each stream of a run has."""
    return [run.config["codebook_size"]]


class SemanticQuantizer:
    """Numbers of nearest centroids, on one device."""

    def __init__(self, codebook: Codebook, device: str) -> None:
        self.stack = codebook.metadata.stack_factor
        self._device = torch.device(device)
        self._centroids = prepare_centroids(torch.from_numpy(codebook.centroids).to(self._device))

    def quantize(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Map patch embeddings (w, 512, E) to tokens (w, 512 / stack factor, 1); -1 where one is not finite."""
        stacked = stack_patches(patches, self.stack)
        count, length, width = stacked.shape
        points = torch.from_numpy(stacked).to(self._device).reshape(count * length, width)
        finite = torch.isfinite(points).all(dim=1)
        labels = nearest_centroid(torch.where(finite[:, None], points, 0.0), self._centroids).labels
        return torch.where(finite, labels, UNDECIDED).cpu().numpy().reshape(count, length, 1)


class TokenJob:
    """Turns windows into tokens: those of each run, which has a codebook of its own."""

    def __init__(self, runs: Sequence[RunFolder], codebooks: Sequence[Codebook], extractor: Extractor, device: str):
        self.stage: Stage = nullcontext
        self._runs = runs
        self._extractor = extractor
        self._quantizers = [SemanticQuantizer(codebook, device) for codebook in codebooks]

    def encode(
        self, waves: npt.NDArray[np.float32], last: npt.NDArray[np.bool_]
    ) -> Iterable[tuple[npt.NDArray[np.int64], ...]]:
        """Return for each window the tokens (512 / stack factor, streams) int64 of each run."""
        self._extractor.stage = self.stage
        patches = self._extractor.embed(waves, last)
        with self.stage(NEAREST):
            return zip(*[quantizer.quantize(patches) for quantizer in self._quantizers], strict=True)

    def open_clip(self, item: AudioItem) -> "TokenClip":
        """Begin a file."""
        return TokenClip(item, [quantizer.stack for quantizer in self._quantizers])

    @contextmanager
    def open_shard(self, path: Path, run: int) -> Iterator["TokenSink"]:
        """Begin a token shard."""
        folder = self._runs[run]
        info = {**{name: folder.config[name] for name in INFO}, "sample_rate": SAMPLE_RATE}
        with TokenShardWriter(path, codebook_sizes=codebook_sizes(folder)) as writer:
            yield TokenSink(writer, run, {**info, "config_hash": folder.config_hash}, self._quantizers[run].stack)

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
        """Keep the tokens (512 / stack factor, streams) of a window."""
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
