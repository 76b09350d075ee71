"""Sums of the points of each cluster: the update step of Lloyd's algorithm."""

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.cpu.update import add_rows
from sctok.runtime.threads import on_every_thread

from .assign import has_triton
from .certify import as_real


def centroid_sums(
    points: Tensor, labels: Tensor, k: int, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the points of each cluster in float64, deterministically.

    Rows are added in their order. Sums of float16 features are exact: their products with 2^24 are integers, which
    float64 adds without rounding up to a total of about 5e8, so neither order nor block size shows in the result.

    Args:
        points: (n, D) floating or integer, any strides.
        labels: (n,) int64 in [0, k), same device.
        k: number of clusters.
        out: sums (k, D) float64 and counts (k,) int64 of earlier blocks, added to in place.

    Returns:
        sums (k, D) float64 and counts (k,) int64.

    Raises:
        ValueError: a label lies outside [0, k), or the lengths differ.
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
        from sctok.kernels.triton.update import segmented_sums

        return segmented_sums(points, labels, k, partials=torch.float64, out=out)
    block_counts = torch.bincount(labels, minlength=k)
    counts += block_counts
    if points.device.type == "cpu":
        rows, where, totals = np.ascontiguousarray(as_real(points).numpy()), labels.numpy(), sums.numpy()
        on_every_thread(lambda thread, threads: add_rows(rows, where, totals, thread, threads))
    else:
        # Atomic additions on an accelerator come in any order; a stable sort and one ordered sum per cluster do not.
        order = torch.argsort(labels, stable=True)
        values = points[order].to(torch.float64)
        sums += torch.segment_reduce(values, "sum", lengths=block_counts, axis=0, unsafe=True)
    return sums, counts
