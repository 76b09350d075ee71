"""Rows sorted by label and cut into segments of one label each, for deterministic kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SHORT = (1 << 15, torch.int16), (1 << 31, torch.int32)


@dataclass(frozen=True)
class Segments:
    """Rows sorted by label, stably, and cut into s segments of a bounded number of rows. All tensors are int64.

    order: (n,), the sorted rows.
    lengths, counts: (k,), number of rows and of segments of each label.
    ends: (k,), number of segments up to the last one of each label.
    labels, first, sizes: (s,), label of each segment, its first place in `order`, and its number of rows.
    """

    order: Tensor
    lengths: Tensor
    counts: Tensor
    ends: Tensor
    labels: Tensor
    first: Tensor
    sizes: Tensor


def cut_segments(labels: Tensor, k: int, rows: int) -> Segments:
    """Sort labels (n,), integers in [0, k), and cut their rows into segments of at most `rows` rows."""
    # The time of a radix sort is proportional to the bits of its keys.
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
