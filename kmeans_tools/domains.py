"""Codebooks of several domains in one call: what `sctok cluster --domain all --k paper` does."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sctok.formats.codebooks import MERGED_DOMAIN
from sctok.kmeans_tools.sources.vectors import ShardSource, TooFewVectorsError
from sctok.runtime.distributed import ALONE, Group

from .config import KMeansConfig
from .fit import Progress
from .merging import PAPER_RATIO
from .training import TrainedCodebook, find_feature_shards, load_first_centroids, train_codebooks

PAPER_CODEBOOKS = (1024, 2048, 4096, 8192, 16_384)  # the sizes per domain, SemantiCodec paper, section 4

Reporter = Callable[[str, ShardSource], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class DomainResult:
    """The codebooks of one domain, in the order of the sizes that were asked for, or the error that kept it from them.

    n_vectors and encoder are of its features, 0 and "" where they cannot be read.
    """

    domain: str
    codebooks: tuple[TrainedCodebook, ...] = ()
    n_vectors: int = 0
    encoder: str = ""
    error: ValueError | OSError | None = None


@dataclass(frozen=True)
class DomainPlan:
    """What to train for every domain.

    stack: patches per vector, 1, 2 or 4. sizes: numbers of centroids. folder: where the codebooks go. first: a codebook
    or `.npy` file to start from, with as many centroids as the only size. overwrite: replace codebooks made otherwise.
    origin: where the features came from, noted in the certificates.
    """

    stack: int
    sizes: tuple[int, ...]
    config: KMeansConfig
    folder: Path
    first: Path | None = None
    overwrite: bool = False
    origin: Mapping[str, Any] | None = None


def find_domains(features: Path) -> list[str]:
    """Return the names of the folders that hold feature shards: the paper's domains first, the others by name.

    Raises:
        ValueError: there are none, saying how to make them.
    """
    found = {path.parent.name for path in features.glob("*/*.h5") if path.is_file()} - {MERGED_DOMAIN}
    if not found:
        raise ValueError(f"{features} has no features; run `sctok extract AUDIO… --domain NAME` first")
    return [domain for domain in PAPER_RATIO if domain in found] + sorted(found - PAPER_RATIO.keys())


def train_domains(
    folders: Mapping[str, Path], plan: DomainPlan, report: Reporter, group: Group = ALONE
) -> list[DomainResult]:
    """Train the codebooks of each domain on the feature shards in its folder, one domain after the other.

    The sizes of a domain share every pass over its vectors. One that fails does not keep the others from finishing:
    its error is in its result. report: called on rank 0 with domain and features, gives what shows the progress.
    group: the ranks that share the work; all return the same, rank 0 writes the files. In a group an error that other
    ranks may not have is raised at once.
    """
    results = []
    for domain, features in folders.items():
        source: ShardSource | None = None
        try:
            source = ShardSource(find_feature_shards(features, domain), plan.stack)
            books = _train(domain, source, plan, report, group)
            results.append(DomainResult(domain, tuple(books), source.rows, source.encoder))
        except (ValueError, OSError) as error:
            if group.world > 1 and not isinstance(error, TooFewVectorsError):
                raise
            rows, encoder = (source.rows, source.encoder) if source else (0, "")
            results.append(DomainResult(domain, (), rows, encoder, error))
    return results


def _train(
    domain: str, source: ShardSource, plan: DomainPlan, report: Reporter, group: Group
) -> Sequence[TrainedCodebook]:
    initial = {}
    if plan.first is not None:
        first = load_first_centroids(plan.first, source)
        initial = {len(first): first}
    try:
        with report(domain, source) if group.leads else nullcontext() as progress:
            return train_codebooks(
                source,
                plan.sizes,
                plan.config,
                domain=domain,
                folder=plan.folder,
                initial=initial,
                overwrite=plan.overwrite,
                origin=plan.origin,
                progress=progress,
                group=group,
            )
    except TooFewVectorsError as error:
        fitting = ", ".join(str(k) for k in plan.sizes if k <= error.most) or "none"
        raise TooFewVectorsError(f"{error}; of the sizes asked for {domain} these fit: {fitting}", error.most) from None
