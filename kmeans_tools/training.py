"""From feature shards to codebook files: what `sctok cluster` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    load_named_codebook,
    save_codebook,
)
from sctok.formats.files import FormatError, remove_stale_temporaries
from sctok.formats.stacking import token_rate
from sctok.kmeans_tools.sources.cached_source import keep_resident
from sctok.kmeans_tools.sources.vectors import ShardSource, Vectors
from sctok.runtime.distributed import ALONE, Group
from sctok.runtime.memory import default_memory

from .checkpoints import checkpoint_path
from .config import FitResult, KMeansConfig
from .fit import Progress, config_hash, fit_codebooks

CHECKPOINT_FOLDER = ".checkpoints"


@dataclass(frozen=True, eq=False)
class TrainedCodebook:
    """A codebook file. seconds: time it took now, None where it was there already, made in the same way."""

    path: Path
    codebook: Codebook
    seconds: float | None


def find_feature_shards(folder: Path, domain: str) -> list[Path]:
    """Return the feature shards of a folder by name. Raises ValueError saying how to make them where there are none."""
    paths = sorted(path for path in folder.glob("*.h5") if path.is_file())
    if not paths:
        raise ValueError(f"{folder} has no feature shards; run `sctok extract AUDIO… --domain {domain}` first")
    return paths


def train_codebooks(
    source: ShardSource,
    ks: Sequence[int],
    config: KMeansConfig,
    *,
    domain: str,
    folder: Path,
    initial: Mapping[int, Vectors] | None = None,
    overwrite: bool = False,
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> list[TrainedCodebook]:
    """Train a codebook of each size on feature shards and write `<folder>/<domain>-<k>-r<rate>.safetensors` each.

    A codebook that is there and was made with the same settings from the same features is left alone. Checkpoints are
    in `<folder>/.checkpoints`; the same call after an interruption goes on from them. What killed writers left in
    `folder` is removed. Vectors that fit half of the memory are kept there after the first pass. In a group all
    ranks return the codebooks, and rank 0 reads and writes those in `folder`. origin: JSON values for the certificates
    under "from_audio". Other arguments as for `fit_codebooks`.

    Raises:
        ValueError: a codebook that is there was made otherwise, or is damaged, and may not be overwritten; the domain
            "merged"; and as `fit_codebooks`.
    """
    if domain == MERGED_DOMAIN:
        raise ValueError(f"{MERGED_DOMAIN!r} is kept for merged codebooks; give the domain another name")
    rate = token_rate(source.stack)
    given = dict(initial or {})
    paths = {k: codebook_path(folder, domain, k, rate) for k in dict.fromkeys(ks)}
    name = f"{domain}-r{rate}"
    checkpoints = folder / CHECKPOINT_FOLDER
    hashes = {k: config_hash(source, k, config, given.get(k)) for k in paths}
    books = group.broadcast(_kept(paths, hashes, overwrite) if group.leads else {})
    for k in books if group.leads else ():
        checkpoint_path(checkpoints, name, k, hashes[k]).unlink(missing_ok=True)

    def save(result: FitResult) -> None:
        codebook = _codebook(result, source, config, domain, origin)
        if group.leads:
            save_codebook(paths[result.k], codebook)
        books[result.k] = TrainedCodebook(paths[result.k], codebook, result.seconds)

    if todo := [k for k in paths if k not in books]:
        fit_codebooks(
            keep_resident(source, config.memory or default_memory()),
            todo,
            config,
            initial={k: given[k] for k in todo if k in given},
            checkpoint_dir=checkpoints,
            name=name,
            save=save,
            progress=progress,
            group=group,
        )
    return [books[k] for k in paths]


def _kept(paths: Mapping[int, Path], hashes: Mapping[int, str], overwrite: bool) -> dict[int, TrainedCodebook]:
    """Return the codebooks that are there already, made in the same way."""
    for folder in {path.parent for path in paths.values()}:
        remove_stale_temporaries(folder)
    found = {k: _existing(path, hashes[k], overwrite) for k, path in paths.items()}
    return {k: TrainedCodebook(paths[k], book, None) for k, book in found.items() if book is not None}


def _existing(path: Path, wanted: str, overwrite: bool) -> Codebook | None:
    if not path.exists():
        return None
    try:
        codebook = load_named_codebook(path)
    except FormatError:
        if overwrite:
            return None
        raise
    if (codebook.metadata.certificate or {}).get("config_hash") == wanted:
        return codebook
    if not overwrite:
        raise ValueError(f"{path} was made from other features or settings; use --overwrite to replace it")
    return None


def _codebook(
    result: FitResult, source: ShardSource, config: KMeansConfig, domain: str, origin: Mapping[str, Any] | None
) -> Codebook:
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
    """Read centroids (k, D) float32 to start from: a codebook or a `.npy` array.

    Raises:
        ValueError: it is neither, its vectors have another width, or a codebook is of another encoder or stack factor.
    """
    centroids, info = _read_centroids(path)
    if info is not None and (info.encoder_hash, info.stack_factor) != (source.encoder_hash, source.stack):
        raise ValueError(
            f"{path} is of encoder {info.encoder} ({info.encoder_hash}) and stack factor {info.stack_factor}, the "
            f"features are of {source.encoder} ({source.encoder_hash}) and {source.stack}; give a "
            "codebook of such features"
        )
    if centroids.ndim != 2 or centroids.shape[1] != source.dim or not np.isfinite(centroids).all():
        raise ValueError(f"{path} holds {centroids.shape}, not finite vectors of width {source.dim}")
    return centroids


def count_first_centroids(path: Path) -> int:
    """Return how many centroids a file to start from holds. Raises ValueError where it is no such file."""
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
