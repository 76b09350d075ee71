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

from .checkpoints import checkpoint_path
from .config import FitResult, KMeansConfig
from .fit import Progress, config_hash, fit_codebooks
from .sources import ShardSource, Vectors

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
    progress: Progress | None = None,
) -> list[TrainedCodebook]:
    """Train a codebook of each size on feature shards and write `<folder>/<domain>-<k>-r<rate>.safetensors` each.

    A codebook that is there and was made with the same settings from the same features is left alone. Checkpoints are
    in `<folder>/.checkpoints`; the same call after an interruption goes on from them. What killed writers left in
    `folder` is removed. Other arguments as for `fit_codebooks`.

    Raises:
        ValueError: a codebook that is there was made otherwise, or is damaged, and may not be overwritten; the domain
            "merged"; and as `fit_codebooks`.
    """
    if domain == MERGED_DOMAIN:
        raise ValueError(f"{MERGED_DOMAIN!r} is kept for merged codebooks; give the domain another name")
    rate = token_rate(source.stack)
    given = dict(initial or {})
    sizes = list(dict.fromkeys(ks))
    paths = {k: codebook_path(folder, domain, k, rate) for k in sizes}
    name = f"{domain}-r{rate}"
    checkpoints = folder / CHECKPOINT_FOLDER
    remove_stale_temporaries(folder)
    kept: dict[int, TrainedCodebook] = {}
    for k, path in paths.items():
        wanted = config_hash(source, k, config, given.get(k))
        if (old := _existing(path, wanted, overwrite)) is not None:
            kept[k] = TrainedCodebook(path, old, None)
            checkpoint_path(checkpoints, name, k, wanted).unlink(missing_ok=True)
    trained: dict[int, TrainedCodebook] = {}

    def save(result: FitResult) -> None:
        codebook = _codebook(result, source, config, domain)
        save_codebook(paths[result.k], codebook)
        trained[result.k] = TrainedCodebook(paths[result.k], codebook, result.seconds)

    if todo := [k for k in sizes if k not in kept]:
        fit_codebooks(
            source,
            todo,
            config,
            initial={k: given[k] for k in todo if k in given},
            checkpoint_dir=checkpoints,
            name=name,
            save=save,
            progress=progress,
        )
    return [(kept | trained)[k] for k in sizes]


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


def _codebook(result: FitResult, source: ShardSource, config: KMeansConfig, domain: str) -> Codebook:
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
            algorithm=f"{config.algorithm}{backend}",
            precision=config.precision,
            n_vectors=result.n_vectors,
            inertia_history=result.inertia_history,
            certificate=result.certificate,
        ),
    )


def load_first_centroids(path: Path, source: ShardSource) -> Vectors:
    """Read centroids (k, D) float32 to start from: a codebook or a `.npy` array.

    Raises:
        ValueError: it is neither, its vectors have another width, or a codebook is of another encoder or stack factor.
    """
    if path.suffix == ".npy":
        centroids = _load_array(path)
    else:
        codebook = load_codebook(path)
        info = codebook.metadata
        if (info.encoder_hash, info.stack_factor) != (source.encoder_hash, source.stack):
            raise ValueError(
                f"{path} is of encoder {info.encoder} ({info.encoder_hash}) and stack factor {info.stack_factor}, the "
                f"features are of {source.encoder} ({source.encoder_hash}) and {source.stack}"
            )
        centroids = codebook.centroids
    if centroids.ndim != 2 or centroids.shape[1] != source.dim or not np.isfinite(centroids).all():
        raise ValueError(f"{path} holds {centroids.shape}, not finite vectors of width {source.dim}")
    return centroids


def _load_array(path: Path) -> Vectors:
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
        return array.astype(np.float32)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not an array of numbers: {error}") from None
