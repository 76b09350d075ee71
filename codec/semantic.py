"""Semantic tokens: the exact nearest centroid of stacked features, on one device."""

import torch
from torch import Tensor

from sctok.formats.codebooks import Codebook
from sctok.kernels.assign import nearest_centroid, prepare_centroids

UNDECIDED = -1  # the label of a vector that is not finite


class SemanticQuantizer:
    """A codebook that is ready for use on a device."""

    def __init__(self, codebook: Codebook, device: torch.device) -> None:
        self._prepared = prepare_centroids(torch.from_numpy(codebook.centroids).to(device))

    def labels(self, features: Tensor) -> Tensor:
        """Return the nearest centroids int64 (…), the lowest of equals, of features float32 (…, F) on the device.

        The label is -1 where a feature is not finite. What a feature gets does not depend on the others.
        """
        points = features.reshape(-1, features.shape[-1])
        finite = torch.isfinite(points).all(dim=1)
        labels = nearest_centroid(torch.where(finite[:, None], points, 0.0), self._prepared).labels
        return torch.where(finite, labels, UNDECIDED).reshape(features.shape[:-1])

    def vectors(self, labels: Tensor) -> Tensor:
        """Return the centroids float32 (…, F) of labels int64 (…), none of them negative."""
        return torch.nn.functional.embedding(labels, self._prepared.centroids)
