"""First centers in float64: greedy k-means++, and swaps that improve them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid
from sctok.kernels.certify import pair_distances
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.progress import FitProgress
from sctok.kmeans_tools.seeding.first_centroids import CHOICE, SAMPLE, gather_distinct, sample_size
from sctok.kmeans_tools.seeding.plus_plus import greedy_plus_plus
from sctok.kmeans_tools.sources.distinct import distinct_rows
from sctok.kmeans_tools.sources.vectors import TooFewVectorsError, sample_weighted
from sctok.runtime.devices import resolve_device

from .frames import Wide
from .lloyd import WideData, WideFit, fit_wide

_IMPROVEMENTS = 2
_MANY_CENTERS = 256
_FEW_DRAWS = 3
_SWAPS_PER_CENTER, _MOST_SWAPS = 4, 512
_SWAP = 6  # a seed, different from CHOICE and SAMPLE


def seed_wide(data: WideData, k: int, method: str, seed: int, device: torch.device) -> Wide:
    """Return first centers (k, D): distinct vectors of positive weight from a random sample.

    method: "random", "kmeans++", or anything else for k-means++ with local search (Lattanzi and Sohler 2019). A step
    draws a vector in proportion to its squared distance. If that lowers the inertia, the vector replaces the center
    whose removal costs least.

    Raises:
        TooFewVectorsError: the data have fewer than k distinct vectors.
    """
    vectors, masses = _distinct_sample(data, k, (seed, k, SAMPLE))
    generator = np.random.default_rng([seed, k, CHOICE])
    if method == "random":
        return vectors[generator.choice(len(vectors), k, replace=False)]
    masses = masses / masses.max()
    draws = 2 + int(math.log(k)) if k <= _MANY_CENTERS else _FEW_DRAWS
    first = int(generator.choice(len(vectors), p=masses / masses.sum()))
    columns = np.ascontiguousarray(vectors.T)
    chosen = greedy_plus_plus(columns, masses, first, generator.random((k - 1, draws)))
    return (
        vectors[chosen] if method == "kmeans++" else _local_search(vectors, masses, vectors[chosen], generator, device)
    )


def improve_wide(data: WideData, centers: Wide, seed: int, device: torch.device) -> Wide:
    """Return centers (k, D) after swaps with vectors of a random sample; each swap lowers the inertia of the sample."""
    k = len(centers)
    try:
        vectors, masses = _distinct_sample(data, k, (seed, k, _SWAP))
    except TooFewVectorsError:
        return centers
    generator = np.random.default_rng([seed, k, _SWAP])
    return _local_search(vectors, masses / masses.max(), centers, generator, device)


def _distinct_sample(data: WideData, k: int, seed: Sequence[int]) -> tuple[Wide, Wide]:
    """Sample distinct vectors (n, D), n >= k, and return them with their total weights (n,)."""
    source = data.source
    count = sample_size(k, 2 * source.dim, source.rows, "kmeans++")
    weights, places = data.weights, sample_weighted(source, count, seed)
    sample = data.take(places)
    first, masses = distinct_rows(sample, None if weights is None else weights[places])
    if len(first) >= k:
        return sample[first], masses
    return gather_distinct(data.blocks(k), k, count, source.name)


def _local_search(
    vectors: Wide, masses: Wide, first: Wide, generator: np.random.Generator, device: torch.device
) -> Wide:
    """Return centers (k, D) after swaps with vectors (n, D) of weights (n,); each swap lowers the inertia."""
    k = len(first)
    if k < 2:
        return first
    points, centers = torch.from_numpy(vectors).to(device), torch.from_numpy(first.copy()).to(device)
    owners, squares = _two_nearest(points, centers)
    for _ in range(min(_SWAPS_PER_CENTER * k, _MOST_SWAPS)):
        costs = masses * squares[:, 0]
        cumulated = np.cumsum(costs)
        if not cumulated[-1] > 0:
            break
        place = int(np.searchsorted(cumulated, generator.random() * cumulated[-1], side="right"))
        place = min(place, int(np.flatnonzero(costs)[-1]))
        reach = _squares_to(points, place)
        left = masses * np.minimum(squares[:, 0], reach)
        losses = np.bincount(owners[:, 0], masses * np.minimum(squares[:, 1], reach) - left, k)
        center = int(losses.argmin())
        if left.sum() + losses[center] < costs.sum():
            centers[center] = points[place]
            _swap(points, centers, center, reach, owners, squares)
    return centers.cpu().numpy()


def _swap(
    points: Tensor,
    centers: Tensor,
    center: int,
    reach: Wide,
    owners: npt.NDArray[np.int64],
    squares: Wide,
) -> None:
    """Update the two nearest centers (n, 2) in place after a center moved; `reach` (n,): squared distances to it."""
    lost = np.flatnonzero((owners == center).any(axis=1))
    nearest = reach < squares[:, 0]
    second = ~nearest & (reach < squares[:, 1])
    owners[nearest, 1], squares[nearest, 1] = owners[nearest, 0], squares[nearest, 0]
    owners[nearest, 0], squares[nearest, 0] = center, reach[nearest]
    owners[second, 1], squares[second, 1] = center, reach[second]
    if len(lost):
        rows = points[torch.from_numpy(lost).to(points.device)]
        owners[lost], squares[lost] = _two_nearest(rows, centers)


def _two_nearest(points: Tensor, centers: Tensor) -> tuple[npt.NDArray[np.int64], Wide]:
    """Return the two nearest of k >= 2 centers (k, D) for each point (n, D), and the squared distances, both (n, 2)."""
    found = nearest_centroid(points, centers, runner_up=True)
    assert found.second_labels is not None
    owners = torch.stack([found.labels, found.second_labels], dim=1)
    squares = torch.stack([pair_distances(points, centers, None, column) for column in owners.T], dim=1)
    return owners.cpu().numpy(), squares.cpu().numpy()


def _squares_to(points: Tensor, place: int) -> Wide:
    """Return the squared distances (n,) of points (n, D) to the point at a place."""
    zeros = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return pair_distances(points, points[place : place + 1], None, zeros).cpu().numpy()


def run_wide(data: WideData, k: int, config: KMeansConfig, given: Wide | None, progress: FitProgress | None) -> WideFit:
    """Seed and fit k centers in float64, or fit from given first centers (k, D).

    Swaps improve the result if centers of empty clusters were relocated. They also improve it if clusters are so small
    that the iterations of other implementations would depend on their rounding.
    """
    device = resolve_device(config.device)
    first = seed_wide(data, k, config.seeding, config.seed, device) if given is None else data.inside(given)
    fit = partial(fit_wide, data, tol=config.tolerance, device=device, progress=progress)
    best = fit(first, iterations=config.most_iterations)
    for round_number in range(_IMPROVEMENTS):
        left = config.most_iterations - best.iterations
        if left < 1 or not (best.relocated or best.blurred):
            break
        again = fit(improve_wide(data, best.centers, config.seed + round_number, device), iterations=left)
        if not again.inertia < best.inertia:
            break
        best = replace(again, iterations=best.iterations + again.iterations, relocated=True)
    return best
