"""First centroids and the repair of dead ones."""

import numpy as np
import pytest
import torch

from sctok.kmeans_tools.repair import RepairPool, repair_dead
from sctok.kmeans_tools.seeding import SEEDINGS, sample_size, seed_centroids
from sctok.kmeans_tools.sources import ArraySource, Vectors

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
def test_vectors_that_float32_distances_cannot_tell_apart(offset: float) -> None:
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
    for method in SEEDINGS:
        assert sample_size(32_768, 3072, 10**9, method) * 3072 * 4 <= 1 << 30


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="seeding 'best' is none of"):
        seeds(np.eye(3), 2, "best")


def pool_of(vectors: Vectors, distances: Vectors, k: int, block_rows: int) -> RepairPool:
    pool = RepairPool(k, vectors.shape[1], (0, 1))
    for block in ArraySource(vectors).blocks(block_rows):
        pool.offer(block, distances[block.places].astype(np.float32))
    return pool


def test_the_pool_does_not_depend_on_blocks() -> None:
    generator = np.random.default_rng(0)
    vectors, distances = generator.normal(size=(500, 3)).astype(np.float32), generator.random(500).astype(np.float32)
    expected = pool_of(vectors, distances, 20, 500).rows
    assert len(expected) == 20
    for block_rows in (1, 7, 100):
        assert np.array_equal(pool_of(vectors, distances, 20, block_rows).rows, expected)


def test_the_pool_draws_in_proportion_to_the_distance() -> None:
    vectors = np.arange(2000, dtype=np.float32)[:, None]
    distances = np.where(vectors[:, 0] < 1000, 0, np.where(vectors[:, 0] < 1900, 1, 9)).astype(np.float32)
    drawn = pool_of(vectors, distances, 200, 300).rows[:, 0]
    assert (drawn >= 1000).all()
    assert 60 <= (drawn >= 1900).sum() <= 100  # half the weight, thinned by drawing without replacement


def test_repair_takes_only_vectors_away_from_every_centroid() -> None:
    vectors = np.array([[1.0], [1.0], [5.0], [2.0]], np.float32)
    pool = pool_of(vectors, np.ones(4, np.float32), 8, 4)
    centroids = torch.tensor([[5.0], [0.0], [9.0], [9.0], [9.0]])
    moved = repair_dead(centroids, torch.tensor([2, 3, 4]), pool)
    assert moved.tolist() == [2, 3]
    assert sorted(centroids[2:4, 0].tolist()) == [1.0, 2.0]
    assert centroids[[0, 1, 4], 0].tolist() == [5.0, 0.0, 9.0]


def test_nothing_dead_or_nothing_to_draw() -> None:
    centroids = torch.zeros(2, 1)
    empty = pool_of(np.zeros((3, 1), np.float32), np.zeros(3, np.float32), 2, 3)
    assert len(repair_dead(centroids, torch.tensor([1]), empty)) == 0
    full = pool_of(np.ones((3, 1), np.float32), np.ones(3, np.float32), 2, 3)
    assert len(repair_dead(centroids, torch.tensor([], dtype=torch.int64), full)) == 0
