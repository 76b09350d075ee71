"""Tokens of a collection in WebDataset token shards: `sctok tokenize`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.loader import Chunk
from sctok.audio.transfer import Ends, Waves
from sctok.audio.windows import SAMPLE_RATE, WINDOW_PATCHES, token_count
from sctok.corpus.engines.processes import RunResult, Summary, execute_run, samples_to_hours
from sctok.corpus.runs.events import RunListener, ignore_events
from sctok.corpus.runs.planning import plan_runs
from sctok.corpus.runs.resume import ShardContents
from sctok.corpus.runs.run_folder import RunFolder
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import (
    Execution,
    check_at_least,
    check_device,
    describe_extractor,
    describe_source,
)
from sctok.features.extractor import CUT
from sctok.features.tokenizer import UNDECIDED, Tokenizer, Tokens, TokenStreams
from sctok.formats.describe import count_summary
from sctok.formats.files import FormatError
from sctok.formats.token_shards import TOKENS_VERSION, TokenShardWriter, read_token_shard
from sctok.runtime.stages import Stage

SUFFIX = ".tar"
INFO = ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash")  # of a run, repeated for each file
MakeTokenizer = Callable[[str], Tokenizer]  # device name -> tokenizer on it; picklable if there are several devices
StoredTokens = tuple[str, npt.NDArray[Any], dict[str, Any]]  # key, tokens (n, streams), info


@dataclass(frozen=True)
class TokenizationConfig:
    """Settings that determine the tokens of a run, in addition to the tokenizer.

    channel: to read; None mixes all channels. files_per_shard: number of files in one shard. Raises RunError for values
    out of range.
    """

    channel: int | None = None
    files_per_shard: int = 256

    def __post_init__(self) -> None:
        check_at_least("channel", self.channel, 0)
        check_at_least("files per shard", self.files_per_shard, 1)


@dataclass(frozen=True)
class TokenizationSummary(Summary):
    """The contents of a folder of tokens.

    tokens: of the first stream. tokens_per_second: of audio. codebook_size, codebook_used, perplexity: of the first
    stream: its number of different tokens, how many of them occur, and how many would occur if all were equally
    frequent. others: the same for other streams, as NAME_size, NAME_used and NAME_perplexity.
    """

    tokens: int
    tokens_per_second: float
    codebook_size: int
    codebook_used: int
    perplexity: float
    others: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as `summary.json` stores it."""
        found = super().to_json()
        others = found.pop("others")
        return {**found, **others}


def tokenize_corpus(
    inputs: Sequence[str | Path],
    targets: Sequence[Path],
    make_tokenizer: MakeTokenizer,
    config: TokenizationConfig | None = None,
    execution: Execution | None = None,
    progress: RunListener = ignore_events,
    selection: Selection | None = None,
) -> list[RunResult[TokenizationSummary]]:
    """Write the tokens of all audio in `inputs` to token shards, or resume a run that does.

    Each codebook of the tokenizer has its own run folder. Audio is decoded and embedded once for all of them, and each
    folder gets the same bytes as from a separate run. The tokens of a file depend only on the file and the
    tokenizer; the bytes of a folder also depend on the list of inputs and on `config`.

    Args:
        inputs: folders, files, manifests and tar shards, as `list_audio` takes them.
        targets: the run folder for each of the tokenizer's outputs; created if absent.
        make_tokenizer: loads the tokenizer onto a device; picklable if there are several devices.
        config: how to read the audio.
        execution: devices, batch size and decoding processes.
        progress: receives the events of `execute_run`.
        selection: which new inputs to take; inputs that a run already has stay in it.

    Returns:
        a result for each target.

    Raises:
        ValueError: the tokenizer cannot be made, or has not one output for each target.
        RunError: a folder belongs to another configuration, has another plan, or its shards do not fit its plan.
        AudioError: an input cannot be listed.
        DiskFullError: finished shards stay valid; the same call resumes.
    """
    config, execution = config or TokenizationConfig(), execution or Execution()
    selection = selection or Selection()
    tokenizer = make_tokenizer(execution.devices[0])
    configs = {
        path: _run_config(config, tokenizer, output) for path, output in zip(targets, tokenizer.outputs, strict=True)
    }
    runs = plan_runs(
        configs,
        SUFFIX,
        lambda: list_audio(inputs, wants=selection.wants),
        files_per_shard=config.files_per_shard,
        read_shard=read_contents,
        choose=selection.choice(config.channel),
        execution=execution,
    )
    make_job = partial(_make_job, runs, make_tokenizer)
    return execute_run(runs, TokenizeJob(runs, tokenizer), make_job, summarise, execution, progress)


def _run_config(config: TokenizationConfig, tokenizer: Tokenizer, output: TokenStreams) -> dict[str, Any]:
    sizes = list(output.sizes)
    return {
        "kind": "tokens",
        "tokens_version": TOKENS_VERSION,
        **asdict(config),
        **describe_extractor(tokenizer.extractor),
        "streams": list(output.names),
        "codebook_hash": output.codebook_hash,
        **({"codebook_size": sizes[0]} if len(sizes) == 1 else {"codebook_sizes": sizes}),
        "codec_hash": output.codec_hash,
        "token_rate": output.token_rate,
    }


def stream_sizes(run: RunFolder) -> list[int]:
    """Return the number of different tokens of each stream of a run."""
    sizes: list[int] | None = run.config.get("codebook_sizes")
    return sizes or [run.config["codebook_size"]]


def summarise(run: RunFolder, shards: Sequence[int], failed: int) -> TokenizationSummary:
    """Read finished shards of a tokenization run and summarise them. Raises FormatError naming a damaged shard."""
    streams = [np.zeros(size, np.int64) for size in stream_sizes(run)]
    files = samples = 0
    for index in shards:
        for _, tokens, info in read_token_shard(run.shard_path(index)):
            for stream, counts in enumerate(streams):
                counts += np.bincount(tokens[:, stream], minlength=len(counts))
            files += 1
            samples += info["samples"]
    total = int(streams[0].sum())
    size, used, perplexity = _codebook_usage(streams[0])
    return TokenizationSummary(
        files=files,
        failed=failed,
        hours=samples_to_hours(samples),
        shards=len(shards),
        tokens=total,
        tokens_per_second=round(total * SAMPLE_RATE / samples, 3) if samples else 0.0,
        codebook_size=size,
        codebook_used=used,
        perplexity=perplexity,
        others={
            f"{name}_{what}": value
            for name, counts in zip(run.config["streams"][1:], streams[1:], strict=True)
            for what, value in zip(("size", "used", "perplexity"), _codebook_usage(counts), strict=True)
        },
    )


def _codebook_usage(counts: npt.NDArray[np.int64]) -> tuple[int, int, float]:
    """Return the number of different tokens, how many of them occur, and the perplexity of their counts."""
    return len(counts), int(np.count_nonzero(counts)), count_summary(counts)["perplexity"] if counts.any() else 0.0


def read_contents(path: Path) -> ShardContents:
    """Read what a token shard says about itself. Raises FormatError."""
    entries = [(key, info.get("config_hash")) for key, _, info in read_token_shard(path)]
    return ShardContents(entries[0][1] if entries else None, tuple(key for key, _ in entries))


def _make_job(runs: Sequence[RunFolder], make_tokenizer: MakeTokenizer, device: str) -> "TokenizeJob":
    tokenizer = make_tokenizer(device)
    extractor, codec_hash = tokenizer.extractor, tokenizer.outputs[0].codec_hash
    made = {"encoder_hash": extractor.hash, "precision": extractor.precision, "codec_hash": codec_hash}
    check_device(made, runs[0], device)
    return TokenizeJob(runs, tokenizer)


class TokenizeJob:
    """Turns windows into tokens, and writes those of each output to its run."""

    def __init__(self, runs: Sequence[RunFolder], tokenizer: Tokenizer) -> None:
        self.stage: Stage = nullcontext
        self.device = torch.device(tokenizer.extractor.device)
        self.cut = tokenizer.extractor.padding == CUT
        self._runs, self._tokenizer = runs, tokenizer
        self._stacks = [output.stack_factor for output in tokenizer.outputs]

    def prepare(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return windows as the tokenizer expects them."""
        return self._tokenizer.prepare(chunks)

    def encode(self, waves: Waves, last: Ends) -> Iterable[tuple[Tokens, ...]]:
        """Return for each window the tokens (8 · columns / stack factor, streams) of each run."""
        self._tokenizer.stage = self.stage
        return zip(*self._tokenizer.tokenize(waves, last), strict=True)

    def open_clip(self, item: AudioItem) -> "TokenClip":
        """Return a new record of a file."""
        return TokenClip(item, self._stacks)

    @contextmanager
    def open_shard(self, path: Path, run: int) -> Iterator["TokenSink"]:
        """Open a new token shard."""
        folder = self._runs[run]
        info = {**{name: folder.config[name] for name in INFO}, "sample_rate": SAMPLE_RATE}
        with TokenShardWriter(path, codebook_sizes=stream_sizes(folder)) as writer:
            yield TokenSink(writer, run, {**info, "config_hash": folder.config_hash}, self._stacks[run])

    @contextmanager
    def read_shard(self, path: Path) -> Iterator[Iterator[tuple[str, StoredTokens]]]:
        """Open a finished shard."""
        yield ((entry[0], entry) for entry in read_token_shard(path))


class TokenClip:
    """The tokens of the windows of one file so far, for each run."""

    def __init__(self, item: AudioItem, stacks: Sequence[int]) -> None:
        self.item = item
        self.tokens: list[list[npt.NDArray[np.uint32]]] = [[] for _ in stacks]
        self._stacks = stacks

    def wants(self, window: int, samples: int | None) -> bool:
        """Return whether the file has tokens in a window; it may end where its last window begins."""
        return samples is None or any(
            token_count(samples, stack) > window * (WINDOW_PATCHES // stack) for stack in self._stacks
        )


@dataclass(frozen=True)
class TokenSink:
    """An open token shard of the run at position `place`. shared: the info that all its files have in common."""

    writer: TokenShardWriter
    place: int
    shared: dict[str, Any]
    stack: int

    def take(self, clip: TokenClip, window: int, values: tuple[Tokens, ...]) -> None:
        """Add the tokens (8 · columns / stack factor, streams) of a window to its file."""
        tokens = values[self.place]
        if (tokens == UNDECIDED).any():
            raise FormatError(f"the encoder returns features that are not finite in window {window}; check the audio")
        clip.tokens[self.place].append(tokens.astype(np.uint32))

    def finish(self, clip: TokenClip, samples: int) -> None:
        """Store the tokens of a file, without those of padding."""
        tokens = np.concatenate(clip.tokens[self.place])[: token_count(samples, self.stack)]
        self.writer.add(
            clip.item.key, tokens, {**self.shared, "samples": samples, "source": describe_source(clip.item)}
        )

    def discard(self, clip: TokenClip) -> None:
        """Do nothing: files are stored only when they are complete."""

    def copy(self, entry: StoredTokens) -> None:
        """Store a file from the previous version of the shard."""
        self.writer.add(*entry)
