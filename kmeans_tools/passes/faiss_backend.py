"""FAISS as a backend: nearest centroids with IndexFlatL2, on a GPU if FAISS can use one, and SuperKMeans."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances
from sctok.kmeans_tools.sources.vectors import Vectors

SUPERKMEANS = "faiss-superkmeans"
_SUPERKMEANS_POINTS = 256  # training vectors per centroid by default, as in FAISS
_SUPERKMEANS_SMALLEST_DIM = 32


def require_faiss(superkmeans: bool = False) -> Any:
    """Return the faiss module. Raises ImportError saying how to install it, or how to get SuperKMeans if required."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS is missing: install sctok[cpu] (or sctok[gpu]) for --backend faiss, or use --backend torch"
        ) from error
    if superkmeans and not hasattr(faiss, "SuperKMeans"):
        raise ImportError(
            f"FAISS {faiss.__version__} has no SuperKMeans: install faiss-cpu>=1.15 for --backend faiss-superkmeans"
        )
    return faiss


class FaissAssigner:
    """Assigns points to fixed centroids (k, D) float32 with a flat FAISS index, in float32 and without a proof."""

    def __init__(self, centroids: Tensor) -> None:
        faiss = require_faiss()
        self.centroids = centroids
        index = faiss.IndexFlatL2(centroids.shape[1])
        if faiss_gpus():
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, centroids.device.index or 0, index)
        index.add(centroids.cpu().numpy())
        self._index = index

    def __call__(self, points: Tensor) -> Assignment:
        """Return the labels and squared distances of points (n, D) float32."""
        _, found = self._index.search(points.cpu().numpy(), 1)
        labels = torch.from_numpy(found[:, 0]).to(points.device)
        return Assignment(labels, label_distances(points, self.centroids, labels), 0)


def faiss_gpus() -> int:
    """Return the number of GPUs that the installed FAISS can use."""
    faiss = require_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def superkmeans_sample_size(k: int, dim: int, rows: int, points: int | None, memory: int | None) -> int:
    """Return the number of vectors (D = dim, float32) to train k centroids on: `points` per centroid, by default 256.

    They take at most a third of `memory` bytes, because SuperKMeans rotates and rearranges copies, but at least k.
    """
    wanted = k * (points or _SUPERKMEANS_POINTS)
    return min(rows, wanted if memory is None else max(k, min(wanted, memory // 3 // (4 * dim))))


def train_superkmeans(vectors: Vectors, k: int, iterations: int, seed: int) -> tuple[Vectors, list[float]]:
    """Train k centroids on n >= k vectors (n, D) float32 with the SuperKMeans of FAISS, which uses all of them.

    Returns the centroids (k, D) float32, and the inertia before each update as FAISS reports it. The pruning is
    probabilistic: the centroids differ from those of exact Lloyd steps. It needs memory for a copy of the vectors.

    Raises:
        ValueError: D is below 32.
        ImportError: FAISS is missing or has no SuperKMeans.
    """
    faiss = require_faiss(superkmeans=True)
    rows, dim = vectors.shape
    if dim < _SUPERKMEANS_SMALLEST_DIM:
        raise ValueError(
            f"SuperKMeans of FAISS needs vectors of width {_SUPERKMEANS_SMALLEST_DIM} or more, not {dim}; use "
            "--backend torch or faiss"
        )
    parameters = faiss.SuperKMeansParameters()
    parameters.niter, parameters.seed = iterations, seed % 2**31
    parameters.max_points_per_centroid = -(-rows // k)
    parameters.min_points_per_centroid = 1
    found = faiss.SuperKMeans(dim, k, parameters)
    found.train(np.ascontiguousarray(vectors))
    centroids = faiss.vector_to_array(found.centroids).reshape(k, dim).astype(np.float32)
    stats = found.iteration_stats
    return centroids, [float(stats.at(i).obj) for i in range(stats.size())]
