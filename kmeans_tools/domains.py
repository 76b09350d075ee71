"""Train the codebooks of each domain from its feature shards, as `sctok cluster` does."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sctok.formats.codebooks import (
    MERGED_DOMAIN,
    Codebook,
    CodebookInfo,
    Segment,
    codebook_path,
    load_codebook,
    save_codebook,
)
from sctok.formats.files import remove_stale_temporaries
from sctok.formats.stacking import token_rate
from sctok.kmeans_tools.sources.cached_source import cache_if_fits
from sctok.kmeans_tools.sources.vectors import ShardSource, TooFewVectorsError, Vectors
from sctok.runtime.distributed import ALONE, Group
from sctok.runtime.memory import default_memory

from .config import FitContext, FitResult, KMeansConfig
from .fit import config_hash, fit_codebooks
from .merging import PAPER_RATIO, find_same
from .progress import FitProgress
from .resume import CHECKPOINT_FOLDER, checkpoint_path

PAPER_CODEBOOKS = (1024, 2048, 4096, 8192, 16_384)  # sizes per domain, SemantiCodec paper, section 4

Reporter = Callable[[str, ShardSource], AbstractContextManager[FitProgress]]


@dataclass(frozen=True)
class DomainPlan:
    """The codebooks to train for a domain, or for each of several domains.

    stack: patches per vector, 1, 2 or 4. sizes: numbers of centroids. folder: output folder of the codebooks.
    first: a codebook or `.npy` file with the first centroids; `sizes` is then their number. overwrite: replace
    existing codebooks that have other settings or features. origin: JSON values that describe where the features came
    from; the certificates store them under "from_audio".
    """

    stack: int
    sizes: tuple[int, ...]
    config: KMeansConfig
    folder: Path
    first: Path | None = None
    overwrite: bool = False
    origin: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class TrainedCodebook:
    """A codebook file. seconds: training time, None if the file already existed with the same settings and features."""

    path: Path
    codebook: Codebook
    seconds: float | None


@dataclass(frozen=True)
class DomainResult:
    """The codebooks of one domain in the order of the requested sizes, or the error that prevented them.

    n_vectors, encoder: those of the features; 0 and "" if the features cannot be read.
    """

    domain: str
    codebooks: tuple[TrainedCodebook, ...] = ()
    n_vectors: int = 0
    encoder: str = ""
    error: ValueError | OSError | None = None


def find_domains(features: Path) -> list[str]:
    """Return the names of the folders that contain feature shards: the paper's domains first, the others by name.

    Raises:
        ValueError: there are none; the error says how to make them.
    """
    found = {path.parent.name for path in features.glob("*/*.h5") if path.is_file()} - {MERGED_DOMAIN}
    if not found:
        raise ValueError(f"{features} has no features; run `sctok extract AUDIO… --domain NAME` first")
    return [domain for domain in PAPER_RATIO if domain in found] + sorted(found - PAPER_RATIO.keys())


def find_feature_shards(folder: Path, domain: str) -> list[Path]:
    """Return the feature shards of a folder by name. Raises ValueError saying how to make them if there are none."""
    paths = sorted(path for path in folder.glob("*.h5") if path.is_file())
    if not paths:
        raise ValueError(f"{folder} has no feature shards; run `sctok extract AUDIO… --domain {domain}` first")
    return paths


def train_domains(
    folders: Mapping[str, Path], plan: DomainPlan, report: Reporter, group: Group = ALONE
) -> list[DomainResult]:
    """Train the codebooks of each domain on the feature shards in its folder, one domain after the other.

    All sizes of a domain share each pass over its vectors. If a domain fails, its result holds the error, and the
    others are still trained.

    Args:
        folders: the folder of feature shards of each domain.
        plan: the codebooks to train.
        report: called on rank 0 with a domain and its features; returns a context manager that receives the progress.
        group: the ranks that share the work. All return the same results, and rank 0 writes the files. With several
            ranks, an error that other ranks may not have is raised at once.
    """
    results = []
    for domain, features in folders.items():
        source: ShardSource | None = None
        try:
            source = ShardSource(find_feature_shards(features, domain), plan.stack)
            with report(domain, source) if group.leads else nullcontext() as progress:
                books = train_codebooks(domain, source, plan, progress, group)
            results.append(DomainResult(domain, tuple(books), source.rows, source.encoder))
        except (ValueError, OSError) as error:
            if group.world > 1 and not isinstance(error, TooFewVectorsError):
                raise
            rows, encoder = (source.rows, source.encoder) if source else (0, "")
            results.append(DomainResult(domain, (), rows, encoder, error))
    return results


def train_codebooks(
    domain: str, source: ShardSource, plan: DomainPlan, progress: FitProgress | None = None, group: Group = ALONE
) -> list[TrainedCodebook]:
    """Train the codebooks of one domain and write `<folder>/<domain>-<k>-r<rate>.safetensors` for each size.

    An existing codebook with the same settings and features is kept. Checkpoints are in `<folder>/.checkpoints`: the
    same call after an interruption resumes from them. Temporary files of killed processes are removed from `folder`.
    The vectors stay in memory after the first pass if they fit half of it. In a group all ranks return the codebooks,
    and rank 0 reads and writes the files.

    Raises:
        ValueError: an existing codebook is damaged or has other settings or features, and must not be overwritten; the
            domain is "merged"; and as for `fit_codebooks` and `load_first_centroids`.
    """
    if domain == MERGED_DOMAIN:
        raise ValueError(f"{MERGED_DOMAIN!r} is reserved for merged codebooks; choose another name for the domain")
    config, rate = plan.config, token_rate(source.stack)
    initial = {} if plan.first is None else {len(first := load_first_centroids(plan.first, source)): first}
    paths = {k: codebook_path(plan.folder, domain, k, rate) for k in plan.sizes}
    hashes = {k: config_hash(source, k, config, initial.get(k)) for k in paths}
    books = group.broadcast(_find_existing(paths, hashes, plan) if group.leads else {})
    name, checkpoints = f"{domain}-r{rate}", plan.folder / CHECKPOINT_FOLDER
    for k in books if group.leads else ():
        checkpoint_path(checkpoints, name, k, hashes[k]).unlink(missing_ok=True)

    def save(result: FitResult) -> None:
        codebook = _make_codebook(result, domain, source, plan)
        if group.leads:
            save_codebook(paths[result.k], codebook)
        books[result.k] = TrainedCodebook(paths[result.k], codebook, result.seconds)

    if missing := [k for k in paths if k not in books]:
        cached = cache_if_fits(source, config.memory or default_memory())
        context = FitContext(
            initial={k: initial[k] for k in missing if k in initial},
            checkpoint_dir=checkpoints,
            name=name,
            save=save,
            progress=progress,
            group=group,
        )
        try:
            fit_codebooks(cached, missing, config, context)
        except TooFewVectorsError as error:
            possible = ", ".join(str(k) for k in plan.sizes if k <= error.most) or "none"
            error.args = (f"{error}; of the sizes requested for {domain} these are possible: {possible}",)
            raise
    return [books[k] for k in paths]


def _find_existing(
    paths: Mapping[int, Path], hashes: Mapping[int, str], plan: DomainPlan
) -> dict[int, TrainedCodebook]:
    """Return the existing codebooks that have the same settings and features."""
    remove_stale_temporaries(plan.folder)
    books = {}
    for k, path in paths.items():
        book = find_same(path, partial(_has_hash, hashes[k]), plan.overwrite, "features or settings")
        if book is not None:
            books[k] = TrainedCodebook(path, book, None)
    return books


def _has_hash(config_hash: str, book: Codebook) -> bool:
    return (book.metadata.certificate or {}).get("config_hash") == config_hash


def _make_codebook(result: FitResult, domain: str, source: ShardSource, plan: DomainPlan) -> Codebook:
    config, origin = plan.config, plan.origin
    backend = "" if config.backend in ("auto", "torch") else f"-{config.backend}"
    return Codebook(
        centroids=result.centroids,
        counts=result.counts,
        metadata=CodebookInfo(
            domain=domain,
            segments=(Segment(domain, 0, result.k),),
            stack_factor=source.stack,
            encoder=source.encoder,
            encoder_hash=source.encoder_hash,
            seed=config.seed,
            algorithm=f"{config.resolved(source.rows, source.dim, result.k).algorithm}{backend}",
            precision=config.precision,
            n_vectors=result.n_vectors,
            inertia_history=result.inertia_history,
            certificate={**result.certificate, **({"from_audio": dict(origin)} if origin else {})},
        ),
    )


def load_first_centroids(path: Path, source: ShardSource) -> Vectors:
    """Read first centroids (k, D) float32 from a codebook or a `.npy` array.

    Raises:
        ValueError: the file is neither, or its centroids have another width, encoder or stack factor than the features.
    """
    centroids, info = _read_centroids(path)
    if info is not None and (info.encoder_hash, info.stack_factor) != (source.encoder_hash, source.stack):
        raise ValueError(
            f"{path} has encoder {info.encoder} ({info.encoder_hash}) and stack factor {info.stack_factor}; the "
            f"features have {source.encoder} ({source.encoder_hash}) and {source.stack}. Choose a codebook of such "
            "features"
        )
    if centroids.ndim != 2 or centroids.shape[1] != source.dim or not np.isfinite(centroids).all():
        raise ValueError(f"{path} holds an array {centroids.shape}, not finite vectors of width {source.dim}")
    return centroids


def count_first_centroids(path: Path) -> int:
    """Return the number of centroids in a codebook or `.npy` file. Raises ValueError if the file is neither."""
    return len(np.atleast_1d(_read_centroids(path)[0]))


def _read_centroids(path: Path) -> tuple[Vectors, CodebookInfo | None]:
    if path.suffix != ".npy":
        codebook = load_codebook(path)
        return codebook.centroids, codebook.metadata
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
        return array.astype(np.float32), None
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not an array of numbers: {error}") from None
