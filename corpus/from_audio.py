"""Codebooks straight from audio: the features of a sample of it are kept until the codebooks are there, no longer.

The sample is made by the engine of all corpus runs, in a folder below the codebooks: so it is shared by devices or
workers of Ray, and an interrupted command goes on. Its size is bounded, whatever there is of audio.
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sctok.audio.windows import COLUMN_SAMPLES, PATCH_ROWS, SAMPLE_RATE
from sctok.corpus.engines.processes import RunResult
from sctok.corpus.runs.locks import Claim, try_lock
from sctok.corpus.runs.manifest import Planned, json_line
from sctok.corpus.runs.refresh import InputsChangedError
from sctok.corpus.runs.run_folder import FAILED, Progress, RunError, RunFolder
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import Execution, MakeExtractor
from sctok.formats.codebooks import codebook_path, load_named_codebook
from sctok.formats.files import HASH_CHARACTERS, FormatError, hash_file, hash_json
from sctok.formats.stacking import token_rate
from sctok.kmeans_tools.domains import DomainPlan, DomainResult, Reporter, TrainedCodebook, train_domains
from sctok.kmeans_tools.fit import ALGORITHM_VERSION

from .extraction import ExtractionConfig, ExtractionSummary, fill_run, plan_features

POINTS_PER_CENTROID = 1024  # by default; more change a codebook little
AUDIO_FOLDER = ".audio"  # of samples in the making, beside the checkpoints of k-means

_PATCHES_PER_SECOND = PATCH_ROWS * SAMPLE_RATE / COLUMN_SAMPLES
_KEPT_NAME = 12  # characters of a hash in the name of a folder


@dataclass(frozen=True)
class AudioResult:
    """What became of a domain. sample: what was encoded, None where the codebooks were there already."""

    domain: DomainResult
    sample: RunResult[ExtractionSummary] | None


def sample_hours(ks: Sequence[int], stack: int, width: int, memory: int | None) -> float:
    """Return how many hours of audio give enough vectors for the largest of some codebooks.

    That is 1024 vectors for each centroid, and no more than fit half of `memory`, in which k-means then keeps them.

    Args:
        ks: numbers of centroids.
        stack: patches per vector.
        width: values of a patch.
        memory: bytes, None for no bound.
    """
    vectors = POINTS_PER_CENTROID * max(ks)
    if memory is not None:
        vectors = max(1, min(vectors, memory // 2 // (2 * width * stack + 1)))
    return vectors * stack / _PATCHES_PER_SECOND / 3600


def cluster_audio(
    inputs: Sequence[str | Path],
    config: ExtractionConfig,
    plan: DomainPlan,
    make_extractor: MakeExtractor,
    report: Reporter,
    execution: Execution | None = None,
    progress: Progress = lambda event: None,
    selection: Selection | None = None,
) -> AudioResult:
    """Train the codebooks of a domain on a sample of audio, whose features are removed once the codebooks are there.

    The codebooks are, to the bit, those that `extract_features` with the same configuration and then `train_domains`
    give. Codebooks that are there already, made of the same inputs with the same settings, are left alone, and nothing
    is encoded. The files that could not be read are listed in `<domain>.failed.jsonl` beside the codebooks.

    Args:
        inputs: as `list_audio` takes them.
        config: what to encode. Without max_hours and tokens_per_clip it is `sample_hours`, chosen by the seed.
        plan: what to train, and where the codebooks go.
        make_extractor, execution, progress, selection: as `extract_features` takes them.
        report: as `train_domains` takes it.

    Raises:
        RunError: another such command works on the domain; no audio, or none that can be read.
        ValueError: a codebook is there that was made otherwise, and may not be overwritten; and as `train_domains`.
        AudioError, DiskFullError: as `extract_features`.
    """
    execution = execution or Execution()
    extractor = make_extractor(execution.devices[0])
    if config.max_hours is None and config.tokens_per_clip is None:
        hours = sample_hours(plan.sizes, plan.stack, extractor.width, plan.config.memory)
        config = replace(config, max_hours=hours)
    with _lock(plan.folder, config.domain):
        settings = [asdict(config), asdict(selection or Selection()), extractor.hash, extractor.precision]
        folder = plan.folder / AUDIO_FOLDER / f"{config.domain}-{hash_json(settings)[:_KEPT_NAME]}"
        try:
            run = plan_features(inputs, folder, extractor, config, selection, execution)
        except InputsChangedError:  # the sample is none of the audio as it is
            shutil.rmtree(folder)
            run = plan_features(inputs, folder, extractor, config, selection, execution)
        request = _hash_request(run, plan)
        files = _hash_files(run)
        kept = _find_kept(plan, config.domain, request, files, execution.retry_failed)
        if kept is not None:
            shutil.rmtree(folder)
            return AudioResult(kept, None)
        sample = fill_run(run, extractor, make_extractor, config, execution, progress)
        _check_sample(run, sample)
        origin = {**_describe_sample(run, sample.summary), "request": request, "files_hash": files}
        training = replace(plan, origin=origin, overwrite=plan.overwrite or execution.retry_failed)
        result = train_domains({config.domain: folder}, training, report)[0]
        if result.error is None:
            _close(run, plan.folder / f"{config.domain}.{FAILED}", sample.summary.failed)
        return AudioResult(result, sample)


def _lock(folder: Path, domain: str) -> AbstractContextManager[Claim]:
    path = folder / AUDIO_FOLDER / f"{domain}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    claim = try_lock(path)
    if claim is None:
        raise RunError(f"another sctok cluster --from-audio is making codebooks of {domain} in {folder}; wait for it")
    return claim


def _hash_request(run: RunFolder, plan: DomainPlan) -> str:
    """Return the hash of everything that decides the codebooks but their sizes: settings, and the keys of the files."""
    keys = hashlib.sha256()
    for row in run.manifest():
        if isinstance(row, Planned):
            keys.update(row.item.key.encode("utf-8", "surrogatepass") + b"\0")
    first = None if plan.first is None else hash_file(plan.first)
    settings = {name: value for name, value in asdict(plan.config).items() if name != "device"}
    return hash_json([ALGORITHM_VERSION, run.config_hash, keys.hexdigest(), plan.stack, settings, first])


def _hash_files(run: RunFolder) -> str:
    """Return the hash of the sizes and modification times of the files that hold the inputs of a run."""
    digest = hashlib.sha256()
    for row in run.manifest():
        if isinstance(row, Planned):
            digest.update(json_line({} if row.stamp is None else asdict(row.stamp)))
    return digest.hexdigest()[:HASH_CHARACTERS]


def _find_kept(plan: DomainPlan, domain: str, request: str, files: str, retry_failed: bool) -> DomainResult | None:
    """Return the codebooks if all are there, made as asked for; with `retry_failed`, of files that all could be read.

    Those made before there was a hash of the files are taken for ones of the same files.

    Raises ValueError where one is there that was made otherwise, before anything is encoded in vain.
    """
    found = []
    for k in plan.sizes:
        path = codebook_path(plan.folder, domain, k, token_rate(plan.stack))
        if not path.exists():
            continue
        try:
            book = load_named_codebook(path)
        except FormatError:
            if plan.overwrite:
                continue
            raise
        origin = (book.metadata.certificate or {}).get("from_audio") or {}
        same_files = retry_failed or origin.get("files_hash", files) == files
        if origin.get("request") == request and same_files:
            found += [TrainedCodebook(path, book, None)] if not (retry_failed and origin["failed"]) else []
        elif not plan.overwrite:
            what = "other audio, features or settings" if same_files else "audio files that have changed since"
            raise ValueError(f"{path} was made from {what}; use --overwrite to replace it")
    if len(found) < len(plan.sizes):
        return None
    info = found[0].codebook.metadata
    return DomainResult(domain, tuple(found), info.n_vectors, info.encoder)


def _check_sample(run: RunFolder, sample: RunResult[ExtractionSummary]) -> None:
    if sample.shards_left:
        raise RunError(
            f"{run.path}: {sample.shards_left} shards are left to another process; run the same command again"
        )
    if not sample.summary.rows:
        first = next(run.failures(), None)
        why = "" if first is None else f", such as {first.path}: {first.reason}"
        raise RunError(f"none of {sample.summary.failed} files could be read{why}; {run.path / FAILED} lists them")


def _describe_sample(run: RunFolder, summary: ExtractionSummary) -> dict[str, Any]:
    names = ("max_hours", "tokens_per_clip", "channel", "seed", "precision", "filterbank")
    facts = {"files": summary.files, "failed": summary.failed, "hours": summary.hours}
    return {**facts, **{name: run.config[name] for name in names}}


def _close(run: RunFolder, ledger: Path, failed: int) -> None:
    """Keep the list of failures beside the codebooks and remove the sample."""
    ledger.unlink(missing_ok=True)
    if failed:
        (run.path / FAILED).replace(ledger)
    shutil.rmtree(run.path)
