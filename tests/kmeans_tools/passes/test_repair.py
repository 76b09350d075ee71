"""Repair of empty and starved clusters."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.passes.repair import repair_empty, repair_starved
from sctok.kmeans_tools.sources.vectors import Vectors


def inertia(vectors: Vectors, centroids: torch.Tensor) -> float:
    return float(nearest_centroid_reference(torch.from_numpy(vectors), centroids)[1].sum())


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_only_vectors_that_differ_from_every_centroid_are_drawn() -> None:
    vectors = np.array([[1.0], [1.0], [5.0], [2.0]], np.float32)
    centroids = torch.tensor([[5.0], [0.0], [9.0], [9.0], [9.0]])
    moved = repair_empty(centroids, torch.tensor([2, 3, 4]), vectors, None, generator())
    assert moved.tolist() == [2, 3]
    assert sorted(centroids[2:4, 0].tolist()) == [1.0, 2.0]
    assert centroids[[0, 1, 4], 0].tolist() == [5.0, 0.0, 9.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 5))
def test_the_inertia_falls_with_every_centroid_that_moves(seed: int, live: int, empty: int) -> None:
    vectors = np.random.default_rng(seed).integers(-4, 5, (30, 2)).astype(np.float32)
    centroids = torch.cat([torch.from_numpy(vectors[:live]), torch.full((empty, 2), 100.0)])
    before = inertia(vectors, centroids)
    moved = repair_empty(centroids, torch.arange(live, live + empty), vectors, None, generator(seed))
    assert len(moved) == min(
        empty, len({tuple(row) for row in vectors[live:].tolist()} - set(map(tuple, vectors[:live].tolist())))
    )
    assert inertia(vectors, centroids) <= before - len(moved)


def test_vectors_are_drawn_in_proportion_to_weight_and_distance() -> None:
    vectors = np.concatenate([np.full(1000, 1.0), np.full(900, -1.0), np.full(100, 3.0)]).astype(np.float32)
    vectors = np.stack([vectors, np.arange(2000, dtype=np.float32) * 1e-6], axis=1)
    weights = np.where(vectors[:, 0] < 0, 1e-9, 1.0)
    centroids = torch.full((201, 2), 1e6)
    centroids[0] = 0.0
    repair_empty(centroids, torch.arange(1, 201), vectors, weights, generator())
    drawn = centroids[1:, 0].round()
    assert (drawn > 0).all()
    assert 60 <= int((drawn == 3).sum()) <= 100  # 900 of 1900, reduced by drawing without replacement


def test_nothing_moves_without_empty_clusters_live_clusters_or_candidates() -> None:
    vectors = np.zeros((3, 1), np.float32)
    nothing = torch.tensor([], dtype=torch.int64)
    assert len(repair_empty(torch.ones(2, 1), nothing, vectors, None, generator())) == 0
    assert len(repair_empty(torch.ones(2, 1), torch.tensor([0, 1]), vectors, None, generator())) == 0
    assert len(repair_empty(torch.zeros(2, 1), torch.tensor([1]), vectors, None, generator())) == 0


def test_a_starved_cluster_moves_only_if_the_gain_exceeds_the_cost() -> None:
    near, far = np.linspace(-1, 1, 50, dtype=np.float32)[:, None], np.array([[40.0]], np.float32)
    vectors = np.concatenate([near, far])
    useful = torch.tensor([[0.0], [40.0]])
    assert len(repair_starved(useful, torch.tensor([1]), vectors, None, generator())) == 0
    assert useful[:, 0].tolist() == [0.0, 40.0]
    idle = torch.tensor([[0.0], [1.0], [0.99]])
    before = inertia(vectors, idle)
    assert repair_starved(idle, torch.tensor([2]), vectors, None, generator()).tolist() == [2]
    assert inertia(vectors, idle) < before
