"""Codebooks from audio: features of a sample are extracted, and removed once the codebooks are written.

The sample is an extraction run in a folder below the codebooks: devices or Ray workers share it, and an interrupted
command resumes. Its size is bounded, however much audio there is.
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
from sctok.corpus.runs.events import RunListener, ignore_events
from sctok.corpus.runs.locks import Claim, try_lock
from sctok.corpus.runs.manifest import Planned, json_line
from sctok.corpus.runs.refresh import InputsChangedError
from sctok.corpus.runs.run_folder import FAILED, RunError, RunFolder
from sctok.corpus.runs.selection import Selection
from sctok.corpus.runs.sharding import Execution, MakeExtractor
from sctok.formats.codebooks import codebook_path, load_named_codebook
from sctok.formats.files import HASH_CHARACTERS, FormatError, hash_file, hash_json
from sctok.formats.stacking import token_rate
from sctok.kmeans_tools.domains import DomainPlan, DomainResult, Reporter, TrainedCodebook, train_domains
from sctok.kmeans_tools.fit import ALGORITHM_VERSION

from .extraction import ExtractionConfig, ExtractionSummary, fill_run, plan_features

POINTS_PER_CENTROID = 1024  # by default; more points change a codebook little
AUDIO_FOLDER = ".audio"  # of unfinished samples, next to the checkpoints of k-means

_PATCHES_PER_SECOND = PATCH_ROWS * SAMPLE_RATE / COLUMN_SAMPLES
_HASH_IN_NAME = 12  # characters of a hash in the name of a folder


@dataclass(frozen=True)
class AudioResult:
    """The codebooks of a domain. sample: the run that encoded audio; None if the codebooks existed already."""

    domain: DomainResult
    sample: RunResult[ExtractionSummary] | None


def sample_hours(ks: Sequence[int], stack: int, width: int, memory: int | None) -> float:
    """Return the hours of audio that give enough vectors for the largest codebook.

    That is 1024 vectors per centroid, but at most as many as fit in half of `memory`, where k-means keeps them.

    Args:
        ks: numbers of centroids.
        stack: patches per vector.
        width: number of values in a patch embedding.
        memory: in bytes; None for no limit.
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
    progress: RunListener = ignore_events,
    selection: Selection | None = None,
) -> AudioResult:
    """Train the codebooks of a domain on a sample of audio, and remove the features once the codebooks are written.

    The codebooks are bit-identical to those of `extract_features` with the same configuration followed by
    `train_domains`. Existing codebooks of the same inputs and settings are kept, and nothing is encoded. Files that
    cannot be read are listed in `<domain>.failed.jsonl` next to the codebooks.

    Args:
        inputs: see `list_audio`.
        config: what to encode. Without max_hours and tokens_per_clip, `sample_hours` of audio, chosen by the seed.
        plan: what to train, and the folder of the codebooks.
        make_extractor, execution, progress, selection: see `extract_features`.
        report: see `train_domains`.

    Raises:
        RunError: another such command works on the domain, or there is no readable audio.
        ValueError: a codebook exists that was made in another way and may not be overwritten; or as `train_domains`.
        AudioError, DiskFullError: as `extract_features`.
    """
    execution = execution or Execution()
    extractor = make_extractor(execution.devices[0])
    if config.max_hours is None and config.tokens_per_clip is None:
        hours = sample_hours(plan.sizes, plan.stack, extractor.width, plan.config.memory)
        config = replace(config, max_hours=hours)
    with _lock(plan.folder, config.domain):
        settings = [asdict(config), asdict(selection or Selection()), extractor.hash, extractor.precision]
        folder = plan.folder / AUDIO_FOLDER / f"{config.domain}-{hash_json(settings)[:_HASH_IN_NAME]}"
        try:
            run = plan_features(inputs, folder, extractor, config, selection, execution)
        except InputsChangedError:  # the sample is of an earlier state of the audio
            shutil.rmtree(folder)
            run = plan_features(inputs, folder, extractor, config, selection, execution)
        request = _hash_request(run, plan)
        files = _hash_files(run)
        existing = _find_existing(plan, config.domain, request, files, execution.retry_failed)
        if existing is not None:
            shutil.rmtree(folder)
            return AudioResult(existing, None)
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
        raise RunError(
            f"another sctok cluster --from-audio is making codebooks of {domain} in {folder}; wait until it ends"
        )
    return claim


def _hash_request(run: RunFolder, plan: DomainPlan) -> str:
    """Return the hash of what determines the codebooks except their sizes: settings and keys of the files."""
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


def _find_existing(plan: DomainPlan, domain: str, request: str, files: str, retry_failed: bool) -> DomainResult | None:
    """Return the existing codebooks if none is missing and all were made as requested.

    With `retry_failed`, all files must have been readable. Codebooks of versions without a hash of the files count as
    made from the same files. Raises ValueError for a codebook that was made in another way, before audio is encoded.
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
            f"{run.path}: another process works on {sample.shards_left} shards; run the same command again later"
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
    """Move the list of failures next to the codebooks and remove the sample."""
    ledger.unlink(missing_ok=True)
    if failed:
        (run.path / FAILED).replace(ledger)
    shutil.rmtree(run.path)
