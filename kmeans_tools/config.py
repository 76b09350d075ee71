"""Settings and results of a k-means fit."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt

from sctok.kernels.assign import PRECISIONS

from .seeding import SEEDINGS
from .sources import Vectors

ALGORITHMS = ("lloyd", "minibatch")
BACKENDS = ("auto", "torch", "faiss")
GIVEN = "given"  # seeding from centroids that the caller has
DEFAULT_ITERATIONS = {"lloyd": 25, "minibatch": 5}

_BLOCK_ELEMENTS = 1 << 24  # 64 MiB of float32
_BATCH_ROWS = 4096
_BLOCKS = 16  # of which the memory should hold so many: two are read, and what is made of one takes the rest


@dataclass(frozen=True)
class KMeansConfig:
    """How to fit. Every field but `device` and `memory` is part of what identifies a result.

    algorithm: "lloyd" (all vectors per iteration) or "minibatch" (running means over shuffled batches). backend:
    "auto" (PyTorch), "torch" or "faiss". precision: "exact" or "fp32"; the iterations of FAISS are always float32,
    the last pass, which counts, is as asked. seeding: "kmeans++", "random" or "given". iterations: updates of the
    centroids (lloyd) or passes over the data (minibatch) at most; None is 25 and 5. tol: stop when the inertia falls
    by less than this share. max_points_per_centroid: iterate on a random part of k times as many vectors; the last
    pass sees all. block_rows: vectors in memory at a time, None is 64 MiB of them (lloyd) or at most 4096 (minibatch).
    memory: bytes for vectors, caches and state per vector, beside the centroids; None for half of what is free in
    caches, which are no part of the result, and no other bound. A small one makes blocks and the sample smaller.

    Raises:
        ValueError: a value outside its range, named.
    """

    algorithm: str = "lloyd"
    backend: str = "auto"
    device: str = "auto"
    precision: str = "exact"
    seeding: str = "kmeans++"
    iterations: int | None = None
    tol: float = 1e-5
    seed: int = 0
    max_points_per_centroid: int | None = None
    block_rows: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("algorithm", ALGORITHMS),
            ("backend", BACKENDS),
            ("precision", PRECISIONS),
            ("seeding", (*SEEDINGS, GIVEN)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        for name in ("iterations", "max_points_per_centroid", "block_rows", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is not positive")
        if not (0 <= self.tol < 1):
            raise ValueError(f"tol {self.tol} is not in [0, 1)")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")

    @property
    def most_iterations(self) -> int:
        """`iterations`, or the default of the algorithm."""
        return self.iterations or DEFAULT_ITERATIONS[self.algorithm]

    def ordered_rows(self, dim: int) -> int:
        """Return the vectors (D = dim) per block of a pass in order."""
        elements = _BLOCK_ELEMENTS if self.memory is None else min(_BLOCK_ELEMENTS, self.memory // _BLOCKS // 4)
        return self.block_rows or max(256, min(65_536, elements // dim))

    def batch_rows(self, rows: int) -> int:
        """Return the vectors per mini-batch of a source of so many: about sixteen batches, of 256 to 4096."""
        return self.block_rows or max(256, min(_BATCH_ROWS, rows // 16))

    def identity(self) -> dict[str, Any]:
        """Return as JSON what decides the result."""
        values = {name: value for name, value in asdict(self).items() if name not in ("device", "memory")}
        return {**values, "backend": self.backend.replace("auto", "torch"), "iterations": self.most_iterations}


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted codebook: centroids float32 (k, D), and of all n_vectors vectors the counts int64 (k,).

    Of weighted vectors the counts are sums of weights, float64, and the inertia is weighted.
    Counts, inertia (the sum of squared distances) and certificate belong to these centroids. inertia_history: before
    each update, scaled to n_vectors where the iterations saw a part of them, and last the final one. config_hash:
    of settings and data. seconds: spent here, less than in all after an interruption.
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

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)
