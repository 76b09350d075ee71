"""Sums of the points of each cluster: the update step of Lloyd's algorithm."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.runtime.jit import compiled
from sctok.runtime.threads import on_every_thread

from .assign import has_triton
from .certify import as_real


def centroid_sums(
    points: Tensor, labels: Tensor, k: int, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the points of each cluster in float64, deterministically.

    Points are added in their order. Sums of float16 features are exact: multiplied by 2^24 the features are integers,
    which float64 adds without rounding up to a sum of about 5e8. Neither the order nor the block size changes them.

    Args:
        points: (n, D) floating or integer, any strides.
        labels: (n,) int64 in [0, k), on the device of the points.
        k: number of clusters.
        out: sums (k, D) float64 and counts (k,) int64 of earlier blocks, updated in place.

    Returns:
        sums (k, D) float64 and counts (k,) int64.

    Raises:
        ValueError: A label is outside [0, k), or the number of labels differs from the number of points.
    """
    if labels.ndim != 1 or len(labels) != len(points):
        raise ValueError(f"{len(points)} points need as many labels, not a tensor of shape {tuple(labels.shape)}")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= k):
        raise ValueError(f"labels must lie in [0, {k}), found {int(labels.min())} to {int(labels.max())}")
    if out is None:
        sums = torch.zeros((k, points.shape[1]), dtype=torch.float64, device=points.device)
        out = sums, torch.zeros(k, dtype=torch.int64, device=points.device)
    sums, counts = out
    if points.device.type == "cuda" and has_triton():
        from sctok.kernels.triton.update import add_segmented_sums

        add_segmented_sums(points, labels, sums, counts)
        return out
    block_counts = torch.bincount(labels, minlength=k)
    counts += block_counts
    if points.device.type == "cpu":
        rows, row_labels, array = np.ascontiguousarray(as_real(points).numpy()), labels.numpy(), sums.numpy()
        on_every_thread(lambda thread, threads: _add_rows(rows, row_labels, array, thread, threads))
    else:
        # Atomic additions would come in any order. A stable sort and one ordered sum per cluster are deterministic.
        order = torch.argsort(labels, stable=True)
        values = points[order].to(torch.float64)
        sums += torch.segment_reduce(values, "sum", lengths=block_counts, axis=0, unsafe=True)
    return sums, counts


@compiled()
def _add_rows(
    points: Any, labels: npt.NDArray[np.int64], sums: npt.NDArray[np.float64], thread: int, threads: int
) -> None:
    """Add points (n, D), in their order, to the sums (k, D) of the clusters that belong to one thread.

    These are the clusters with label % threads == thread, so no thread waits for another.
    """
    for i in range(len(labels)):
        label = labels[i]
        if label % threads == thread:
            for j in range(points.shape[1]):
                sums[label, j] += np.float64(points[i, j])
