"""8-bit codes of vectors that a fit keeps from pass to pass, for all its codebooks together."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import Coded, PreparedCentroids, code_points, empty_codes, prepare_centroids

from .bounds import DEFAULT_MEMORY

_SHARE_OF_MEMORY = 8


class CodeCache:
    """Codes of n vectors by their places, as far as they were asked for; all codebooks are searched in one frame.

    The frame is chosen by the first centroids and vectors that are searched. Codes are kept where the frame projects
    (coding all dimensions costs next to nothing) and they fit an eighth of `memory` in bytes (None: of 16 GiB). They
    never show in a result.
    """

    def __init__(self, rows: int, memory: int | None) -> None:
        self._rows, self._memory = rows, (memory or DEFAULT_MEMORY) // _SHARE_OF_MEMORY
        self._first: PreparedCentroids | None = None
        self._codes: Coded | None = None
        self._held: npt.NDArray[np.bool_] | None = None

    def prepare(self, centroids: Tensor, precision: str) -> PreparedCentroids:
        """Prepare centroids (k, D) in the frame of the first ones."""
        prepared = prepare_centroids(centroids, precision=precision, like=self._first)
        self._first = self._first or prepared
        return prepared

    def coded(self, points: Tensor, places: Tensor, prepared: PreparedCentroids) -> Coded | None:
        """Return the codes of points (n, D) at places (n,) int64, None where the search has no use for them."""
        if self._held is not None and self._codes is not None:
            index = places.numpy()
            missing = np.flatnonzero(~self._held[index])
            if len(missing) == 0:
                return self._codes.take(index)
            self._keep(index[missing], code_points(points[torch.from_numpy(missing)], prepared))
            return self._codes.take(index) if self._held[index].all() else None
        found = code_points(points, prepared)
        if found is not None and self._codes is None and found.projected:
            bytes_per_row = found.codes.shape[1] + found.stats.nbytes // len(found.stats) + 1
            if bytes_per_row * self._rows <= self._memory:
                self._codes, self._held = empty_codes(self._rows, found), np.zeros(self._rows, np.bool_)
                self._keep(places.numpy(), found)
        return found

    def _keep(self, places: npt.NDArray[np.int64], found: Coded | None) -> None:
        if found is not None and self._codes is not None and self._held is not None:
            self._codes.put(places, found)
            self._held[places] = True
