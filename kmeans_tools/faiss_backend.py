"""Nearest centroids through FAISS: IndexFlatL2, on its GPU where faiss-gpu finds one."""

from typing import Any

import torch
from torch import Tensor

from sctok.kernels.assign import Assignment, label_distances


def require_faiss() -> Any:
    """Return the faiss module. Raises ImportError saying how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS is missing: install sctok[cpu] (or sctok[gpu]) for --backend faiss, or use --backend torch"
        ) from error
    return faiss


class FaissAssigner:
    """Assigns points to fixed centroids (k, D) float32 with a flat FAISS index, in float32 without a certificate."""

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
        """Return labels and squared distances of points (n, D) float32."""
        _, found = self._index.search(points.cpu().numpy(), 1)
        labels = torch.from_numpy(found[:, 0]).to(points.device)
        return Assignment(labels, label_distances(points, self.centroids, labels), 0)


def faiss_gpus() -> int:
    """Return how many GPUs the installed FAISS can use."""
    faiss = require_faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0
