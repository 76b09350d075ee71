"""First centroids from a sample of bounded size: hierarchical, greedy k-means++ or random."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kmeans_tools.sources.distinct import distinct_rows, find_distinct
from sctok.kmeans_tools.sources.vectors import (
    Block,
    TooFewVectorsError,
    Vectors,
    VectorSource,
    Weights,
    sample_weighted,
    source_weights,
)

from .hierarchical import PickedRows, hierarchical_centroids

SEEDINGS = ("hierarchical", "kmeans++", "random")
SAMPLE, CHOICE = 4, 5  # seeds that keep the random numbers of different purposes independent

_SMALLEST_SAMPLE = 16_384
_SAMPLE_PER_CENTROID = {"hierarchical": 24, "kmeans++": 4, "random": 4}
_SAMPLE_BYTES = 1 << 30
_MOST = 0.9  # a sample of more than this share of the vectors is enlarged to all of them, which saves a copy


def sample_size(k: int, dim: int, rows: int, method: str, memory: int | None = None) -> int:
    """Return the number of vectors (D = dim, float32) to sample for seeding k centroids.

    The sample is at most 1 GiB and an eighth of `memory` bytes, because it is copied, but at least 2 k vectors.
    """
    wanted = max(_SMALLEST_SAMPLE, _SAMPLE_PER_CENTROID[method] * k)
    limit = _SAMPLE_BYTES if memory is None else min(_SAMPLE_BYTES, memory // 8)
    largest = limit // (4 * dim)
    return rows if _MOST * rows <= wanted and rows <= largest else min(rows, max(2 * k, min(wanted, largest)))


def draw_sample(source: VectorSource, count: int, seed: Sequence[int]) -> tuple[Vectors, Weights | None]:
    """Sample at most `count` vectors (n, D) without replacement, in the order of their places, and their weights.

    Vectors of weight 0 are never drawn.
    """
    weights, places = source_weights(source), sample_weighted(source, count, seed)
    return source.take(places), None if weights is None else weights[places]


def seed_centroids(
    sample: Vectors,
    k: int,
    method: str,
    generator: np.random.Generator,
    device: torch.device,
    weights: Weights | None = None,
    draft: Callable[[Vectors], None] | None = None,
) -> Vectors:
    """Return first centroids (k, D) float32 for a sample (n, D) of positive weights (n,).

    method: "hierarchical" (means, see hierarchical.py), or distinct vectors of the sample: "kmeans++" (each is the best
    of 2 + ln k draws in proportion to the squared distance to those chosen; Arthur and Vassilvitskii 2007) or "random"
    (uniform). draft: "hierarchical" calls it once with preliminary centroids.

    Raises:
        ValueError: the sample has fewer than k distinct vectors, or the method is unknown.
    """
    if method not in SEEDINGS:
        raise ValueError(f"seeding {method!r} is not one of {', '.join(SEEDINGS)}")
    places, masses = check_distinct(sample, k, weights)
    if method == "hierarchical":
        chosen = None if len(places) == len(sample) else places
        return hierarchical_centroids(PickedRows(sample, chosen), masses, k, generator, device, draft)
    distinct = sample if len(places) == len(sample) else sample[places]
    if method == "random":
        chosen = generator.choice(len(places), k, replace=False)
    else:
        chosen = _plus_plus(distinct, masses, k, generator, device)
    return np.ascontiguousarray(distinct[chosen])


def check_distinct(sample: Vectors, k: int, weights: Weights | None = None) -> tuple[npt.NDArray[np.int64], Weights]:
    """Return the result of `distinct_rows`. Raises TooFewVectorsError if there are fewer than k distinct vectors."""
    places, masses = distinct_rows(sample, weights)
    if len(places) < k:
        raise TooFewVectorsError(k, len(places), f"distinct vectors among the {len(sample)} drawn for seeding")
    return places, masses


def gather_distinct(blocks: Iterable[Block], k: int, count: int, name: str) -> tuple[npt.NDArray[Any], Weights]:
    """Return distinct vectors (m, D) of a whole source, k <= m <= max(k, count), and the sums (m,) of their weights.

    Used if a sample contains fewer than k distinct vectors.

    Raises:
        TooFewVectorsError: the source has fewer than k distinct vectors.
    """
    found = find_distinct(blocks, max(k, count))
    if len(found.vectors) < k:
        raise TooFewVectorsError(k, len(found.vectors), f"distinct vectors of {name}")
    return found.vectors, found.masses


def _plus_plus(
    vectors: Vectors, masses: Weights, k: int, generator: np.random.Generator, device: torch.device
) -> npt.NDArray[np.int64]:
    """Choose k of n distinct vectors (n, D) with total weights (n,) by greedy k-means++, and return their places."""
    points = torch.from_numpy(vectors).to(device)
    points = points - points.mean(dim=0)
    points /= max(float(points.abs().max()), float(np.finfo(np.float32).tiny))
    norms = torch.linalg.vector_norm(points, dim=1).square()
    draws = 2 + int(math.log(k))
    weights = torch.from_numpy(masses / masses.max()).to(device, torch.float32)
    chosen = [int(generator.choice(len(vectors), p=masses / masses.sum()))]
    closest = _distances(points, norms, torch.tensor(chosen, device=device))[0]
    while len(chosen) < k:
        closest[chosen[-1]] = 0
        candidates = torch.from_numpy(_draw((closest * weights).cpu().numpy(), chosen, draws, generator)).to(device)
        reduced = torch.minimum(_distances(points, norms, candidates), closest)
        best = int((reduced * weights).sum(dim=1, dtype=torch.float64).argmin())
        closest = reduced[best]
        chosen.append(int(candidates[best]))
    return np.array(chosen, dtype=np.int64)


def _draw(
    weights: npt.NDArray[np.float32], chosen: list[int], draws: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw places in proportion to weights (n,); if all are 0 in float32, draw one place that is not chosen yet."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    if not cumulated[-1] > 0:
        return np.array([generator.choice(np.setdiff1d(np.arange(len(weights)), chosen))], np.int64)
    drawn = np.searchsorted(cumulated, generator.random(draws) * cumulated[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(weights)[-1])


def _distances(points: Tensor, norms: Tensor, places: Tensor) -> Tensor:
    """Return the squared distances (c, n) of all points (n, D) to points[places] (c,), computed in float32."""
    distances = torch.addmm(norms, points[places], points.T, alpha=-2).add_(norms[places, None])
    return distances.clamp_(min=0)
