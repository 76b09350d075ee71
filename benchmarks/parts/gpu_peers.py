"""Nearest-centroid searches of other libraries on a GPU, one function each. Missing libraries are left out."""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Search = Callable[[], object]


def torch_argmin(points: Tensor, centroids: Tensor, rows: int = 8192) -> Tensor:
    """Search with GEMM and argmin in PyTorch, block by block, in the type of the operands."""
    squares = centroids.float().square().sum(dim=1)
    blocks = [(squares - 2 * (block @ centroids.T).float()).argmin(dim=1) for block in points.split(rows)]
    return torch.cat(blocks)


def flash_kmeans(points: Tensor, centroids: Tensor) -> Search | None:
    """Search with the assignment kernel of flash-kmeans, with precomputed squared norms."""
    if importlib.util.find_spec("flash_kmeans") is None:
        return None
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    squares = points.float().square().sum(dim=1)[None]
    return lambda: euclid_assign_triton(points[None], centroids[None], squares)


def flash_iteration(points: Tensor, centroids: Tensor) -> Search | None:
    """Run one iteration of flash-kmeans."""
    if importlib.util.find_spec("flash_kmeans") is None:
        return None
    from flash_kmeans import batch_kmeans_Euclid

    start = centroids[None]
    return partial(batch_kmeans_Euclid, points[None], len(centroids), max_iters=1, init_centroids=start)


def cuvs(points: Tensor, centroids: Tensor) -> Search | None:
    """Search with the prediction of cuVS, float32."""
    if importlib.util.find_spec("cuvs") is None:
        return None
    from cuvs.cluster import kmeans

    parameters = kmeans.KMeansParams(n_clusters=len(centroids))
    return partial(kmeans.predict, parameters, points.float(), centroids.float())


def faiss_gpu(points: Tensor, centroids: Tensor) -> Search | None:
    """Search with the flat index of FAISS on the GPU, float32."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return None
    import faiss.contrib.torch_utils

    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), centroids.shape[1])
    index.add(centroids.float().contiguous())
    wide = points.float().contiguous()
    return lambda: index.search(wide, 1)
