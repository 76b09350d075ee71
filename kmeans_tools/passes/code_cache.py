"""8-bit codes of vectors that a fit keeps from pass to pass, for all its codebooks together."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import CodedPoints, PreparedCentroids, ScanFrame, code_points, empty_codes, prepare_centroids

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
        self._frame: ScanFrame | None = None
        self._codes: CodedPoints | None = None
        self._held: npt.NDArray[np.bool_] | None = None

    def prepare(self, centroids: Tensor, precision: str) -> PreparedCentroids:
        """Prepare centroids (k, D), in the frame of the first ones once these have been searched."""
        return prepare_centroids(centroids, precision=precision, frame=self._frame)

    def coded(self, points: Tensor, places: Tensor, prepared: PreparedCentroids) -> CodedPoints | None:
        """Return the codes of points (n, D) at places (n,) int64, None where the search has no use for them."""
        if self._codes is None or self._held is None or prepared.frame is not self._frame:
            found = code_points(points, prepared)
            if found is not None and self._frame is None:
                self._frame = found.frame
                self._make_room(found)
            return found
        index = places.numpy()
        missing = np.flatnonzero(~self._held[index])
        if len(missing):
            found = code_points(points[torch.from_numpy(missing)], prepared)
            if found is None:
                return None
            self._codes.put(index[missing], found)
            self._held[index[missing]] = True
        return self._codes.take(index)

    def _make_room(self, found: CodedPoints) -> None:
        if found.frame.basis is not None and (found.row_bytes + 1) * self._rows <= self._memory:
            self._codes, self._held = empty_codes(self._rows, found), np.zeros(self._rows, np.bool_)
