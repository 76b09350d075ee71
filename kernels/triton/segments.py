"""Rows in the order of their labels, cut into segments of one label each: what deterministic kernels work on."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SHORT = (1 << 15, torch.int16), (1 << 31, torch.int32)


@dataclass(frozen=True)
class Segments:
    """Rows sorted by label, stably, and cut into segments of a bounded number of rows.

    order: (n,) int64, the rows. lengths: (k,) int64, rows of each label. counts, ends: (k,) int64, segments of each
    label and those up to its last. Of each segment: labels, first (its first place in `order`), sizes; (s,) int64.
    """

    order: Tensor
    lengths: Tensor
    counts: Tensor
    ends: Tensor
    labels: Tensor
    first: Tensor
    sizes: Tensor


def cut_segments(labels: Tensor, k: int, rows: int) -> Segments:
    """Sort labels (n,), integers in [0, k), and cut their rows into segments of at most `rows`."""
    # A radix sort takes time by the bits of its keys.
    key = next((kind for limit, kind in _SHORT if k <= limit), torch.int64)
    order = torch.argsort(labels.to(key), stable=True)
    lengths = torch.bincount(labels, minlength=k)
    counts = (lengths + rows - 1) // rows
    ends = counts.cumsum(0)
    label = torch.repeat_interleave(torch.arange(k, device=labels.device), counts)
    within = torch.arange(len(label), device=labels.device) - (ends - counts)[label]
    first = (lengths.cumsum(0) - lengths)[label] + within * rows
    sizes = (lengths[label] - within * rows).clamp(max=rows)
    return Segments(order, lengths, counts, ends, label, first, sizes)
