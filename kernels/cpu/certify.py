"""Certify labels on CPUs: nearest centroids by an 8-bit scan with error bounds; see `scan` for the loops.

Points and centroids are centered and scaled to y and w. If a few directions P (D, d) contain most of the centroids'
variance, both are projected: y = P z + r, w = P e + t. For 8-bit codes s q near z and s' q' near e, the Cauchy-Schwarz
inequality gives

    |2 y.w - 2 s s' q.q'| <= 2 (|r| |t| + |z - s q| |e| + |s q| |e - s' q'|) + rounding.

The product q.q' is exact in integers. Without a projection, z = y and r = 0.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sctok.kernels.certify import UNIT
from sctok.runtime.threads import in_parallel

from .codes import CodedPoints, code_rows, pack_fine, pack_tiles, row_factors
from .encode import NORM, Doubles, Floats, Ints, Longs
from .frames import ScanFrame, rotation
from .scan import MOST_DISTANCES, Found, Rows, exact_distances, nearest_of_all, scan_rows
from .vnni import LANES, LARGEST_DIM, ROWS, vnni_bits

SMALLEST_K = 64

_LARGEST_NORM = 2.0**60  # of scaled vectors; the scan does not decide rows with a larger norm
_GROUP_BYTES = 1 << 19  # centroid codes that stay in cache while the rows are scanned
_CHUNK_BYTES = 3 << 18  # codes and minima of the rows in the same cache
_ORDERED = 16  # leading directions that determine which centroids share a tile


def _order_in_tiles(coordinates: Floats) -> Longs:
    """Return an order of rows (k, d), int64, in which every LANES consecutive rows are near each other.

    The rows are halved recursively at the median of the coordinate with the largest variance.
    """
    full = []
    stack = [np.arange(len(coordinates), dtype=np.int64)]
    while stack:
        part = stack.pop()
        if len(part) <= LANES:
            full.append(part)
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # for centroids out of range, which are not scanned
            column = coordinates[part, int(coordinates[part].var(axis=0).argmax())]
        half = -(-len(part) // 2 // LANES) * LANES
        split = np.argpartition(column, half - 1)
        stack += [part[split[half:]], part[split[:half]]]
    return np.concatenate(full)


class CentroidScan:
    """Centroids coded for the scan.

    Args:
        centroids: (k, D) float32 or float64 on the CPU.
        frame: any frame that brings them near the origin and near norm 1.
    """

    def __init__(self, centroids: Tensor, frame: ScanFrame) -> None:
        self.frame = frame
        self.centroids = np.ascontiguousarray(centroids.numpy())
        coded, leading = code_rows(centroids, frame, 1)
        if leading is None:  # similar norms in a tile keep its largest terms close to those of each centroid
            order = np.argsort(coded.stats[:, NORM], kind="stable").astype(np.int64)
        else:
            order = _order_in_tiles(leading @ rotation(leading.shape[1])[:_ORDERED].numpy().T)
        order = np.pad(order, (0, -len(order) % LANES), constant_values=-1)
        self._tiles, self._fine = pack_tiles(coded, order), pack_fine(coded.fine, order)
        self._largest = math.sqrt(float(coded.stats[:, NORM].max()))

    @property
    def usable(self) -> bool:
        """Whether the bounds hold for these centroids: their norms are not too large."""
        return self._largest < _LARGEST_NORM

    def code(self, points: Tensor) -> CodedPoints:
        """Code points (n, D) float32 or float64. Any scan in the same frame can use the result."""
        return code_rows(points, self.frame, ROWS)[0]

    def search(self, points: Tensor, coded: CodedPoints, *, pair: bool) -> tuple[Longs, Doubles, Ints]:
        """Find the nearest centroid of each point and, if `pair`, the runner-up.

        Returns:
            labels: (n, 2) int64. A label is k if there is no centroid, and -1 if the caller has to decide, because
                values are out of range or too many exact distances would be needed.
            distances: (n, 2) float64, squared.
            computed: (n,) int32, number of exact distances after the first guess.

        Raises:
            ValueError: The codes belong to another frame or to another number of points.
        """
        if coded.frame is not self.frame:
            raise ValueError("the points were coded in another frame than the centroids: code them again")
        if len(coded.stats) != len(points):
            raise ValueError(f"{len(points)} points came with the codes of {len(coded.stats)}")
        rows, k = len(points), len(self.centroids)
        found = Found(np.full((rows, 2), k, np.int64), np.full((rows, 2), np.inf), np.zeros(rows, np.int32))
        coarse, fine = self._rows(coded, self.frame), self._rows(coded.fine or coded, None)
        values, square = np.ascontiguousarray(points.numpy()), self.frame.scale**2
        width = coded.codes.shape[1] + (coded.fine.codes.shape[1] if coded.fine else 0)
        group = max(1, _GROUP_BYTES // (LANES * width))
        chunk = max(ROWS, _CHUNK_BYTES // (width + 4 * len(self._tiles.packed)) // ROWS * ROWS)

        def scan(start: int, stop: int) -> None:
            scan_rows(
                values, self.centroids, coarse, self._tiles, fine, self._fine, square, pair,
                found, start, stop, chunk, group,
            )  # fmt: skip

        in_parallel(rows, scan, ROWS)
        found.labels[(found.computed > MOST_DISTANCES) | ~np.isfinite(coarse.shifts)] = -1
        return found.labels, found.distances, found.computed

    def _rows(self, coded: CodedPoints, frame: ScanFrame | None) -> Rows:
        """Return points as the scan reads them. frame: None for codes in all dimensions."""
        return Rows(coded.codes, row_factors(coded), self._shifts(coded, frame))

    def _shifts(self, coded: CodedPoints, frame: ScanFrame | None) -> Doubles:
        """Return (n,) float64: the rounding error of a bound minus |y|^2, infinite if a point is out of range."""
        squares, largest = coded.stats[:, NORM], self._largest
        inside = squares < _LARGEST_NORM**2
        norms, dim = np.sqrt(np.where(inside, squares, 0.0)), self.centroids.shape[1]
        projected = np.zeros_like(norms)
        if frame is not None:
            projected = (4.2 * frame.product_error + 6.3 * frame.defect) * norms * largest
        # The second term covers the lane numbers in the last bits.
        rounding = (24 * UNIT + LANES * 2.0**-22) * (largest + 2 * norms) ** 2
        underflow = dim * 2.0**-118 * (1 + norms + largest) + dim * 2.0**-1070 * self.frame.scale**2
        return np.where(inside, projected + rounding + underflow - squares, np.inf)


def exact_label_distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distances (n,) float64 of points (n, D) to centroids[labels], both float32 or float64."""
    result = np.empty(len(points))
    rows, table = np.ascontiguousarray(points.numpy()), np.ascontiguousarray(centroids.numpy())
    nearest = np.ascontiguousarray(labels.numpy())
    in_parallel(len(rows), lambda *part: exact_distances(rows, table, nearest, result, *part))
    return torch.from_numpy(result)


def exhaustive_search(points: Tensor, centroids: Tensor) -> tuple[Longs, Doubles]:
    """Return the nearest centroid and the runner-up by exact distances only: labels and distances (n, 2)."""
    found = Found(
        np.full((len(points), 2), len(centroids), np.int64), np.full((len(points), 2), np.inf), np.zeros(0, np.int32)
    )
    rows, table = np.ascontiguousarray(points.numpy()), np.ascontiguousarray(centroids.numpy())
    in_parallel(len(rows), lambda *part: nearest_of_all(rows, table, found, *part))
    return found.labels, found.distances


def scan_pays(rows: int, k: int, dim: int) -> bool:
    """Return whether this CPU can scan a problem of this size, and the problem is large enough to gain from it."""
    return k >= SMALLEST_K and dim <= LARGEST_DIM and rows * k * dim >= 1 << 24 and vnni_bits() > 0
