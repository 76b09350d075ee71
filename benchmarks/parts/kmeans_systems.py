"""Data sets and systems of benchmarks/kmeans.py: how each finds nearest centroids, and how each clusters.

An assigner takes points (n, D) and centroids (k, D), float32, and may prepare something once per data set. It returns a
function without arguments that returns labels (n,). A curve clusters vectors (n, D) into k. After each step it yields
the seconds since its start, including seeding, and its centroids (k, D). The clock stops between two steps.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sctok.corpus.extraction import ExtractionConfig, extract_features
from sctok.features.extractor import load_encoder
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kernels.assign import nearest_centroid
from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.progress import FitEvent, PassFinished, RowsRead
from sctok.kmeans_tools.seeding.first_centroids import draw_sample
from sctok.kmeans_tools.sources.vectors import ArraySource, ShardSource

DIM, LATENT, STACK = 768, 64, 4
OURS = "sctok"
LADDER = (1, 2, 4, 8, 12)  # iterations of systems that report only at their end
PASSES = 25  # iterations of sctok
CHAINED = 10  # iterations of systems that continue from given centroids, and of scikit-learn
HIERARCHICAL = ((1, 1, 0), (3, 5, 0), *((3, 5, steps) for steps in (1, 2, 4, 8)))  # coarse, fine, refinement
DEADLINE = 900.0  # seconds after which a system takes no further step on its curve

_FEW_CENTROIDS = 160  # superkmeans warns below 129
_GEMM_ROWS = 1024  # 32 MiB of scores at k = 8192: the fastest of 256 to 4096
_BROADCAST_ROWS = 8  # kmeans-pytorch materialises rows x k x D

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]
Assigner = Callable[[Vectors, Vectors, int], Callable[[], Labels]]
Curve = Callable[[Vectors, int, int, int], Iterator[tuple[float, Vectors]]]


@dataclass(frozen=True)
class System:
    """One peer, with the names that pip installs and Python imports.

    rows: number of points to measure, None for all. assign(points, centroids, threads) and curve(vectors, k, seed,
    threads): as in the module's docstring, or None. bytes_per_distance: memory that a peer without a curve would need
    per pair of vector and centroid.
    """

    name: str
    package: str
    module: str
    assign: Assigner | None
    curve: Curve | None
    rows: int | None = None
    bytes_per_distance: int = 0

    @property
    def version(self) -> str | None:
        """Version of the installed package, or None."""
        if importlib.util.find_spec(self.module) is None:
            return None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.package)
        return "unknown"


def set_threads(threads: int) -> None:
    """Set the threads of PyTorch, FAISS, Numba and every loaded BLAS and OpenMP runtime.

    Peers are imported first, to include the libraries in their wheels.
    """
    for system in PEERS:
        if system.version is not None:
            importlib.import_module(system.module)
    torch.set_num_threads(threads)
    for module, setter in (
        ("numba", "set_num_threads"),
        ("faiss", "omp_set_num_threads"),
        ("threadpoolctl", "threadpool_limits"),
    ):
        if importlib.util.find_spec(module) is not None:
            getattr(importlib.import_module(module), setter)(threads)


def lowrank(rows: int, seed: int = 0) -> Vectors:
    """Return (rows, 768) float32: 64 latent dimensions with scales 3 to 0.2, noise of 0.3 and an offset."""
    rng = np.random.default_rng(seed)
    loading = np.linalg.qr(rng.standard_normal((DIM, LATENT)))[0].T * np.geomspace(3, 0.2, LATENT)[:, None]
    vectors = rng.standard_normal((rows, DIM), dtype=np.float32) * np.float32(0.3)
    vectors += rng.standard_normal((rows, LATENT), dtype=np.float32) @ loading.astype(np.float32)
    vectors += rng.standard_normal(DIM, dtype=np.float32)
    return vectors


def isotropic(rows: int, seed: int = 1) -> Vectors:
    """Return (rows, 768) float32 standard normal values, without structure for shortcuts."""
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def real_features(folder: Path, rows: int) -> Vectors:
    """Return at most `rows` stacked vectors of the feature shards below a folder, in random order."""
    source = ShardSource(sorted(folder.rglob("*.h5")), STACK)
    vectors, _ = draw_sample(source, rows, (0,))
    return vectors[np.random.default_rng(2).permutation(len(vectors))]


def bundled_features(rows: int) -> Vectors:
    """Return the features of the bundled clips, a few thousand vectors."""
    with as_file(files("sctok.samples")) as clips, tempfile.TemporaryDirectory() as folder:
        extract_features([clips], Path(folder), partial(load_encoder, "mini"), ExtractionConfig("bundled"))
        return real_features(Path(folder), rows)


def exact_inertia(vectors: Vectors, centroids: Vectors) -> float:
    """Return the sum over all vectors of the squared distance to the nearest centroid."""
    given = torch.from_numpy(np.ascontiguousarray(centroids, np.float32))
    return float(nearest_centroid(torch.from_numpy(vectors), given).distances.to(torch.float64).sum())


def write_shards(folder: Path, rows: int) -> int:
    """Write a feature set of `rows` stacked vectors, 4,000 per clip, and return its bytes."""
    folder.mkdir(parents=True)
    rows -= rows % STACK  # whole pairs of columns
    with FeatureShardWriter(
        folder / "00000.h5", width=DIM // STACK, provenance={"encoder": "generated", "encoder_hash": "0"}
    ) as writer:
        for index, start in enumerate(range(0, rows, 4_000)):
            block = lowrank(min(4_000, rows - start), seed=100 + index)
            writer.add_clip(f"clip-{index}", block.reshape(-1, DIM // STACK), 16_000)
    return rows * DIM * 2


def sctok_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with sctok. The preparation of the centroids is part of every call."""
    return lambda: nearest_centroid(torch.from_numpy(points), torch.from_numpy(centroids)).labels.numpy()


def sctok_curve(vectors: Vectors, k: int, seed: int) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Return (seconds, inertia) of sctok after seeding and after every pass, and checks of the whole run.

    The first point is the draft that the callback gets during seeding, evaluated afterwards. A pass reports the inertia
    of the centroids that it started with, which existed at the end of the previous pass. The checks compare the
    reported inertia with a separate evaluation after the first and the last pass.
    """
    seconds: list[float] = []
    inertia: list[float] = []
    started = time.perf_counter()

    def progress(event: FitEvent) -> None:
        if not isinstance(event, RowsRead):
            seconds.append(time.perf_counter() - started)
        if isinstance(event, PassFinished):
            inertia.append(event.inertia)

    drafts: list[tuple[float, Vectors]] = []

    def draft(_: int, centroids: Vectors) -> None:
        drafts.append((time.perf_counter() - started, centroids))

    result = _fit(vectors, k, seed, PASSES, FitContext(progress=progress, draft=draft))
    whole = time.perf_counter() - started
    after_one = exact_inertia(vectors, _fit(vectors, k, seed, 1).centroids)
    exact = exact_inertia(vectors, result.centroids)
    curve = list(zip(seconds, inertia, strict=False))
    errors = [abs(result.inertia - exact) / exact, abs(curve[1][1] - after_one) / after_one]
    early = [(at, exact_inertia(vectors, centroids)) for at, centroids in drafts]
    return early + curve, {"whole_call": whole, "final_inertia": result.inertia, "inertia_error": max(errors)}


def _fit(vectors: Vectors, k: int, seed: int, iterations: int, context: FitContext | None = None) -> FitResult:
    config = KMeansConfig(seed=seed, iterations=iterations, tol=0, device="cpu")
    return fit_codebooks(ArraySource(vectors), [k], config, context)[k]


def gemm_labels(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return the argmin (n,) int64 of |c|^2 - 2 x.c in float32, in blocks of rows."""
    squares, operand = centroids.square().sum(dim=1), (centroids * -2).T
    blocks = points.split(_GEMM_ROWS)
    return torch.cat([torch.mm(block, operand).add_(squares).min(dim=1).indices for block in blocks])


def pytorch_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with a matrix product and an argmin."""
    return lambda: gemm_labels(torch.from_numpy(points), torch.from_numpy(centroids)).numpy()


def pytorch_centred_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign as above after subtracting the mean of the centroids, which keeps more digits."""

    def labels() -> Labels:
        given = torch.from_numpy(centroids)
        mean = given.mean(dim=0)
        return gemm_labels(torch.from_numpy(points) - mean, given - mean).numpy()

    return labels


def pytorch_curve(vectors: Vectors, k: int, seed: int, threads: int) -> Iterator[tuple[float, Vectors]]:
    """Run plain Lloyd from random vectors, with the matrix product above and sums by index_add_."""
    started, outside = time.perf_counter(), 0.0
    points = torch.from_numpy(vectors)
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:k]
    centroids = points[chosen]
    for _ in range(CHAINED):
        labels = gemm_labels(points, centroids)
        counts = torch.bincount(labels, minlength=k)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = torch.where(counts > 0, sums / counts, centroids)
        paused = time.perf_counter()
        yield paused - started - outside, centroids.numpy()
        outside += time.perf_counter() - paused


def sklearn_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with KMeans.predict of a model with these centroids."""
    from sklearn.cluster import KMeans

    model = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    model.cluster_centers_ = centroids
    return lambda: model.predict(points)


def sklearn_argmin_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with pairwise_distances_argmin, whose products are float64."""
    from sklearn.metrics import pairwise_distances_argmin

    return lambda: pairwise_distances_argmin(points, centroids)


def sklearn_curve(vectors: Vectors, k: int, seed: int, threads: int) -> Iterator[tuple[float, Vectors]]:
    """Run Lloyd from random vectors. The default k-means++ takes longer than all iterations together."""
    from sklearn.cluster import KMeans

    for iterations in [step for step in LADDER if step <= CHAINED]:
        model = KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0, random_state=seed)
        started = time.perf_counter()
        with _quiet():
            model.fit(vectors)
        yield time.perf_counter() - started, model.cluster_centers_


def faiss_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with the flat index of faiss.Kmeans and faiss.SuperKmeans."""
    import faiss

    def labels() -> Labels:
        index = faiss.IndexFlatL2(centroids.shape[1])
        index.add(centroids)
        return index.search(points, 1)[1][:, 0]

    return labels


def faiss_curve(vectors: Vectors, k: int, seed: int, threads: int) -> Iterator[tuple[float, Vectors]]:
    """Run one call per iteration from the previous centroids. The result is that of one long call."""
    import faiss

    seconds, centroids = 0.0, None
    for _ in range(CHAINED):
        # min_points_per_centroid only controls a warning.
        started = time.perf_counter()
        model = faiss.Kmeans(vectors.shape[1], k, niter=1, seed=seed, min_points_per_centroid=1)
        model.train(vectors, init_centroids=centroids)
        seconds += time.perf_counter() - started
        centroids = model.centroids.copy()
        yield seconds, centroids


def faiss_superkmeans_curve(vectors: Vectors, k: int, seed: int, threads: int) -> Iterator[tuple[float, Vectors]]:
    """Run once for each number of iterations, because it cannot continue from given centroids."""
    import faiss

    for iterations in LADDER:
        model = faiss.SuperKmeans(vectors.shape[1], k, niter=iterations, seed=seed, min_points_per_centroid=1)
        started = time.perf_counter()
        model.train(vectors)
        yield time.perf_counter() - started, model.centroids


def superkmeans_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign with its exact float32 search. The pruned search works only on its training vectors."""
    import superkmeans

    model = superkmeans.SuperKMeans(len(centroids), centroids.shape[1], n_threads=threads)
    return lambda: model.assign(points, centroids)


def _superkmeans(vectors: Vectors, k: int, seed: int, threads: int, **options: Any) -> tuple[float, Vectors]:
    import superkmeans

    started = time.perf_counter()
    model = superkmeans.SuperKMeans(
        k,
        vectors.shape[1],
        n_threads=threads,
        seed=seed,
        sampling_fraction=1.0,
        early_termination=False,
        **options,
    )
    centroids = np.array(model.train(vectors), np.float32)
    return time.perf_counter() - started, centroids


def superkmeans_curve(vectors: Vectors, k: int, seed: int, threads: int) -> Iterator[tuple[float, Vectors]]:
    """Run flat on all vectors (its default is 30 % of them), once for each number of iterations."""
    for iterations in LADDER:
        yield _superkmeans(vectors, k, seed, threads, hierarchical=False, iters=iterations)


def superkmeans_hierarchical_curve(
    vectors: Vectors, k: int, seed: int, threads: int
) -> Iterator[tuple[float, Vectors]]:
    """Run hierarchically with least effort, with the default, and with more and more refinement."""
    for coarse, fine, refinement in HIERARCHICAL:
        yield _superkmeans(
            vectors,
            k,
            seed,
            threads,
            hierarchical=True,
            iters_mesoclustering=coarse,
            iters_fineclustering=fine,
            iters_refinement=refinement,
        )


def kmeans_pytorch_assign(points: Vectors, centroids: Vectors, threads: int) -> Callable[[], Labels]:
    """Assign a few rows at a time, because kmeans_predict materialises rows x k x D."""
    from kmeans_pytorch import kmeans_predict

    given = torch.from_numpy(centroids)

    def labels() -> Labels:
        with contextlib.redirect_stdout(io.StringIO()):
            return torch.cat(
                [kmeans_predict(b, given) for b in torch.from_numpy(points).split(_BROADCAST_ROWS)]
            ).numpy()

    return labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warning that a shortened fit has not converged."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


PEERS = (
    System("pytorch", "torch", "torch", pytorch_assign, pytorch_curve),
    System("pytorch-centred", "torch", "torch", pytorch_centred_assign, None),
    System("scikit-learn", "scikit-learn", "sklearn", sklearn_assign, sklearn_curve),
    System("scikit-learn-argmin", "scikit-learn", "sklearn", sklearn_argmin_assign, None),
    System("faiss", "faiss-cpu", "faiss", faiss_assign, faiss_curve),
    System("faiss-superkmeans", "faiss-cpu", "faiss", None, faiss_superkmeans_curve),
    System("superkmeans", "superkmeans", "superkmeans", superkmeans_assign, superkmeans_curve),
    System("superkmeans-hierarchical", "superkmeans", "superkmeans", None, superkmeans_hierarchical_curve),
    System(
        "kmeans-pytorch",
        "kmeans-pytorch",
        "kmeans_pytorch",
        kmeans_pytorch_assign,
        None,
        rows=32,
        bytes_per_distance=4 * DIM,
    ),
)


def peer_curve(system: System, vectors: Vectors, k: int, seed: int, threads: int) -> list[tuple[float, float]]:
    """Return (seconds, inertia) of a peer's centroids after each of its steps, until the deadline."""
    assert system.curve is not None
    points, started = [], time.perf_counter()
    for seconds, centroids in system.curve(vectors, k, seed, threads):
        points.append((seconds, exact_inertia(vectors, centroids)))
        if time.perf_counter() - started > DEADLINE:
            break
    return points


def warm_up(systems: Sequence[System], few: Vectors, threads: int) -> None:
    """Run one step of every system, so that loading and compilation are not timed."""
    sctok_curve(few, _FEW_CENTROIDS, 0)
    for system in systems:
        assert system.curve is not None
        next(iter(system.curve(few, _FEW_CENTROIDS, 0, threads)))
