"""Cache of the 8-bit codes of vectors, shared by all passes and codebooks of a fit."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import CodedPoints, PreparedCentroids, ScanFrame, code_points, empty_codes, prepare_centroids

from .bounds import DEFAULT_MEMORY

_SHARE_OF_MEMORY = 8


class CodeCache:
    """The codes of n vectors, indexed by place and computed on first use, in one frame for all codebooks.

    The first centroids and vectors that are searched determine the frame. Codes are cached if the frame projects to
    fewer dimensions (otherwise coding is cheap) and if they fit an eighth of `memory` bytes, by default of 16 GiB.
    They never change a result.
    """

    def __init__(self, rows: int, memory: int | None) -> None:
        self._rows, self._memory = rows, (memory or DEFAULT_MEMORY) // _SHARE_OF_MEMORY
        self._frame: ScanFrame | None = None
        self._codes: CodedPoints | None = None
        self._cached: npt.NDArray[np.bool_] | None = None

    def prepare(self, centroids: Tensor, precision: str) -> PreparedCentroids:
        """Prepare centroids (k, D), in the frame of the cache as soon as there is one."""
        return prepare_centroids(centroids, precision=precision, frame=self._frame)

    def coded(self, points: Tensor, places: Tensor, prepared: PreparedCentroids) -> CodedPoints | None:
        """Return the codes of points (n, D) at places (n,) int64, or None if the search does not use codes."""
        if self._codes is None or self._cached is None or prepared.frame is not self._frame:
            found = code_points(points, prepared)
            if found is not None and self._frame is None:
                self._frame = found.frame
                if found.frame.basis is not None and (found.row_bytes + 1) * self._rows <= self._memory:
                    self._codes, self._cached = empty_codes(self._rows, found), np.zeros(self._rows, np.bool_)
            return found
        index = places.numpy()
        missing = np.flatnonzero(~self._cached[index])
        if len(missing):
            found = code_points(points[torch.from_numpy(missing)], prepared)
            if found is None:
                return None
            self._codes.put(index[missing], found)
            self._cached[index[missing]] = True
        return self._codes.take(index)
