"""Settings, context and results of a k-means fit."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.kernels.assign import PRECISIONS
from sctok.kmeans_tools.passes.faiss_backend import SUPERKMEANS
from sctok.kmeans_tools.seeding.first_centroids import SEEDINGS
from sctok.kmeans_tools.sources.vectors import Vectors
from sctok.runtime.distributed import ALONE, Group

from .progress import FitProgress

AUTO = "auto"
ALGORITHMS = (AUTO, "lloyd", "minibatch")
BACKENDS = ("auto", "torch", "faiss", SUPERKMEANS)
GIVEN = "given"  # seeding with centroids that the caller provides
DEFAULT_ITERATIONS = {AUTO: 25, "lloyd": 25, "minibatch": 5}
DEFAULT_TOL = {AUTO: 1e-4, "lloyd": 1e-5, "minibatch": 1e-4}

_BLOCK_ELEMENTS = 1 << 24  # 64 MiB of float32
_HIERARCHICAL_CENTROIDS = 16  # "auto" seeds hierarchically from this k; a smaller k has no two levels
_ENOUGH_PER_CENTROID = 1024  # with more vectors than this per centroid, mini-batches are large enough
_LARGE_BYTES = 1 << 37  # size of float32 vectors from which "auto" uses mini-batches if memory is unbounded
_LARGE_IN_MEMORIES = 16  # the same as a multiple of `memory`
_BLOCKS = 16  # blocks that fit the memory: two are read at a time, and intermediate results take the rest


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class KMeansConfig:
    """Settings of a fit. All fields except `device` and `memory` are part of the configuration hash.

    algorithm: "lloyd" (every iteration uses all vectors), "minibatch" (nested batches that grow) or "auto". "auto"
    uses mini-batches if there are more than 1024 vectors per centroid and the vectors, as float32, take more than 16
    times `memory` (if `memory` is None: more than 128 GiB).
    backend: "auto" (PyTorch), "torch", "faiss" (its flat index assigns the vectors) or "faiss-superkmeans" (seeds and
    iterates on a sample in memory).
    precision: "exact" or "fp32". FAISS iterates in float32; the final pass always has the requested precision.
    seeding: "hierarchical", "kmeans++", "random", "given" or "auto": k-means++ below 16 centroids, else hierarchical.
    iterations: maximum number of centroid updates (lloyd) or of passes over all vectors that the batches add up to
    (minibatch). None is 25 for lloyd and 5 for minibatch.
    tol: stop if the inertia falls by less than this share. None is 1e-5 for "lloyd", else 1e-4.
    max_points_per_centroid: iterate on a random sample of k times this number of vectors; the final pass uses all.
    block_rows: vectors in memory at a time, by default 64 MiB of them. For mini-batches also the size of the first
    batch, by default the larger of 4096 and 16 per centroid.
    memory: bytes for vectors, caches and per-vector state, in addition to the centroids. A small value reduces the
    blocks and the seeding sample. None does not bound blocks and sample; caches then use half of the free memory, and
    do not change the result.

    Raises:
        ValueError: a value is out of range; the error names it.
    """

    algorithm: str = AUTO
    backend: str = "auto"
    device: str = "auto"
    precision: str = "exact"
    seeding: str = AUTO
    iterations: int | None = None
    tol: float | None = None
    seed: int = 0
    max_points_per_centroid: int | None = None
    block_rows: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("algorithm", ALGORITHMS),
            ("backend", BACKENDS),
            ("precision", PRECISIONS),
            ("seeding", (AUTO, *SEEDINGS, GIVEN)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("iterations", "max_points_per_centroid", "block_rows", "memory"):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise ValueError(f"{name} {value!r} is not a positive whole number")
        if self.tol is not None and not (isinstance(self.tol, Real) and 0 <= self.tol < 1):
            raise ValueError(f"tol {self.tol!r} is not a number in [0, 1)")
        if not (_is_whole(self.seed) and self.seed >= 0):
            raise ValueError(f"seed {self.seed!r} is not a whole number of at least 0")

    @property
    def most_iterations(self) -> int:
        """Maximum number of iterations: `iterations`, or the default of the algorithm."""
        return self.iterations or DEFAULT_ITERATIONS[self.algorithm]

    def rows_per_block(self, dim: int) -> int:
        """Return the number of vectors (D = dim) in a block."""
        elements = _BLOCK_ELEMENTS if self.memory is None else min(_BLOCK_ELEMENTS, self.memory // _BLOCKS // 4)
        return self.block_rows or max(256, min(65_536, elements // dim))

    @property
    def tolerance(self) -> float:
        """Tolerance: `tol`, or the default of the algorithm."""
        return DEFAULT_TOL[self.algorithm] if self.tol is None else self.tol

    def resolved(self, rows: int, dim: int, k: int) -> "KMeansConfig":
        """Replace "auto" and None by the values for k centroids of `rows` vectors (D = dim)."""
        large = _LARGE_BYTES if self.memory is None else _LARGE_IN_MEMORIES * self.memory
        batches = rows > _ENOUGH_PER_CENTROID * k and 4 * rows * dim > large
        algorithm = self.algorithm.replace(AUTO, "minibatch" if batches else "lloyd")
        return replace(
            self,
            algorithm=algorithm,
            backend=self.backend.replace(AUTO, "torch"),
            seeding=self.seeding.replace(AUTO, "hierarchical" if k >= _HIERARCHICAL_CENTROIDS else "kmeans++"),
            tol=self.tolerance,
            iterations=self.iterations or DEFAULT_ITERATIONS[algorithm],
        )

    def identity(self) -> dict[str, Any]:
        """Return the fields that determine the result, as JSON. Call it on resolved settings."""
        return {name: value for name, value in asdict(self).items() if name not in ("device", "memory")}


FitCallback = Callable[["FitResult"], None]
DraftCallback = Callable[[int, Vectors], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class FitContext:
    """The surroundings of a fit: first centroids, checkpoints, callbacks and ranks. Only `initial` changes the result.

    initial: first centroids (k, D) for each k, for seeding "given".
    checkpoint_dir: folder of the checkpoints `<name>-<k>-<config hash>.safetensors`, which are replaced after every
    pass and removed after the result is saved. The same call after an interruption resumes from them and gives the
    same bits on the same device.
    save: called with each result as soon as it is complete.
    progress: called with the events of `sctok.kmeans_tools.progress`.
    draft: called with k and preliminary centroids (k, D) that hierarchical seeding has before it ends.
    return_labels: keep the label of every vector in the result, 4 bytes each.
    group: the ranks that share the work. All ranks make the same call and get the same result; each reads its own part
    of the vectors and calls `save` and `progress`. Rank 0 reads and writes the checkpoints.
    """

    initial: Mapping[int, Vectors] = field(default_factory=dict)
    checkpoint_dir: Path | None = None
    name: str = "kmeans"
    save: FitCallback | None = None
    progress: FitProgress | None = None
    draft: DraftCallback | None = None
    return_labels: bool = False
    group: Group = ALONE


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted codebook: centroids float32 (k, D), and counts int64 (k,) over all n_vectors vectors.

    For weighted vectors the counts are sums of weights, float64, and the inertia is weighted.
    inertia: sum of squared distances. inertia_history: the inertia before each update, scaled to n_vectors if the
    iteration used a part of the vectors; its last value is `inertia`.
    certificate: quality measures as JSON, see `codebook_certificate`. config_hash: hash of settings and data, empty if
    the fit neither saves results nor writes checkpoints. seconds: time spent in this process.
    labels: (n_vectors,) int32, if requested. assigned: for each pass the number of vectors that were compared with the
    centroids; a comparison with some of the centroids counts in part. The other vectors kept their label by bounds.
    rescored, kept: vectors of the final pass that needed float64, and that kept their label by bounds. After an
    interruption only `assigned`, `rescored`, `kept` and `seconds` can differ.
    """

    centroids: Vectors
    counts: npt.NDArray[Any]
    inertia: float
    inertia_history: tuple[float, ...]
    iterations: int
    converged: bool
    n_vectors: int
    certificate: dict[str, Any]
    config_hash: str
    seconds: float
    labels: npt.NDArray[np.int32] | None = None
    assigned: tuple[int, ...] = ()
    rescored: int = 0
    kept: int = 0

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)
