"""First centroids: greedy k-means++ or random distinct vectors, from a sample of bounded size."""

import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .sources import Vectors

SEEDINGS = ("kmeans++", "random")

_SMALLEST_SAMPLE = 16_384
_SAMPLE_PER_CENTROID = 4
_SAMPLE_BYTES = 1 << 30


def sample_size(k: int, dim: int, rows: int) -> int:
    """Return how many vectors (of D = dim float32) to draw for seeding k centroids: at most 1 GiB or 2 k vectors."""
    wanted = max(_SMALLEST_SAMPLE, _SAMPLE_PER_CENTROID * k)
    return min(rows, max(2 * k, min(wanted, _SAMPLE_BYTES // (4 * dim))))


def seed_centroids(
    sample: Vectors, k: int, method: str, generator: np.random.Generator, device: torch.device
) -> Vectors:
    """Choose k distinct vectors of a sample (n, D) as first centroids (k, D) float32.

    method: "kmeans++" (each next one drawn in proportion to the squared distance to those chosen, the best of
    2 + ln k draws; Arthur and Vassilvitskii 2007) or "random" (uniformly among the distinct ones).

    Raises:
        ValueError: fewer than k distinct vectors in the sample, or an unknown method.
    """
    if method not in SEEDINGS:
        raise ValueError(f"seeding {method!r} is none of {', '.join(SEEDINGS)}")
    places, counts = distinct_rows(sample)
    if len(places) < k:
        raise ValueError(
            f"k = {k} exceeds the {len(places)} distinct vectors among the {len(sample)} drawn for seeding; "
            f"choose k <= {len(places)} or add audio"
        )
    if method == "random":
        chosen = generator.choice(len(places), k, replace=False)
    else:
        chosen = _plus_plus(sample[places], counts, k, generator, device)
    return np.ascontiguousarray(sample[places[chosen]])


def distinct_rows(vectors: Vectors) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, in order, the place of the first of each set of equal vectors (n, D), and how many they are.

    Silence and padding make real features repeat; k-means++ sees each vector once, with its weight.
    """
    counts: dict[bytes, int] = {}
    places = []
    for place, row in enumerate(vectors):
        # Adding zero turns -0.0 into 0.0, which compare equal and differ in their bytes.
        digest = hashlib.blake2b((row + np.float32(0)).tobytes(), digest_size=16).digest()
        if digest not in counts:
            places.append(place)
        counts[digest] = counts.get(digest, 0) + 1
    return np.array(places, np.int64), np.fromiter(counts.values(), np.int64)


def _plus_plus(
    vectors: Vectors, counts: npt.NDArray[np.int64], k: int, generator: np.random.Generator, device: torch.device
) -> npt.NDArray[np.int64]:
    """Return the places of k of n distinct vectors (n, D), each of which stands for counts (n,) equal ones."""
    points = torch.from_numpy(vectors).to(device)
    points = points - points.mean(dim=0)
    points /= max(float(points.abs().max()), float(np.finfo(np.float32).tiny))
    norms = torch.linalg.vector_norm(points, dim=1).square()
    draws = 2 + int(math.log(k))
    weights = torch.from_numpy(counts).to(device, torch.float32)
    chosen = [int(generator.choice(len(vectors), p=counts / counts.sum()))]
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
