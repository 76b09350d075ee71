"""First centroids."""

import numpy as np
import pytest
import torch

from sctok.kmeans_tools.seeding.first_centroids import SEEDINGS, sample_size, seed_centroids
from sctok.kmeans_tools.sources.vectors import Vectors

CPU = torch.device("cpu")


def seeds(sample: Vectors, k: int, method: str, seed: int = 0) -> Vectors:
    return seed_centroids(sample.astype(np.float32), k, method, np.random.default_rng(seed), CPU)


@pytest.mark.parametrize("method", ["kmeans++", "random"])
def test_seeds_are_distinct_vectors_of_the_sample(method: str) -> None:
    sample = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.float32)
    distinct = {tuple(row) for row in sample.tolist()}
    chosen = {tuple(row) for row in seeds(sample, len(distinct), method).tolist()}
    assert chosen == distinct


@pytest.mark.parametrize("method", ["kmeans++", "random"])
def test_minus_zero_is_zero(method: str) -> None:
    sample = np.array([[0.0, 1], [-0.0, 1], [0.0, 1]])
    with pytest.raises(ValueError, match="k = 2 exceeds the 1 distinct vectors among the 3"):
        seeds(sample, 2, method)


def test_plus_plus_finds_every_far_group() -> None:
    generator = np.random.default_rng(0)
    means = np.eye(10) * 100
    sample = np.concatenate(
        [mean + generator.normal(size=(size, 10)) for size, mean in zip(range(3, 103, 10), means, strict=True)]
    )
    chosen = seeds(sample, 10, "kmeans++")
    assert sorted(chosen.argmax(axis=1).tolist()) == list(range(10))


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_vectors_that_float32_distances_do_not_separate(offset: float) -> None:
    sample = (np.arange(40, dtype=np.float32)[:, None] * np.float32(2.0**-7)) + np.float32(offset)
    sample = np.concatenate([sample, sample + np.float32(1e7)])
    distinct = len(np.unique(sample))
    assert len(np.unique(seeds(sample, distinct, "kmeans++"))) == distinct


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_values(scale: float) -> None:
    sample = np.random.default_rng(0).normal(size=(100, 4)) * scale
    assert len(np.unique(seeds(sample, 20, "kmeans++"), axis=0)) == 20


def test_the_sample_is_bounded() -> None:
    assert sample_size(100, 768, 50, "kmeans++") == 50
    assert sample_size(100, 768, 10**9, "kmeans++") == 16_384
    assert sample_size(16_384, 768, 10**9, "random") == 65_536
    assert sample_size(4096, 768, 10**9, "hierarchical") == 98_304
    assert sample_size(4096, 768, 100_000, "hierarchical") == 100_000
    assert sample_size(4096, 768, 100_000, "hierarchical", memory=8 * 4 * 768 * 99_000) == 98_304
    for method in SEEDINGS:
        assert sample_size(32_768, 3072, 10**9, method) * 3072 * 4 <= 1 << 30


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="seeding 'best' is not one of"):
        seeds(np.eye(3), 2, "best")
