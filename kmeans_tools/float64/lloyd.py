"""Lloyd's algorithm in float64, for data whose range is much larger than the distances inside its clusters.

The data are not centred: the difference of close float64 numbers is exact, whatever their offset. Each pass finds the
exact nearest centers and averages the differences from them, so that the offset of a cluster costs no digits. The
centers of empty clusters move to the farthest vectors, as in scikit-learn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid, prepare_centroids
from sctok.kernels.reference import squared_distances
from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.progress import FitProgress, PassFinished
from sctok.kmeans_tools.sources.vectors import Block, WideSource, source_weights, take_blocks

from .frames import Wide, rows_per_block, safe_exponent

Labels = npt.NDArray[np.int32]

_SETTLED = 1e-10  # a center whose move lowers the inertia of its cluster by less than this share is settled
_ULPS = 2.0**-50
_BLUR = 2.0**-44


@dataclass(frozen=True, eq=False)
class WideData:
    """Vectors as the fit uses them: (x - origin) times 2**-exponent, without rounding.

    origin: (D,), 0 in a column in which the subtraction would round. square_extent: squared diagonal of the range of
    the transformed vectors.
    """

    source: WideSource
    origin: Wide
    exponent: int
    square_extent: float

    @classmethod
    def between(cls, source: WideSource, low: Wide, high: Wide) -> "WideData":
        """Return the data of a source with values from low (D,) to high (D,); this reads the source once."""
        exact = np.ones(source.dim, np.bool_)
        for block in source.wide_blocks(rows_per_block(source.dim)):
            exact &= _subtracts(block.rows, low)
        exponent = safe_exponent(float(max(high.max(), -low.min())))
        extent = np.ldexp(high, -exponent) - np.ldexp(low, -exponent)
        return cls(source, np.where(exact, low, 0.0), exponent, float((extent**2).sum()))

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return self.source.rows

    @property
    def weights(self) -> Wide | None:
        """The weights (n,), or None if all are 1."""
        return source_weights(self.source)

    def blocks(self, width: int) -> Iterator[Block]:
        """Yield all vectors in order, in blocks that allow `width` numbers per vector."""
        for block in self.source.wide_blocks(rows_per_block(max(self.source.dim, width))):
            yield Block(block.places, self.inside(block.rows), block.weights)

    def take(self, places: npt.NDArray[np.int64]) -> Wide:
        """Return the vectors (n, D) at ascending places (n,)."""
        return take_blocks(self.blocks(1), places, np.empty((len(places), self.source.dim)))

    def inside(self, vectors: Wide) -> Wide:
        """Transform vectors (n, D) to the space of the fit."""
        moved = vectors - self.origin
        return np.ldexp(moved, -self.exponent) if self.exponent else moved

    def outside(self, centers: Wide) -> Wide:
        """Transform centers (k, D) back to the space of the vectors."""
        return (np.ldexp(centers, self.exponent) if self.exponent else centers) + self.origin


def scale_weights(weights: Wide) -> Wide:
    """Return weights (n,), scaled by a power of two if their sum could overflow or underflow.

    Positive weights stay positive.
    """
    exponent = safe_exponent(float(weights.max()))
    if exponent == 0:
        return weights
    return np.maximum(np.ldexp(weights, -exponent), np.where(weights > 0, np.finfo(np.float64).tiny, 0.0))


def _subtracts(rows: Wide, origin: Wide) -> npt.NDArray[np.bool_]:
    """Return a mask (D,) of the columns of rows (n, D) in which subtracting origin (D,) is exact (Knuth's two-sum)."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = rows - origin
        back = moved - rows
        lost = (rows - (moved - back)) - (origin + back)
    return ((lost == 0) & np.isfinite(moved)).all(axis=0)


@dataclass(frozen=True, eq=False)
class WideFit:
    """Centers (k, D) float64 and their inertia, in the space of the fit.

    iterations: number of updates. relocated: whether centers of empty clusters moved to far vectors. blurred: whether a
    cluster is so much smaller than the range of the data that |x|^2 - 2 x.c + |c|^2 in float64 loses its inertia.
    """

    centers: Wide
    inertia: float
    iterations: int
    relocated: bool
    blurred: bool


@dataclass(frozen=True, eq=False)
class _Pass:
    """The result of a pass over n vectors for centers (k, D).

    labels, squares: (n,), the nearest center and the squared distance to it. weights: (n,), or None if all are 1.
    sums: (k, D), the weighted differences of the vectors of each cluster from its center. mass: (k,), their weight.
    """

    labels: Labels
    squares: Wide
    weights: Wide | None
    sums: Tensor
    mass: Tensor

    @property
    def inertia(self) -> float:
        return float(self.cluster_squares.sum())

    @property
    def cluster_squares(self) -> Wide:
        weighted = self.squares if self.weights is None else self.squares * self.weights
        return np.bincount(self.labels, weighted, len(self.mass)).astype(np.float64)

    @property
    def smallest_radius(self) -> float:
        """Smallest mean squared distance in a cluster, except clusters in which all distances are 0."""
        squares = self.cluster_squares
        wide = squares > 0
        return float((squares[wide] / self.mass.cpu().numpy()[wide]).min()) if wide.any() else math.inf

    def variance(self, centers: Tensor) -> float:
        """Return the variance of the vectors, averaged over the columns; centers (k, D) are those of the pass."""
        mass, total = self.mass[:, None], float(self.mass.sum())
        away = centers - (mass * centers + self.sums).sum(dim=0) / total
        between = float((mass * away.square() + 2 * self.sums * away).sum())
        return max(0.0, self.inertia + between) / total / centers.shape[1]


def fit_wide(
    data: WideData,
    centers: Wide,
    *,
    iterations: int,
    tol: float,
    device: torch.device,
    progress: FitProgress | None,
) -> WideFit:
    """Move first centers (k, D) to the means of their vectors until the labels no longer change.

    iterations: maximum number of updates. tol: also stop if three falls are below this share: the last fall of the
    inertia, its estimated total fall in all further passes, and the squared moves of the centers relative to the mean
    variance of a column, which is the criterion of scikit-learn.
    """
    moved = torch.from_numpy(centers.copy()).to(device)
    falls = [math.inf]
    found = _run_pass(data, moved)
    updates, settled, any_relocated = 0, False, False
    previous = np.empty(0, np.int32)
    while not settled and updates < iterations:
        after, relocated = _update(data, moved, found)
        any_relocated |= relocated
        if not relocated and _is_settled(moved, found) and np.array_equal(found.labels, previous):
            break
        if progress:
            progress(PassFinished(len(centers), updates + 1, found.inertia, is_final=False))
        still = float((after - moved).square_().sum()) <= tol * found.variance(moved)
        moved, previous, before = after, found.labels, found.inertia
        found = _run_pass(data, moved)
        updates += 1
        falls.append((before - found.inertia) / before if before > 0 else 0.0)
        settled = still and not relocated and _remaining(falls) <= tol
    if progress:
        progress(PassFinished(len(centers), updates + 1, found.inertia, is_final=True))
    blurred = found.smallest_radius < _BLUR * data.square_extent
    return WideFit(moved.cpu().numpy(), found.inertia, updates, any_relocated, blurred)


def _remaining(falls: list[float]) -> float:
    """Return the last relative fall of the inertia, or the estimated total of all further falls if that is larger."""
    before, now = falls[-2:]
    if now <= 0:
        return 0.0
    return max(now, now * now / (before - now)) if before > now else math.inf


def _run_pass(data: WideData, centers: Tensor) -> _Pass:
    k, dim = centers.shape
    prepared = prepare_centroids(centers)
    labels, squares = np.empty(data.rows, np.int32), np.empty(data.rows)
    sums, mass = (torch.zeros((k, width), dtype=torch.float64, device=centers.device) for width in (dim, 1))
    counts = torch.zeros(k, dtype=torch.int64, device=centers.device)
    weights = None
    for block in data.blocks(k):
        points = torch.from_numpy(block.rows).to(centers.device)
        found = nearest_centroid(points, prepared).labels
        own = centers[found]
        labels[block.places] = found.cpu().numpy()
        squares[block.places] = squared_distances(points, own).cpu().numpy()
        differences = points - own
        if block.weights is not None:
            weights = np.empty(data.rows) if weights is None else weights
            weights[block.places] = block.weights
            masses = torch.from_numpy(block.weights).to(centers.device)[:, None]
            differences *= masses
            centroid_sums(masses, found, k, out=(mass, counts.clone()))
        centroid_sums(differences, found, k, out=(sums, counts))
    return _Pass(labels, squares, weights, sums, mass[:, 0] if weights is not None else counts.to(torch.float64))


def _update(data: WideData, centers: Tensor, found: _Pass) -> tuple[Tensor, bool]:
    """Return the new centers (k, D), and whether centers of empty clusters moved to the farthest vectors."""
    sums, mass = found.sums.clone(), found.mass.clone()
    after = centers.clone()
    empty = (mass == 0).nonzero()[:, 0]
    away = found.squares if found.weights is None else np.where(found.weights > 0, found.squares, 0)
    far = np.argsort(-away, kind="stable")[: len(empty)] if len(empty) else np.empty(0, np.int64)
    far = np.sort(far[away[far] > 0])
    if len(far):
        vectors = torch.from_numpy(data.take(far)).to(centers.device)
        for cluster, place, vector in zip(empty.tolist(), far.tolist(), vectors, strict=False):
            weight = 1.0 if found.weights is None else float(found.weights[place])
            old = int(found.labels[place])
            sums[old] -= weight * (vector - centers[old])
            mass[old] -= weight
            after[cluster] = vector
    used = ((mass > 0) & (found.mass > 0)).nonzero()[:, 0]
    after[used] = centers[used] + sums[used] / mass[used, None]
    return after, len(far) > 0


def _is_settled(centers: Tensor, found: _Pass) -> bool:
    """Return whether every center (k, D) is the mean of its vectors, up to float64 rounding and negligible gains."""
    mass = found.mass.clamp(min=torch.finfo(torch.float64).tiny)
    gains = found.sums.square().sum(dim=1) / mass
    rounding = mass * (_ULPS * centers).square().sum(dim=1)
    squares = torch.from_numpy(found.cluster_squares).to(centers.device)
    return bool((gains <= _SETTLED * squares + rounding).all())
