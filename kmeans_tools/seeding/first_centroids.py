"""First centroids: hierarchical, greedy k-means++ or random, from a sample of bounded size."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.kmeans_tools.sources.distinct import distinct_rows, find_distinct
from sctok.kmeans_tools.sources.vectors import TooFewVectorsError, Vectors, VectorSource, Weights, sample_places

from .hierarchical import hierarchical_centroids

SEEDINGS = ("hierarchical", "kmeans++", "random")
SAMPLE, CHOICE = 4, 5  # keep the random numbers of different purposes apart

_SMALLEST_SAMPLE = 16_384
_SAMPLE_PER_CENTROID = {"hierarchical": 24, "kmeans++": 4, "random": 4}
_SAMPLE_BYTES = 1 << 30
_MOST = 0.9  # share of the vectors from which all of them are taken, which need not be copied


def sample_size(k: int, dim: int, rows: int, method: str, memory: int | None = None) -> int:
    """Return how many vectors (of D = dim float32) to draw for seeding k centroids.

    At most 1 GiB of them and an eighth of `memory` bytes, for copies are made of them, but 2 k vectors in any case.
    """
    wanted = max(_SMALLEST_SAMPLE, _SAMPLE_PER_CENTROID[method] * k)
    limit = _SAMPLE_BYTES if memory is None else min(_SAMPLE_BYTES, memory // 8)
    largest = limit // (4 * dim)
    return rows if _MOST * rows <= wanted and rows <= largest else min(rows, max(2 * k, min(wanted, largest)))


def source_weights(source: VectorSource) -> Weights | None:
    """Return the weights (rows,) of the vectors of a source, None where all weigh 1."""
    weights: Weights | None = getattr(source, "weights", None)
    return weights


def draw_sample(source: VectorSource, count: int, seed: Sequence[int]) -> tuple[Vectors, Weights | None]:
    """Return different vectors (n, D), at most `count`, at random in the order of their places, and their weights.

    Only vectors of positive weight are drawn, whatever lies between them: zero weight is as good as not being there.
    """
    weights = source_weights(source)
    if weights is None:
        return source.sample(count, seed), None
    positive = np.flatnonzero(weights)
    places = positive[sample_places(len(positive), count, seed)]
    return source.take(places), weights[places]


def seed_centroids(
    sample: Vectors,
    k: int,
    method: str,
    generator: np.random.Generator,
    device: torch.device,
    weights: Weights | None = None,
    draft: Callable[[Vectors], None] | None = None,
) -> Vectors:
    """Find first centroids (k, D) float32 in a sample (n, D) of positive weights (n,).

    method: "hierarchical" (means, see hierarchical.py), or distinct vectors of the sample: "kmeans++" (each next one
    drawn in proportion to the squared distance to those chosen, the best of 2 + ln k draws; Arthur and Vassilvitskii
    2007) or "random" (uniformly). draft: of "hierarchical", called once with centroids that are there before.

    Raises:
        ValueError: fewer than k distinct vectors in the sample, or an unknown method.
    """
    if method not in SEEDINGS:
        raise ValueError(f"seeding {method!r} is none of {', '.join(SEEDINGS)}")
    places, masses = check_distinct(sample, k, weights)
    if method == "hierarchical":
        chosen = None if len(places) == len(sample) else places
        return hierarchical_centroids(sample, masses, k, generator, device, chosen, draft)
    distinct = sample if len(places) == len(sample) else sample[places]
    if method == "random":
        chosen = generator.choice(len(places), k, replace=False)
    else:
        chosen = _plus_plus(distinct, masses, k, generator, device)
    return np.ascontiguousarray(distinct[chosen])


def check_distinct(sample: Vectors, k: int, weights: Weights | None = None) -> tuple[npt.NDArray[np.int64], Weights]:
    """Return what `distinct_rows` does. Raises TooFewVectorsError where there are fewer than k."""
    places, masses = distinct_rows(sample, weights)
    if len(places) < k:
        raise TooFewVectorsError(
            f"k = {k} exceeds the {len(places)} distinct vectors among the {len(sample)} drawn for seeding; "
            f"choose k <= {len(places)} or add audio",
            len(places),
        )
    return places, masses


def gather_distinct(source: VectorSource, k: int, count: int, block_rows: int) -> tuple[Vectors, Weights]:
    """Return distinct vectors (m, D) of a whole source, k <= m <= max(k, count), and the sum (m,) of their weights.

    For data in which a sample finds fewer than k distinct vectors.

    Raises:
        TooFewVectorsError: the source has fewer than k distinct vectors.
    """
    found = find_distinct(source.blocks(block_rows), max(k, count))
    if len(found.vectors) < k:
        raise TooFewVectorsError(
            f"k = {k} exceeds the {len(found.vectors)} distinct vectors of {source.name}; "
            f"choose k <= {len(found.vectors)} or add audio",
            len(found.vectors),
        )
    return found.vectors, found.masses


def _plus_plus(
    vectors: Vectors, masses: Weights, k: int, generator: np.random.Generator, device: torch.device
) -> npt.NDArray[np.int64]:
    """Return the places of k of n distinct vectors (n, D), each of mass (n,)."""
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
    """Draw places in proportion to weights (n,); one of those not chosen where float32 sees no distance any more."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    if not cumulated[-1] > 0:
        return np.array([generator.choice(np.setdiff1d(np.arange(len(weights)), chosen))], np.int64)
    drawn = np.searchsorted(cumulated, generator.random(draws) * cumulated[-1], side="right")
    places: npt.NDArray[np.int64] = np.minimum(drawn, np.flatnonzero(weights)[-1])
    return places


def _distances(points: Tensor, norms: Tensor, places: Tensor) -> Tensor:
    """Return squared distances (c, n) float32 of all points (n, D) to points[places] (c,), as near as float32 goes."""
    distances = torch.addmm(norms, points[places], points.T, alpha=-2).add_(norms[places, None])
    return distances.clamp_(min=0)
