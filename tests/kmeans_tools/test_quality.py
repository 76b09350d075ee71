"""The quality certificate agrees with brute force."""

import numpy as np
import pytest
import torch

from sctok.kmeans_tools.quality import centroid_gaps, codebook_certificate


def brute_force_gaps(centroids: np.ndarray) -> np.ndarray:
    wide = centroids.astype(np.float64)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


@pytest.mark.parametrize(("k", "dim", "offset"), [(2, 1, 0.0), (63, 5, 0.0), (200, 3, 1e4)])
def test_gaps_agree_with_brute_force(k: int, dim: int, offset: float) -> None:
    centroids = (np.random.default_rng(k).normal(size=(k, dim)) + offset).astype(np.float32)
    gaps = brute_force_gaps(centroids)
    found = centroid_gaps(torch.from_numpy(centroids))
    expected = (gaps.min(), np.percentile(gaps, 5), np.median(gaps), gaps.mean())
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        assert value == pytest.approx(wanted, rel=1e-6), name


def test_equal_centroids_have_a_gap_of_zero() -> None:
    found = centroid_gaps(torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]]))
    assert found == {
        "min_centroid_distance": 0,
        "p5_centroid_distance": 0,
        "median_centroid_distance": 0,
        "mean_centroid_distance": pytest.approx(5 / 3),
    }


def test_one_centroid_has_no_neighbour() -> None:
    assert set(centroid_gaps(torch.zeros(1, 3)).values()) == {None}


@pytest.mark.parametrize("weighted", [False, True])
def test_explained_variance_and_perplexity_of_weighted_vectors(weighted: bool) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 4)) + 500
    weights = generator.uniform(0.1, 3, 300) if weighted else np.ones(300)
    centroids = vectors[:9].astype(np.float32).astype(np.float64)
    labels = ((vectors[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    squares = ((vectors - centroids[labels]) ** 2).sum(axis=1)
    counts = np.bincount(labels, weights, 9)
    sums = np.stack([np.bincount(labels, weights * column, 9) for column in vectors.T], axis=1)
    certificate = codebook_certificate(
        torch.from_numpy(centroids.astype(np.float32)),
        torch.from_numpy(counts if weighted else counts.astype(np.int64)),
        torch.from_numpy(sums),
        float((weights * squares).sum()),
    )
    mean = np.average(vectors, axis=0, weights=weights)
    total = (weights[:, None] * (vectors - mean) ** 2).sum()
    shares = counts / counts.sum()
    assert certificate["explained_variance"] == pytest.approx(1 - (weights * squares).sum() / total, rel=1e-9)
    assert certificate["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert certificate["dead_codes"] == 0
