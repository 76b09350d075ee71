"""Settings and results of a k-means fit."""

from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.kernels.assign import PRECISIONS
from sctok.kmeans_tools.passes.faiss_backend import SUPERKMEANS
from sctok.kmeans_tools.seeding.first_centroids import SEEDINGS
from sctok.kmeans_tools.sources.vectors import Vectors

AUTO = "auto"
ALGORITHMS = (AUTO, "lloyd", "minibatch")
BACKENDS = ("auto", "torch", "faiss", SUPERKMEANS)
GIVEN = "given"  # seeding from centroids that the caller has
DEFAULT_ITERATIONS = {AUTO: 25, "lloyd": 25, "minibatch": 5}
DEFAULT_TOL = {AUTO: 1e-4, "lloyd": 1e-5, "minibatch": 1e-4}

_BLOCK_ELEMENTS = 1 << 24  # 64 MiB of float32
_HIERARCHICAL_CENTROIDS = 16  # from which "auto" seeds so: fewer have no two levels
_ENOUGH_PER_CENTROID = 1024  # more vectors than this leave mini-batches enough of them
_LARGE_BYTES = 1 << 37  # of float32 vectors, without a bound on memory
_LARGE_IN_MEMORIES = 16
_BLOCKS = 16  # of which the memory should hold so many: two are read, and what is made of one takes the rest


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class KMeansConfig:
    """How to fit. Every field but `device` and `memory` is part of what identifies a result.

    algorithm: "lloyd" (all vectors per iteration), "minibatch" (nested batches that grow) or "auto": mini-batches
    where there are more than 1024 vectors per centroid and, as float32, they take more than 16 times `memory` (None:
    128 GiB in all), else Lloyd. backend: "auto" (PyTorch), "torch", "faiss" (its flat index assigns) or
    "faiss-superkmeans" (which seeds and iterates by itself, on a sample in memory). precision: "exact" or "fp32"; the
    iterations of FAISS are always float32, the last pass, which counts, is as asked. seeding: "hierarchical",
    "kmeans++", "random", "given" or "auto": k-means++ below 16 centroids, else hierarchical. iterations: updates of
    the centroids (lloyd) or passes over all the data that the batches amount to (minibatch) at most; None is 25 and 5.
    tol: stop when the inertia falls by less than this share; None is 1e-5 for "lloyd", else 1e-4, which after a good
    seeding is a few iterations. max_points_per_centroid: iterate on a random part of k times as many vectors; the
    last pass sees all. block_rows: vectors in memory at a time, None is 64 MiB of them; also those of the first
    mini-batch, None is 4096, or 16 per centroid if that is more.
    memory: bytes for vectors, caches and state per vector, beside the centroids; None for half of what is free in
    caches, which are no part of the result, and no other bound. A small one makes blocks and the sample smaller.

    Raises:
        ValueError: a value outside its range, named.
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
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
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
        """`iterations`, or the default of the algorithm."""
        return self.iterations or DEFAULT_ITERATIONS[self.algorithm]

    def ordered_rows(self, dim: int) -> int:
        """Return the vectors (D = dim) per block of a pass in order."""
        elements = _BLOCK_ELEMENTS if self.memory is None else min(_BLOCK_ELEMENTS, self.memory // _BLOCKS // 4)
        return self.block_rows or max(256, min(65_536, elements // dim))

    @property
    def tolerance(self) -> float:
        """`tol`, or the default of the algorithm."""
        return DEFAULT_TOL[self.algorithm] if self.tol is None else self.tol

    def resolved(self, rows: int, dim: int, k: int) -> "KMeansConfig":
        """Return these settings with what "auto" and None mean for k centroids of so many vectors (D = dim)."""
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
        """Return as JSON what decides the result; of settings that were resolved."""
        return {name: value for name, value in asdict(self).items() if name not in ("device", "memory")}


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted codebook: centroids float32 (k, D), and of all n_vectors vectors the counts int64 (k,).

    Of weighted vectors the counts are sums of weights, float64, and the inertia is weighted.
    Counts, inertia (the sum of squared distances) and certificate belong to these centroids. inertia_history: before
    each update, scaled to n_vectors where the iterations saw a part of them, and last the final one. config_hash: of
    settings and data, empty where nothing is kept or saved. seconds: spent here, less than in all after an
    interruption. labels: (n_vectors,) int32, if they were asked for. assigned: vectors of each pass that had to be
    compared with the centroids, in part where it was with a part of them; the others were known to stay where they are.
    rescored, kept: vectors of the final pass that float64 decided, and that kept their label by their bounds. Of all
    fields only `assigned`, `rescored`, `kept` and `seconds` depend on where a fit was interrupted.
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
