"""Gradients of several ranks as if one process had the batches of all."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sctok.kmeans_tools.distributed import Group

BUCKET_BYTES = 25 << 20


def average_gradients(parameters: Iterable[nn.Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each gradient by its mean over the ranks, summed in flat pieces of about `bucket_bytes`.

    A parameter has a gradient on all ranks or on none.
    """
    if group.world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        group.sum_(flat)
        flat /= group.world
        for gradient, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(gradients: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
