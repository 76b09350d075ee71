"""Tokens of a collection, semantic or of both streams of a codec, in WebDataset token shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.audio.inputs.sources import list_audio
from sctok.audio.windows import SAMPLE_RATE
from sctok.codec.listing import STREAMS
from sctok.codec.tokenizer import CodecTokenizer
from sctok.corpus.engines.processes import RunResult, Summary, execute_run, samples_to_hours
from sctok.corpus.runs.planning import plan_runs
from sctok.corpus.runs.run_folder import Progress, RunError, RunFolder, ShardContents
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import Execution, check_extractor, describe_extractor
from sctok.formats.codebooks import Codebook, codebook_hash
from sctok.formats.describe import count_summary
from sctok.formats.token_shards import TOKENS_VERSION, read_token_shard

from .token_job import TokenEncoder, TokenizeJob, codebook_sizes, extractor_of

SUFFIX = ".tar"
MakeEncoder = Callable[[str], TokenEncoder]  # device name -> encoder there; picklable for several devices


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


@dataclass(frozen=True)
class CodecTokensSummary(TokenizationSummary):
    """What a folder of tokens of a codec holds; the fields above are of the semantic stream, these of the acoustic."""

    acoustic_size: int
    acoustic_used: int
    acoustic_perplexity: float


def tokenize_corpus(
    inputs: Sequence[str | Path],
    targets: Mapping[Path, Codebook],
    make_encoder: MakeEncoder,
    config: TokenizationConfig | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda event: None,
    selection: Selection | None = None,
) -> list[RunResult[TokenizationSummary]]:
    """Write the tokens of all audio in `inputs` to token shards, or go on with that.

    Each codebook has a run folder of its own, and all of them the same plan: audio is decoded and encoded once. What
    a folder holds is what it would hold if its codebook were the only one. The tokens of a file depend on the file,
    the encoder or codec, and the codebook alone; the bytes in a folder on the inputs and `config` besides.

    Args:
        inputs: folders, files, manifests and tar shards, as `list_audio` takes them.
        targets: the run folders, made if absent, and their codebooks, of the same encoder or codec.
        make_encoder: loads an encoder onto a device, for semantic tokens, or a codec's, for both streams; picklable if
            there are several devices.
        config: how to read the audio.
        execution: devices, batch size and decoding processes.
        progress: gets the events of `execute_run`.
        selection: which of the inputs to take; what a run has taken already stays.

    Returns:
        a result for each target.

    Raises:
        RunError: a codebook is of another encoder or codec, a folder belongs to another configuration or has another
            plan, or its shards do not fit its plan.
        AudioError: an input cannot be listed.
        DiskFullError: finished shards stay valid; the same call goes on from there.
    """
    config, execution = config or TokenizationConfig(), execution or Execution()
    selection = selection or Selection()
    encoder = make_encoder(execution.devices[0])
    codebooks = tuple(targets.values())
    for codebook in codebooks:
        _check_codebook(codebook, encoder)
    wanted = {path: _stored(config, encoder, codebook) for path, codebook in targets.items()}
    runs = plan_runs(
        wanted,
        SUFFIX,
        lambda: list_audio(inputs, wants=selection.wants),
        files_per_shard=config.files_per_shard,
        read_shard=read_contents,
        choose=selection.choice(config.channel),
        renewal=selection.renewal(execution, config.channel),
    )
    make_job = partial(_make_job, runs, codebooks, make_encoder)
    job = TokenizeJob(runs, codebooks, encoder, execution.devices[0])
    return execute_run(runs, job, make_job, summarise, execution, progress)


def _stored(config: TokenizationConfig, encoder: TokenEncoder, codebook: Codebook) -> dict[str, Any]:
    codec = encoder if isinstance(encoder, CodecTokenizer) else None
    sizes = {"codebook_sizes": [codebook.k, codec.acoustic_size]} if codec else {"codebook_size": codebook.k}
    return {
        "kind": "tokens",
        "tokens_version": TOKENS_VERSION,
        **asdict(config),
        **describe_extractor(extractor_of(encoder)),
        "streams": STREAMS if codec else STREAMS[:1],
        "codebook_hash": codebook_hash(codebook),
        **sizes,
        "codec_hash": codec.info.token_hash if codec else None,
        "token_rate": codebook.metadata.token_rate,
    }


def summarise(run: RunFolder, shards: Sequence[int], failed: int) -> TokenizationSummary:
    """Read what finished shards of a run of tokenization hold. Raises FormatError naming a damaged one."""
    streams = [np.zeros(size, np.int64) for size in codebook_sizes(run)]
    files = samples = 0
    for index in shards:
        for _, tokens, info in read_token_shard(run.shard_path(index)):
            for stream, counts in enumerate(streams):
                counts += np.bincount(tokens[:, stream], minlength=len(counts))
            files += 1
            samples += info["samples"]
    total = int(streams[0].sum())
    size, used, perplexity = _describe_use(streams[0])
    summary = TokenizationSummary(
        files=files,
        failed=failed,
        hours=samples_to_hours(samples),
        shards=len(shards),
        tokens=total,
        tokens_per_second=round(total * SAMPLE_RATE / samples, 3) if samples else 0.0,
        codebook_size=size,
        codebook_used=used,
        perplexity=perplexity,
    )
    return summary if len(streams) == 1 else CodecTokensSummary(**asdict(summary), **_acoustic_use(streams[1]))


def _describe_use(counts: npt.NDArray[np.int64]) -> tuple[int, int, float]:
    """Return the size of a codebook, how much of it is used, and the perplexity of its use."""
    return len(counts), int(np.count_nonzero(counts)), count_summary(counts)["perplexity"] if counts.any() else 0.0


def _acoustic_use(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    return dict(zip(("acoustic_size", "acoustic_used", "acoustic_perplexity"), _describe_use(counts), strict=True))


def read_contents(path: Path) -> ShardContents:
    """Read what a token shard says of itself. Raises FormatError."""
    entries = [(key, info.get("config_hash")) for key, _, info in read_token_shard(path)]
    return ShardContents(entries[0][1] if entries else None, tuple(key for key, _ in entries))


def _check_codebook(codebook: Codebook, encoder: TokenEncoder) -> None:
    info, extractor = codebook.metadata, extractor_of(encoder)
    if info.encoder_hash != extractor.hash:
        raise RunError(
            f"the codebook was made with the encoder {info.encoder} ({info.encoder_hash}), not with {extractor.name} "
            f"({extractor.hash}); give that encoder with --encoder, or a codebook of this one"
        )
    if codebook.width != extractor.width:
        raise RunError(f"the codebook is for features of width {codebook.width}, not {extractor.width}; give another")
    if isinstance(encoder, CodecTokenizer) and codebook_hash(codebook) not in encoder.codebooks:
        raise RunError(
            f"the codebook {codebook_hash(codebook)} of {codebook.k} centroids is none of the codec "
            f"{encoder.info.name}, which has {', '.join(sorted(encoder.codebooks))}"
        )


def _make_job(
    runs: Sequence[RunFolder], codebooks: Sequence[Codebook], make_encoder: MakeEncoder, device: str
) -> TokenizeJob:
    encoder = make_encoder(device)
    check_extractor(extractor_of(encoder), runs[0], device)
    found, planned = (
        encoder.info.token_hash if isinstance(encoder, CodecTokenizer) else None,
        runs[0].config["codec_hash"],
    )
    if found != planned:
        raise RunError(f"the codec on {device} has hash {found}, that of {runs[0].path} {planned}")
    return TokenizeJob(runs, codebooks, encoder, device)
