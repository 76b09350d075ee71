"""First centers in float64: greedy k-means++, and swaps that mend what it missed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kernels.assign import nearest_centroid
from sctok.kernels.certify import pair_distances
from sctok.kmeans_tools.seeding.first_centroids import CHOICE, SAMPLE, sample_size
from sctok.kmeans_tools.seeding.plus_plus import greedy_plus_plus
from sctok.kmeans_tools.sources.distinct import distinct_rows, find_distinct
from sctok.kmeans_tools.sources.vectors import TooFewVectorsError, sample_places

from .frames import Wide
from .lloyd import WideData, WideFit, fit_wide

_IMPROVEMENTS = 2
_MANY_CENTERS = 256
_FEW_DRAWS = 3
_SWAPS_PER_CENTER, _MOST_SWAPS = 4, 512
_SWAP = 6  # keeps its random numbers apart from CHOICE and SAMPLE


def seed_wide(data: WideData, k: int, method: str, seed: int, device: torch.device) -> Wide:
    """Return k first centers (k, D): distinct vectors of a random sample of positive weight.

    method: "random", "kmeans++", or any other for k-means++ with local search (Lattanzi and Sohler 2019): a vector,
    drawn in proportion to its squared distance, takes the place of the center whose loss costs least, if that lowers
    the inertia.

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
    """Return centers (k, D) after swaps with vectors of a random sample, each of which lowers the inertia there."""
    k = len(centers)
    try:
        vectors, masses = _distinct_sample(data, k, (seed, k, _SWAP))
    except TooFewVectorsError:
        return centers
    generator = np.random.default_rng([seed, k, _SWAP])
    return _local_search(vectors, masses / masses.max(), centers, generator, device)


def _distinct_sample(data: WideData, k: int, seed: Sequence[int]) -> tuple[Wide, Wide]:
    """Return distinct vectors (n, D), n >= k, and their weights (n,)."""
    source = data.source
    count = sample_size(k, 2 * source.dim, source.rows, "kmeans++")
    weights = data.weights
    positive = np.arange(source.rows) if weights is None else np.flatnonzero(weights)
    places = positive[sample_places(len(positive), count, seed)]
    sample = data.take(places)
    first, masses = distinct_rows(sample, None if weights is None else weights[places])
    if len(first) >= k:
        return sample[first], masses
    found = find_distinct(data.blocks(k), max(k, count))
    if len(found.vectors) < k:
        number = len(found.vectors)
        raise TooFewVectorsError(f"k = {k} exceeds the {number} distinct vectors of {source.name}", number)
    return found.vectors, found.masses


def _local_search(
    vectors: Wide, masses: Wide, first: Wide, generator: np.random.Generator, device: torch.device
) -> Wide:
    """Return centers (k, D) after swaps with vectors (n, D), of weights (n,), that lower the inertia."""
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
    """Bring the two nearest centers (n, 2) up to date, in place, after a center moved to distances `reach` (n,)."""
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
    """Return the two nearest of k >= 2 centers (k, D) for each point (n, D), (n, 2), and the squared distances."""
    found = nearest_centroid(points, centers, runner_up=True)
    assert found.second_labels is not None
    owners = torch.stack([found.labels, found.second_labels], dim=1)
    squares = torch.stack([pair_distances(points, centers, None, column) for column in owners.T], dim=1)
    return owners.cpu().numpy(), squares.cpu().numpy()


def _squares_to(points: Tensor, place: int) -> Wide:
    """Return the squared distances (n,) of points (n, D) to the one at a place."""
    zeros = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    return pair_distances(points, points[place : place + 1], None, zeros).cpu().numpy()


def run_wide(
    data: WideData,
    k: int,
    *,
    method: str,
    given: Wide | None,
    seed: int,
    iterations: int,
    tol: float,
    device: torch.device,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> WideFit:
    """Seed and fit k centers in float64, or fit from given ones (k, D).

    If empty clusters had to be relocated, or clusters are so small that what Lloyd's iterations can do depends on their
    rounding elsewhere, swaps improve the result.
    """
    first = seed_wide(data, k, method, seed, device) if given is None else data.inside(given)
    fit = partial(fit_wide, data, tol=tol, device=device, progress=progress)
    found = fit(first, iterations=iterations)
    for round_number in range(_IMPROVEMENTS):
        left = iterations - found.iterations
        if left < 1 or not (found.relocated or found.blurred):
            break
        again = fit(improve_wide(data, found.centers, seed + round_number, device), iterations=left)
        if not again.inertia < found.inertia:
            break
        found = replace(again, iterations=found.iterations + again.iterations, relocated=True)
    return found
