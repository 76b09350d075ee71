"""Semantic tokens of a collection, in WebDataset token shards."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sctok.audio.sources import list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.formats.codebooks import MERGED_DOMAIN, Codebook, CodebookFile, codebook_hash, find_codebooks
from sctok.formats.describe import count_summary
from sctok.formats.token_shards import TOKENS_VERSION, read_token_shard

from .planning import plan_runs
from .processes import RunResult, Summary, execute_run, samples_to_hours
from .runs import Progress, RunError, RunFolder, ShardContents
from .selection import Selection
from .sharding import Execution, Extractor, MakeExtractor, check_extractor, describe_extractor
from .token_job import TokenJob

SUFFIX = ".tar"


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
    targets: Mapping[Path, Codebook],
    make_extractor: MakeExtractor,
    config: TokenizationConfig | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda event: None,
    selection: Selection | None = None,
) -> list[RunResult[TokenizationSummary]]:
    """Write the semantic tokens of all audio in `inputs` to token shards, or go on with that.

    Each codebook has a run folder of its own, and all of them the same plan: audio is decoded and encoded once. What
    a folder holds is what it would hold if its codebook were the only one. The tokens of a file depend on the file,
    the encoder and the codebook alone; the bytes in a folder on the inputs and `config` besides.

    Args:
        inputs: folders, files, manifests and tar shards, as `list_audio` takes them.
        targets: the run folders, made if absent, and their codebooks, made from features of the same encoder.
        make_extractor: loads the encoder onto a device; picklable if there are several devices.
        config: how to read the audio.
        execution: devices, batch size and decoding processes.
        progress: gets the events of `execute_run`.
        selection: which of the inputs to take; what a run has taken already stays.

    Returns:
        a result for each target.

    Raises:
        RunError: a codebook is of another encoder, a folder belongs to another configuration or has another plan, or
            its shards do not fit its plan.
        AudioError: an input cannot be listed.
        DiskFullError: finished shards stay valid; the same call goes on from there.
    """
    config, execution = config or TokenizationConfig(), execution or Execution()
    selection = selection or Selection()
    extractor = make_extractor(execution.devices[0])
    codebooks = tuple(targets.values())
    for codebook in codebooks:
        _check_codebook(codebook, extractor)
    wanted = {path: _stored(config, extractor, codebook) for path, codebook in targets.items()}
    runs = plan_runs(
        wanted,
        SUFFIX,
        lambda: list_audio(inputs, wants=selection.wants),
        files_per_shard=config.files_per_shard,
        read_shard=read_contents,
        choose=selection.choice(config.channel),
    )
    make_job = partial(_make_job, runs, codebooks, make_extractor)
    job = TokenJob(runs, codebooks, extractor, execution.devices[0])
    return execute_run(runs, job, make_job, summarise, execution, progress)


def _stored(config: TokenizationConfig, extractor: Extractor, codebook: Codebook) -> dict[str, Any]:
    return {
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


def _make_job(
    runs: Sequence[RunFolder], codebooks: Sequence[Codebook], make_extractor: MakeExtractor, device: str
) -> TokenJob:
    return TokenJob(runs, codebooks, check_extractor(make_extractor(device), runs[0], device), device)
