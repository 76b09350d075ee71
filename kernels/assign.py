"""Nearest centroid: the exact float64 argmin at the speed of low precision.

Distances do not change if points and centroids move together, so both are centered, and scaled by a power of two. Cheap
scores with proven error bounds leave few candidates per point, and float64 decides between them. The scores come from
8-bit products on CPUs that have them (`cpu.certify`), from tensor cores on GPUs (`triton.certify`), and from float32
products elsewhere (`certify`).
"""

import importlib.util
import logging
import math
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from sctok.kernels.cpu.certify import CentroidScan, exact_label_distances, exhaustive_search, scan_pays
from sctok.kernels.cpu.codes import CodedPoints, empty_codes
from sctok.kernels.cpu.frames import ScanFrame, choose_frame
from sctok.kernels.cpu.vnni import ROWS
from sctok.runtime.devices import full_float32

from .certify import (
    FloatOperand,
    as_real,
    certify_block,
    check_real,
    float_operand,
    pair_distances,
    require_finite,
)

logger = logging.getLogger("sctok.assign")

__all__ = [
    "PRECISIONS",
    "Assignment",
    "CodedPoints",
    "PreparedCentroids",
    "ScanFrame",
    "code_points",
    "empty_codes",
    "label_distances",
    "nearest_centroid",
    "prepare_centroids",
]

PRECISIONS = ("exact", "fp32")

_SCORES = {"cpu": 1 << 23, "cuda": 1 << 28}  # elements of a block of float32 scores: 32 MiB and 1 GiB
_SCAN_ELEMENTS = 1 << 22  # elements of a block of points in the scan, 16 MiB
_FEW_ROWS = 16  # points for which distances to all centroids are faster than preparing float32 products
_FEW_LEFT = 0.25  # share of points that a scan may leave undecided before float32 products are faster


@dataclass(frozen=True)
class Assignment:
    """Nearest centroids of n points.

    labels: (n,) int64.
    distances: (n,) float32, squared, rounded from float64.
    rescored: number of points that the bounds could not decide, so float64 did.
    second_labels, second_distances: (n,) int64 and float32, the runner-up if requested; -1 and infinity if k is 1.
    """

    labels: Tensor
    distances: Tensor
    rescored: int
    second_labels: Tensor | None = None
    second_distances: Tensor | None = None


@dataclass(eq=False)
class PreparedCentroids:
    """Centroids prepared once by `prepare_centroids` for scoring many blocks of points.

    centroids: (k, D) float32 or float64.
    center: (D,) float32.
    scale: power of two.
    precision: "exact" or "fp32".
    frame: frame of the scan on CPUs, or None to choose one for the first points.
    scan_fails: whether a scan left so many points undecided that float32 products are faster.
    """

    centroids: Tensor
    center: Tensor
    scale: float
    precision: str
    frame: ScanFrame | None = None
    scan_fails: bool = field(default=False, init=False)
    _scan: CentroidScan | None = field(default=None, init=False, repr=False)

    @cached_property
    def float_operand(self) -> FloatOperand:
        """The centroids for float32 products."""
        return float_operand(self.centroids, self.center, self.scale, exact=self.precision == "exact")

    @cached_property
    def triton_operand(self) -> Any:
        """The centroids for the kernels of GPUs."""
        from sctok.kernels.triton.operands import prepare_operand

        return prepare_operand(self.centroids, self.center)

    def scan(self, points: Tensor) -> CentroidScan:
        """Return the centroids for the scan on CPUs. The first points (n, D) determine the frame if none was given."""
        if self._scan is None:
            frame = self.frame or choose_frame(points, self.centroids, self.center, self.scale)
            self._scan = CentroidScan(self.centroids, frame)
        return self._scan


def prepare_centroids(
    centroids: Tensor, *, precision: str = "exact", frame: ScanFrame | None = None
) -> PreparedCentroids:
    """Prepare centroids (k, D), finite, for `nearest_centroid`.

    Args:
        centroids: (k, D) floating or integer, on the device of the points.
        precision: "exact" (the float64 argmin) or "fp32" (the argmin of the float32 scores, which may differ from it
            for near ties, depending on the batch).
        frame: frame of codes from `code_points`, so that these centroids can use the codes.

    Raises:
        ValueError: The matrix is empty or holds NaN or infinity, or the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if centroids.ndim != 2 or 0 in centroids.shape:
        raise ValueError(f"centroids must be a matrix (k, D) with k and D at least 1, not {tuple(centroids.shape)}")
    centroids = as_real(centroids)
    center, spread = _center(centroids)
    return PreparedCentroids(centroids, center, _power_of_two(spread), precision, frame)


def nearest_centroid(
    points: Tensor,
    centroids: Tensor | PreparedCentroids,
    *,
    precision: str | None = None,
    runner_up: bool = False,
    coded: CodedPoints | None = None,
) -> Assignment:
    """Find the nearest centroid of each point by squared Euclidean distance, the lowest index if several tie.

    With precision "exact" the labels are those of `nearest_centroid_reference` for any finite input. They do not depend
    on the blocks, the number of threads or the device. Points are processed in blocks, so memory is bounded.

    Args:
        points: (n, D) floating or integer, any strides.
        centroids: (k, D) on the same device, or the result of `prepare_centroids`.
        precision: "exact" (default) or "fp32". Prepared centroids have their own.
        runner_up: Also find the second nearest centroid.
        coded: Result of `code_points` for the same points, in the frame of these centroids.

    Raises:
        ValueError: Shapes or frames do not match, or a point holds NaN or infinity. The message names its row.
    """
    for name, given in (("points", points), ("centroids", centroids)):
        if not isinstance(given, Tensor | PreparedCentroids):
            raise ValueError(f"{name} must be a tensor, not {type(given).__name__}: wrap arrays in torch.from_numpy")
        if isinstance(given, Tensor):
            check_real(given, name)
    prepared = _prepared(centroids, precision)
    k, dim = prepared.centroids.shape
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"points must be a matrix (n, {dim}) as the centroids are, not {tuple(points.shape)}")
    wanted = 2 if runner_up else 1
    labels = torch.empty((len(points), wanted), dtype=torch.int64, device=points.device)
    distances = torch.empty((len(points), wanted), dtype=torch.float32, device=points.device)
    rescored = 0
    search, step = _choose_search(points, prepared)
    with full_float32():
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            codes = coded if coded is None or step >= len(points) else coded.rows(start, start + step)
            labels[part], distances[part], undecided = search(as_real(points[part]), prepared, wanted, start, codes)
            rescored += undecided
    if not runner_up:
        return Assignment(labels[:, 0], distances[:, 0], rescored)
    second = labels[:, 1].where(labels[:, 1] < k, -1)
    return Assignment(labels[:, 0], distances[:, 0], rescored, second, distances[:, 1])


def code_points(points: Tensor, prepared: PreparedCentroids) -> CodedPoints | None:
    """Code points (n, D) once for many searches in one frame, or return None if a search would not use the codes.

    The frame is that of `prepared`, which chooses one now if it has none. To search other centroids with these codes,
    pass the frame of the codes to `prepare_centroids`.
    """
    if not (len(points) and _scans(points, prepared)):
        return None
    real = as_real(points)
    with full_float32():
        return prepared.scan(real).code(real)


def label_distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance (n,) float32, rounded from float64, of points (n, D) to centroids[labels]."""
    return _exact_distances(as_real(points), as_real(centroids), labels).to(torch.float32)


def _prepared(centroids: Tensor | PreparedCentroids, precision: str | None) -> PreparedCentroids:
    if not isinstance(centroids, PreparedCentroids):
        return prepare_centroids(centroids, precision=precision or "exact")
    if precision not in (None, centroids.precision):
        raise ValueError(f"the centroids were prepared for precision {centroids.precision!r}, not {precision!r}")
    return centroids


def _center(centroids: Tensor) -> tuple[Tensor, float]:
    """Return the approximate mean (D,) float32 of centroids, and a bound of the distance of any value from it.

    Raises:
        ValueError: A centroid holds NaN or infinity.
    """
    center = centroids.mean(dim=0).to(torch.float32)
    if not bool(torch.isfinite(center).all()):
        bad = ~torch.isfinite(centroids).all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"centroid {int(bad.nonzero()[0])} holds NaN or infinity")
        center.zero_()  # the sum of finite values overflowed
    low, high = torch.aminmax(centroids)
    return center, max(float(high) - float(center.amin()), float(center.amax()) - float(low))


def _power_of_two(largest: float) -> float:
    """Return the power of two that scales `largest` to about 1, or 1 if it is well within the range of float32."""
    if largest == 0 or 2.0**-20 < largest < 2.0**20:
        return 1.0
    if not math.isfinite(largest):
        return 2.0**-400
    return 2.0 ** max(-400, min(400, -math.frexp(largest)[1]))


def _scans(points: Tensor, prepared: PreparedCentroids) -> bool:
    if points.device.type != "cpu" or prepared.precision != "exact":
        return False
    return scan_pays(len(points), *prepared.centroids.shape)


def _choose_search(points: Tensor, prepared: PreparedCentroids) -> tuple[Any, int]:
    """Return the search for these points, and the number of points in a block."""
    if _scans(points, prepared):
        most = max(ROWS, _SCAN_ELEMENTS // points.shape[1] // ROWS * ROWS)
        rows = -(-len(points) // max(1, -(-len(points) // most)))
        return _scan_block, max(ROWS, -(-rows // ROWS) * ROWS)  # blocks of about equal size
    if points.device.type == "cuda" and prepared.precision == "exact" and has_triton():
        return _triton_block, max(1, len(points))
    return _float_block, _float_rows(points, prepared)


@cache
def has_triton() -> bool:
    """Return whether the kernels of GPUs can be used; warn once if not."""
    if importlib.util.find_spec("triton") is not None:
        return True
    logger.warning("triton is missing, so k-means takes several times longer: install sctok[gpu]")
    return False


def _float_rows(points: Tensor, prepared: PreparedCentroids) -> int:
    budget = _SCORES.get(points.device.type, _SCORES["cpu"])
    return max(1, budget // max(prepared.centroids.shape))


def _float_block(
    points: Tensor, prepared: PreparedCentroids, wanted: int, first_row: int, _: CodedPoints | None = None
) -> tuple[Tensor, Tensor, int]:
    step = _float_rows(points, prepared)
    parts = [
        certify_block(points[start : start + step], prepared.float_operand, wanted, first_row + start)
        for start in range(0, len(points), step)
    ]
    labels = torch.cat([found for found, _ in parts])
    return labels, _distances(points, prepared.centroids, labels), sum(rescored for _, rescored in parts)


def _triton_block(
    points: Tensor, prepared: PreparedCentroids, wanted: int, first_row: int, _: CodedPoints | None
) -> tuple[Tensor, Tensor, int]:
    from sctok.kernels.triton.certify import certified_labels

    found = certified_labels(points, prepared.triton_operand, runner_up=wanted == 2, first_row=first_row)
    second = found.second_labels
    labels = found.labels[:, None] if second is None else torch.stack([found.labels, second], dim=1)
    labels = labels.where(labels >= 0, len(prepared.centroids))
    return labels, _distances(points, prepared.centroids, labels), found.rescored


def _scan_block(
    points: Tensor, prepared: PreparedCentroids, wanted: int, first_row: int, coded: CodedPoints | None
) -> tuple[Tensor, Tensor, int]:
    if prepared.scan_fails or not (scan := prepared.scan(points)).usable:
        return _float_block(points, prepared, wanted, first_row)
    found, exact, computed = scan.search(points, coded or scan.code(points), pair=wanted == 2)
    labels, distances = torch.from_numpy(found[:, :wanted]), torch.from_numpy(exact[:, :wanted]).to(torch.float32)
    left = (labels[:, 0] < 0).nonzero()[:, 0]
    prepared.scan_fails |= len(left) > _FEW_LEFT * len(points)
    require_finite(points[left], left + first_row)
    if 0 < len(left) <= _FEW_ROWS:
        nearest, exact = exhaustive_search(points[left], prepared.centroids)
        labels[left] = torch.from_numpy(nearest[:, :wanted])
        distances[left] = torch.from_numpy(exact[:, :wanted]).to(torch.float32)
    elif len(left):
        labels[left], distances[left], _ = _float_block(points[left], prepared, wanted, 0)
    return labels, distances, int((computed > wanted - 1).sum())


def _distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Return the distances (n, w) float32 to the labels (n, w), infinite for label k."""
    existing = labels < len(centroids)
    columns = [_exact_distances(points, centroids, column) for column in labels.where(existing, 0).T]
    return torch.stack(columns, dim=1).where(existing, math.inf).to(torch.float32)


def _exact_distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    if points.device.type == "cpu":
        return exact_label_distances(points, centroids, labels)
    if points.device.type == "cuda" and has_triton():
        from sctok.kernels.triton.pairs import exact_pair_distances

        return exact_pair_distances(points, centroids, None, labels)
    return pair_distances(points, centroids, None, labels)
