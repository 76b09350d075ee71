"""Semantic tokens of a collection, in WebDataset token shards."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.sources import AudioItem, list_audio
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count
from sctok.formats.codebooks import MERGED_DOMAIN, Codebook, CodebookFile, codebook_hash, find_codebooks
from sctok.formats.describe import count_summary
from sctok.formats.files import FormatError
from sctok.formats.stacking import stack_patches
from sctok.formats.token_shards import TOKENS_VERSION, TokenShardWriter, read_token_shard
from sctok.kernels.assign import nearest_centroid, prepare_centroids

from .planning import plan_run
from .processes import RunResult, Summary, execute_run, samples_to_hours
from .runs import Progress, RunError, RunFolder, ShardContents
from .sharding import Execution, Extractor, MakeExtractor, check_extractor, describe_extractor, describe_source

SUFFIX = ".tar"
StoredTokens = tuple[str, npt.NDArray[Any], dict[str, Any]]  # key, tokens (n, streams), info
UNDECIDED = -1  # the label of a vector that is not finite


@dataclass(frozen=True)
class TokenizationConfig:
    """What decides about the tokens of a run, beside the encoder and the codebook.

    channel: the one to read, None to mix all down. files_per_shard: files in one shard. Raises RunError for values
    out of range.
    """

    channel: int | None = None
    files_per_shard: int = 256

    def __post_init__(self) -> None:
        if self.channel is not None and self.channel < 0:
            raise RunError(f"channel must be at least 0, not {self.channel}")
        if self.files_per_shard < 1:
            raise RunError(f"files per shard must be at least 1, not {self.files_per_shard}")


@dataclass(frozen=True)
class TokenizationSummary(Summary):
    """What a folder of tokens holds.

    tokens: of one stream. tokens_per_second: of audio. codebook_size: of the stream. codebook_used: how many of its
    centroids occur. perplexity: how many would occur if all those occurred equally often.
    """

    tokens: int
    tokens_per_second: float
    codebook_size: int
    codebook_used: int
    perplexity: float


def choose_codebook(folder: Path, size: int | None, token_rate: int) -> Path:
    """Return the merged codebook of `size` centroids in a folder, the largest where `size` is None.

    Raises:
        RunError: there is none at that token rate; the message lists what is there.
    """
    found = find_codebooks(folder)
    fitting = [book for book in found if book.domain == MERGED_DOMAIN and book.token_rate == token_rate]
    fitting = [book for book in fitting if size in (None, book.k)]
    if fitting:
        return max(fitting, key=lambda book: book.k).path
    wanted = f"no merged codebook{'' if size is None else f' of {size} centroids'} at {token_rate} tokens per second"
    there = ", ".join(map(_codebook_name, found))
    if not there:
        raise RunError(f"{folder}: {wanted}, nor any other; run sctok cluster and sctok merge first")
    raise RunError(f"{folder}: {wanted}; it has {there}: run sctok merge, or give one of those as a path")


def tokenize_corpus(
    inputs: Sequence[str | Path],
    folder: Path,
    make_extractor: MakeExtractor,
    codebook: Codebook,
    config: TokenizationConfig | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda event: None,
) -> RunResult[TokenizationSummary]:
    """Write the semantic tokens of all audio in `inputs` to token shards in `folder`, or go on with that.

    The tokens of a file depend on the file, the encoder and the codebook alone; the bytes in `folder` on the inputs
    and `config` besides.

    Args:
        inputs: folders, files, manifests and tar shards, as `list_audio` takes them.
        folder: the run folder; made if absent.
        make_extractor: loads the encoder onto a device; picklable if there are several devices.
        codebook: made from features of the same encoder.
        config: how to read the audio.
        execution: devices, batch size and decoding processes.
        progress: gets the events of `execute_run`.

    Raises:
        RunError: the codebook is of another encoder, the folder belongs to another configuration, or its shards do
            not fit its plan.
        AudioError: an input cannot be listed.
        DiskFullError: finished shards stay valid; the same call goes on from there.
    """
    config, execution = config or TokenizationConfig(), execution or Execution()
    extractor = make_extractor(execution.devices[0])
    _check_codebook(codebook, extractor)
    stored = {
        "kind": "tokens",
        "tokens_version": TOKENS_VERSION,
        **asdict(config),
        **describe_extractor(extractor),
        "streams": ["semantic"],
        "codebook_hash": codebook_hash(codebook),
        "codebook_size": codebook.k,
        "codec_hash": None,
        "token_rate": codebook.metadata.token_rate,
    }
    run = plan_run(
        folder,
        stored,
        SUFFIX,
        list_audio(inputs),
        files_per_shard=config.files_per_shard,
        read_shard=read_contents,
    )
    make_job = partial(_make_job, run, codebook, make_extractor)
    job = TokenJob(run, codebook, extractor, execution.devices[0])
    return execute_run([run], job, make_job, summarise, execution, progress)[0]


def summarise(run: RunFolder, shards: Sequence[int], failed: int) -> TokenizationSummary:
    """Read what finished shards of a run of tokenization hold. Raises FormatError naming a damaged one."""
    size = run.config["codebook_size"]
    counts = np.zeros(size, np.int64)
    files = samples = 0
    for index in shards:
        for _, tokens, info in read_token_shard(run.shard_path(index)):
            counts += np.bincount(tokens[:, 0], minlength=size)
            files += 1
            samples += info["samples"]
    total = int(counts.sum())
    return TokenizationSummary(
        files=files,
        failed=failed,
        hours=samples_to_hours(samples),
        shards=len(shards),
        tokens=total,
        tokens_per_second=round(total * SAMPLE_RATE / samples, 3) if samples else 0.0,
        codebook_size=size,
        codebook_used=int(np.count_nonzero(counts)),
        perplexity=count_summary(counts)["perplexity"] if total else 0.0,
    )


def read_contents(path: Path) -> ShardContents:
    """Read what a token shard says of itself. Raises FormatError."""
    entries = [(key, info.get("config_hash")) for key, _, info in read_token_shard(path)]
    return ShardContents(entries[0][1] if entries else None, tuple(key for key, _ in entries))


def codebook_sizes(config: Mapping[str, Any]) -> list[int]:
    """Return how many different tokens each stream of a run has."""
    return [config["codebook_size"]]


def _codebook_name(book: CodebookFile) -> str:
    return f"{book.domain}-{book.k} at {book.token_rate}"


def _check_codebook(codebook: Codebook, extractor: Extractor) -> None:
    info = codebook.metadata
    if info.encoder_hash != extractor.hash:
        raise RunError(
            f"the codebook was made with the encoder {info.encoder} ({info.encoder_hash}), not with {extractor.name} "
            f"({extractor.hash}); give that encoder with --encoder, or a codebook of this one"
        )
    if codebook.width != extractor.width:
        raise RunError(f"the codebook is for features of width {codebook.width}, not {extractor.width}; give another")


def _make_job(run: RunFolder, codebook: Codebook, make_extractor: MakeExtractor, device: str) -> "TokenJob":
    return TokenJob(run, codebook, check_extractor(make_extractor(device), run, device), device)


class TokenJob:
    """Turns windows into the numbers of their nearest centroids."""

    def __init__(self, run: RunFolder, codebook: Codebook, extractor: Extractor, device: str) -> None:
        self._codebook_size = run.config["codebook_size"]
        self._info = {
            **{name: run.config[name] for name in INFO},
            "sample_rate": SAMPLE_RATE,
            "config_hash": run.config_hash,
        }
        self._extractor = extractor
        self._stack = codebook.metadata.stack_factor
        self._device = torch.device(device)
        self._centroids = prepare_centroids(torch.from_numpy(codebook.centroids).to(self._device))

    def encode(self, waves: npt.NDArray[np.float32], last: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return tokens (w, 512 / stack factor, streams) int64 of windows; -1 where a feature is not finite."""
        stacked = stack_patches(self._extractor.embed(waves, last), self._stack)
        count, length, width = stacked.shape
        points = torch.from_numpy(stacked).to(self._device).reshape(count * length, width)
        finite = torch.isfinite(points).all(dim=1)
        labels = nearest_centroid(torch.where(finite[:, None], points, 0.0), self._centroids).labels
        semantic = torch.where(finite, labels, UNDECIDED).cpu().numpy().reshape(count, length)
        return np.stack([semantic], axis=-1)

    def open_clip(self, item: AudioItem) -> "TokenClip":
        """Begin a file."""
        return TokenClip(item, self._stack)

    @contextmanager
    def open_shard(self, path: Path, run: int) -> Iterator["TokenSink"]:
        """Begin a token shard."""
        with TokenShardWriter(path, codebook_sizes=[self._codebook_size]) as writer:
            yield TokenSink(writer, self._info, self._stack)

    @contextmanager
    def read_shard(self, path: Path) -> Iterator[Iterator[tuple[str, StoredTokens]]]:
        """Open a finished shard."""
        yield ((entry[0], entry) for entry in read_token_shard(path))


class TokenClip:
    """One file on its way: the tokens of its windows so far."""

    def __init__(self, item: AudioItem, stack: int) -> None:
        self.item = item
        self.tokens: list[npt.NDArray[np.uint32]] = []
        self._stack = stack

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether the file has tokens in the window: it may end where its last window begins."""
        return samples is None or token_count(samples, self._stack) > window * (WINDOW_PATCHES // self._stack)


class TokenSink:
    """An open token shard."""

    def __init__(self, writer: TokenShardWriter, shared: dict[str, Any], stack: int) -> None:
        self._writer = writer
        self._shared = shared
        self._stack = stack

    def take(self, clip: TokenClip, window: int, values: npt.NDArray[np.int64]) -> None:
        """Keep the tokens (512 / stack factor, streams) of a window."""
        if (values == UNDECIDED).any():
            raise FormatError(f"the encoder gives features that are not finite in window {window}; check the audio")
        clip.tokens.append(values.astype(np.uint32))

    def finish(self, clip: TokenClip, samples: int) -> None:
        """Store the tokens of a file, without those of padding."""
        tokens = np.concatenate(clip.tokens)[: token_count(samples, self._stack)]
        info = {**self._shared, "samples": samples, "source": describe_source(clip.item)}
        self._writer.add(clip.item.key, tokens, info)

    def discard(self, clip: TokenClip) -> None:
        """Do nothing: a file is stored whole or not at all."""

    def copy(self, entry: StoredTokens) -> None:
        """Store a file as an earlier shard has it."""
        self._writer.add(*entry)


INFO = ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash")
