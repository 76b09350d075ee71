"""First centroids by two levels of k-means in the leading principal components of a sample.

First about sqrt(k) coarse clusters are found, the cells. Each cell is then divided into fine clusters; their number
depends on its share of the vectors and of the inertia. In the following rounds a vector can also move to the fine
clusters of neighbouring cells, which corrects the errors of the division. In some of these rounds a centroid moves from
a cluster that has two of them to a cluster that lacks one. All of this happens in few dimensions, where distances
contain less noise. The resulting centroids are the means of the fine clusters in all dimensions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.update import centroid_sums
from sctok.kmeans_tools.sources.vectors import Vectors, Weights
from sctok.runtime.threads import run_tasks

from .plus_plus import greedy_plus_plus

_COMPONENTS = 48
_PROJECTED_FROM = 64  # vectors of at most this many dimensions are not projected
_PCA_ROWS = 4096
_PCA_ROUNDS = 3
_BLOCK_ROWS = 4096
_COARSE_ROWS = 128  # vectors per cell from which the cells are found
_COARSE_ROUNDS = 6
_FINE_ROUNDS = 4
_NEIGHBOURS = 12  # cells to whose fine clusters a vector can move, including its own
_NEIGHBOUR_ROUNDS = 5
_SWAPPING_ROUNDS = 3  # the first of these rounds also move centroids
_LARGEST_SWAP = 128
_WORTH_SWAPPING = 1.25
_DRAWS = 3

Indices = npt.NDArray[np.int64]


class PickedRows:
    """The rows at `places` of an array (n, D), or all rows if that is None; indexing copies only the rows asked for."""

    def __init__(self, vectors: Vectors, places: Indices | None) -> None:
        self._vectors, self._places = vectors, places

    def __len__(self) -> int:
        return len(self._vectors if self._places is None else self._places)

    def __getitem__(self, wanted: slice | Indices) -> Vectors:
        return self._vectors[wanted if self._places is None else self._places[wanted]]


@dataclass(frozen=True)
class _Cells:
    """Vectors (n, d) sorted by their m cells, with weights (n,) float32.

    order: (n,), the original index of each vector. starts: (m + 1,), index of the first vector of each cell. shares:
    (m,), share of the fine centroids for each cell; their sum is 1. neighbours: (m, p), the nearest cells of each cell,
    ascending.
    """

    points: Tensor
    weights: Tensor
    order: Tensor
    starts: Indices
    shares: Weights
    neighbours: Indices


def hierarchical_centroids(
    rows: PickedRows,
    masses: Weights,
    k: int,
    generator: np.random.Generator,
    device: torch.device,
    draft: Callable[[Vectors], None] | None = None,
) -> Vectors:
    """Return centroids (k, D) float32 for n >= k distinct vectors (n, D) with positive weights `masses` (n,).

    Every centroid is the weighted mean of at least one vector, and every vector belongs to one centroid. draft: called
    once with such centroids, as soon as the cells are divided.
    """
    if k == len(rows):
        return rows[np.arange(k)]
    points = principal_components(rows, generator, device)
    weights = torch.from_numpy(masses / masses.max()).to(device, torch.float32)
    cells = _find_cells(points, weights, max(1, round(math.sqrt(k))), generator)
    numbers = allocate(cells.shares, np.diff(cells.starts), k)
    centroids, owners = _divide(cells, numbers, generator)
    swapping = k > 1
    for number in range(_NEIGHBOUR_ROUNDS):
        labels = _move_to_neighbours(cells, centroids, owners)
        if draft is not None and number == 0:
            draft(_whole_means(rows, masses, cells, labels, centroids))
        centroids = _means(cells.points, cells.weights, labels, centroids)
        if swapping and number < _SWAPPING_ROUNDS:
            swapping = _swap(cells, labels, centroids, owners, generator) > 0
    return _whole_means(rows, masses, cells, labels, centroids)


def principal_components(
    vectors: "PickedRows | Vectors", generator: np.random.Generator, device: torch.device
) -> Tensor:
    """Center and scale vectors (n, D) and project them on at most 48 principal components; return (n, d) float32.

    The components are computed from a random sample by subspace iteration (Halko, Martinsson and Tropp 2011).
    """
    part = np.sort(generator.permutation(len(vectors))[:_PCA_ROWS])
    sample = torch.from_numpy(vectors[part]).to(device)
    center = sample.to(torch.float64).mean(dim=0).to(torch.float32)
    sample = sample - center
    scale = max(float(sample.abs().max()), float(np.finfo(np.float32).tiny))
    sample /= scale
    basis = None
    if sample.shape[1] > _PROJECTED_FROM:
        start = generator.standard_normal((sample.shape[1], _COMPONENTS), np.float32)
        basis = torch.linalg.qr(torch.from_numpy(start).to(device))[0]
        for _ in range(_PCA_ROUNDS):
            basis = torch.linalg.qr(sample.T @ (sample @ basis))[0]
    blocks = []
    for first in range(0, len(vectors), _BLOCK_ROWS):
        block = torch.from_numpy(vectors[first : first + _BLOCK_ROWS]).to(device)
        block = (block - center).div_(scale)
        blocks.append(block if basis is None else block @ basis)
    return torch.cat(blocks)


def allocate(shares: Weights, limits: Indices, k: int) -> Indices:
    """Distribute k centroids over m <= k cells in proportion to their shares (m,); return the numbers (m,) int64.

    Each cell gets at least 1 and at most its limit (m,), by largest remainder. k is at most the sum of the limits.
    """
    wanted = np.maximum(shares, 1e-9)

    def rounded(factor: float) -> Indices:
        return np.clip(np.floor(np.minimum(factor * wanted, limits)), 1, limits).astype(np.int64)

    low, high = 0.0, float(k)
    while rounded(high).sum() < k:
        high *= 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if rounded(middle).sum() <= k else (low, middle)
    numbers = rounded(low)
    remainder = np.where(numbers < limits, low * wanted - numbers, -np.inf)
    numbers[np.argsort(-remainder, kind="stable")[: k - numbers.sum()]] += 1
    return numbers


def fill_empty(labels: Indices, distances: npt.NDArray[np.floating], k: int) -> Indices:
    """Return labels (n,) without empty clusters, k <= n: far vectors of clusters with two or more move to empty ones.

    distances: (n,), distance of each vector to its centroid.
    """
    counts = np.bincount(labels, minlength=k)
    empty = np.flatnonzero(counts == 0).tolist()
    labels = labels.copy()
    for place in np.argsort(-distances, kind="stable") if empty else ():
        if counts[labels[place]] > 1:
            counts[labels[place]] -= 1
            labels[place] = empty.pop()
            if not empty:
                break
    return labels


def _find_cells(points: Tensor, weights: Tensor, count: int, generator: np.random.Generator) -> _Cells:
    """Sort vectors (n, d) into at most `count` cells, found on a random sample; no cell is empty."""
    part = torch.from_numpy(np.sort(generator.permutation(len(points))[: _COARSE_ROWS * count])).to(points.device)
    sample, masses = points[part], weights[part]
    centroids = sample[torch.from_numpy(_plus_plus(sample, masses, count, generator)()).to(points.device)]
    centroids = _lloyd(sample, masses, centroids, _COARSE_ROUNDS)
    labels = _nearest(points, centroids)
    used, labels = torch.unique(labels, return_inverse=True)
    centroids = _means(points, weights, labels, centroids[used])
    order = torch.argsort(labels, stable=True)
    distances = (points - centroids[labels]).square_().sum(dim=1)
    mass = centroid_sums(torch.stack([weights, weights * distances], dim=1), labels, len(used))[0].cpu().numpy()
    shares = np.sqrt(np.prod(mass / np.maximum(mass.sum(axis=0), 1e-300), axis=1))
    gaps = torch.cdist(centroids, centroids, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    return _Cells(
        points=points[order],
        weights=weights[order],
        order=order,
        starts=np.concatenate([[0], np.cumsum(np.bincount(labels.cpu().numpy()))]),
        shares=shares / max(shares.sum(), 1e-300),
        neighbours=np.sort(np.argsort(gaps, axis=1, kind="stable")[:, :_NEIGHBOURS], axis=1),
    )


def _divide(cells: _Cells, numbers: Indices, generator: np.random.Generator) -> tuple[Tensor, Indices]:
    """Run k-means inside each cell; return the centroids (k, d) and the cells (k,) that own them."""
    spans = list(zip(cells.starts[:-1], cells.starts[1:], strict=True))
    tasks = [
        _plus_plus(cells.points[start:stop], cells.weights[start:stop], number, generator)
        for (start, stop), number in zip(spans, numbers.tolist(), strict=True)
    ]
    centroids = []
    for (start, stop), places in zip(spans, run_tasks(tasks), strict=True):
        points, chosen = cells.points[start:stop], torch.from_numpy(places).to(cells.points.device)
        centroids.append(_lloyd(points, cells.weights[start:stop], points[chosen], _FINE_ROUNDS))
    return torch.cat(centroids), np.repeat(np.arange(len(numbers)), numbers)


def _move_to_neighbours(cells: _Cells, centroids: Tensor, owners: Indices) -> Tensor:
    """Return labels (n,): for each vector the nearest centroid among those of its cell and the neighbouring cells."""
    order = np.argsort(owners, kind="stable")
    offsets = np.searchsorted(owners[order], np.arange(len(cells.starts)))
    labels = torch.empty(len(cells.points), dtype=torch.int64, device=centroids.device)
    for start, stop, around in zip(cells.starts[:-1], cells.starts[1:], cells.neighbours, strict=True):
        near = np.concatenate([order[offsets[cell] : offsets[cell + 1]] for cell in around])
        choice = torch.from_numpy(near).to(centroids.device)
        labels[start:stop] = choice[_nearest(cells.points[start:stop], centroids[choice])]
    return labels


def _swap(cells: _Cells, labels: Tensor, centroids: Tensor, owners: Indices, generator: np.random.Generator) -> int:
    """Move centroids (k, d) from clusters that have two to places that lack one, in place; return how many moved.

    A centroid can move if giving its vectors to its nearest neighbour costs little. It moves to a vector that is drawn
    in proportion to its squared distance, if the gain there is larger. Lloyd's iterations cannot make such moves
    between separated clusters. owners: (k,), the cell of each centroid, updated in place.
    """
    k = len(centroids)
    distances = (cells.points - centroids[labels]).square_().sum(dim=1)
    shares = (distances * cells.weights).cpu().numpy().astype(np.float64)
    found = labels.cpu().numpy()
    away = np.flatnonzero(shares > 0)
    keys = -np.log1p(-generator.random(len(away))) / shares[away]
    drawn = away[np.argsort(keys, kind="stable")[: min(k // 2, _LARGEST_SWAP)]]
    drawn = drawn[np.sort(np.unique(found[drawn], return_index=True)[1])]
    gains = _gains(cells, distances, torch.from_numpy(drawn).to(labels.device))
    costs, partners = _merge_costs(centroids, np.bincount(found, cells.weights.cpu().numpy(), minlength=k))
    taken = np.zeros(k, np.bool_)
    taken[found[drawn]] = True
    moved = 0
    leaving = iter(np.argsort(costs, kind="stable").tolist())
    for candidate in np.argsort(-gains, kind="stable"):
        place, gain = int(drawn[candidate]), gains[candidate]
        index = next((j for j in leaving if not taken[j] and not taken[partners[j]]), None)
        if index is None or gain <= _WORTH_SWAPPING * costs[index]:
            break
        taken[[index, partners[index]]] = True
        centroids[index] = cells.points[place]
        owners[index] = np.searchsorted(cells.starts, place, side="right") - 1
        moved += 1
    return moved


def _gains(cells: _Cells, distances: Tensor, places: Tensor) -> npt.NDArray[np.float64]:
    """Return the fall of the inertia (c,) if the vector at each of places (c,) became an additional centroid."""
    chosen = cells.points[places]
    squares = chosen.square().sum(dim=1)
    gains = torch.zeros(len(places), dtype=torch.float64, device=distances.device)
    for first in range(0, len(distances), _BLOCK_ROWS):
        part = slice(first, first + _BLOCK_ROWS)
        points = cells.points[part]
        reach = torch.addmm(squares, points, chosen.T, alpha=-2)
        nearer = (distances[part] - points.square().sum(dim=1))[:, None] - reach
        gains += (cells.weights[part] @ nearer.clamp_(min=0)).to(torch.float64)
    return gains.cpu().numpy()


def _merge_costs(centroids: Tensor, masses: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], Indices]:
    """Return the rise of the inertia (k,) if each cluster joined its nearest cluster, and that cluster (k,)."""
    k = len(centroids)
    squares = centroids.square().sum(dim=1)
    parts = []
    for first in range(0, k, _BLOCK_ROWS):
        scores = torch.addmm(squares, centroids[first : first + _BLOCK_ROWS], centroids.T, alpha=-2)
        scores.diagonal(offset=first).fill_(torch.inf)
        parts.append(_row_argmin(scores))
    partners = torch.cat(parts)
    gaps = (centroids - centroids[partners]).square_().sum(dim=1).cpu().numpy().astype(np.float64)
    nearest: Indices = partners.cpu().numpy()
    return gaps * masses * masses[nearest] / np.maximum(masses + masses[nearest], 1e-300), nearest


def _plus_plus(points: Tensor, weights: Tensor, k: int, generator: np.random.Generator) -> Callable[[], Indices]:
    """Draw random numbers for greedy k-means++; return a function that chooses k of n >= k vectors (n, d) on the host.

    The draws happen at once, so that the functions can then run in any order.
    """
    columns = np.ascontiguousarray(points.cpu().numpy().T)
    masses = weights.cpu().numpy().astype(np.float64)
    if k >= len(masses):
        return lambda: np.arange(len(masses))
    first = int(generator.choice(len(masses), p=masses / masses.sum()))
    return partial(greedy_plus_plus, columns, masses, first, generator.random((k - 1, _DRAWS)))


def _lloyd(points: Tensor, weights: Tensor, centroids: Tensor, rounds: int) -> Tensor:
    for _ in range(rounds):
        centroids = _means(points, weights, _nearest(points, centroids), centroids)
    return centroids


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the index (n,) int64 of the nearest of a few centroids, computed in float32."""
    squares = centroids.square().sum(dim=1)
    labels = []
    for first in range(0, len(points), _BLOCK_ROWS):
        scores = torch.addmm(squares, points[first : first + _BLOCK_ROWS], centroids.T, alpha=-2)
        labels.append(_row_argmin(scores))
    return torch.cat(labels)


def _row_argmin(scores: Tensor) -> Tensor:
    if scores.device.type == "cpu":  # NumPy's argmin is many times faster there
        return torch.from_numpy(scores.numpy().argmin(axis=1))
    return scores.argmin(dim=1)


def _means(points: Tensor, weights: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Return the weighted means (k, d) of the clusters; empty clusters keep their centroid."""
    sums = centroid_sums(torch.cat([points * weights[:, None], weights[:, None]], dim=1), labels, len(centroids))[0]
    means = (sums[:, :-1] / sums[:, -1:]).to(torch.float32)
    return torch.where(sums[:, -1:] > 0, means, centroids)


def _whole_means(vectors: PickedRows, masses: Weights, cells: _Cells, labels: Tensor, centroids: Tensor) -> Vectors:
    """Fill empty clusters and return the weighted means (k, D) of vectors (n, D); labels (n,) are in cell order."""
    k, device = len(centroids), centroids.device
    distances = (cells.points - centroids[labels]).square_().sum(dim=1) * cells.weights
    found = np.empty(len(labels), np.int64)
    found[cells.order.cpu().numpy()] = fill_empty(labels.cpu().numpy(), distances.cpu().numpy(), k)
    return _full_means(vectors, masses, found, k, device)


def _full_means(vectors: PickedRows, masses: Weights, labels: Indices, k: int, device: torch.device) -> Vectors:
    """Return the weighted means (k, D) of vectors (n, D) under labels (n,); every label occurs."""
    sums = None
    even = bool((masses == masses[0]).all())
    for first in range(0, len(vectors), _BLOCK_ROWS):
        block = torch.from_numpy(vectors[first : first + _BLOCK_ROWS]).to(device)
        found = torch.from_numpy(labels[first : first + _BLOCK_ROWS]).to(device)
        if not even:
            part = torch.from_numpy(masses[first : first + _BLOCK_ROWS]).to(device)
            block = block.to(torch.float64) * part[:, None]
        sums = centroid_sums(block, found, k, out=sums)
    assert sums is not None
    mass = sums[1].cpu().numpy() if even else np.bincount(labels, masses, minlength=k)
    return (sums[0].cpu().numpy() / mass[:, None]).astype(np.float32)
