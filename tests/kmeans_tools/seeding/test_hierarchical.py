"""Hierarchical seeding: its parts, unusual data, and its quality compared with flat Lloyd."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.seeding.first_centroids import seed_centroids
from sctok.kmeans_tools.seeding.hierarchical import (
    PickedRows,
    _merge_costs,
    allocate,
    fill_empty,
    hierarchical_centroids,
    principal_components,
)
from sctok.kmeans_tools.sources.vectors import Vectors, Weights

CPU = torch.device("cpu")


def low_rank(rows: int, dim: int, rank: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(rows, rank)) * np.geomspace(3, 0.2, rank)
    basis = np.linalg.qr(generator.normal(size=(dim, rank)))[0]
    return (latent @ basis.T + 0.3 * generator.normal(size=(rows, dim)) + 2).astype(np.float32)


def seeds(vectors: Vectors, k: int, masses: Weights | None = None, seed: int = 0) -> Vectors:
    weights = np.ones(len(vectors)) if masses is None else masses
    return hierarchical_centroids(PickedRows(vectors, None), weights, k, np.random.default_rng(seed), CPU)


def inertia(vectors: Vectors, centroids: Vectors) -> float:
    return float(nearest_centroid_reference(torch.from_numpy(vectors), torch.from_numpy(centroids))[1].sum())


def test_as_good_as_flat_lloyd_before_any_step() -> None:
    vectors = low_rank(3000, 96, 24)
    flat = KMeans(128, init="random", n_init=1, max_iter=25, random_state=0).fit(vectors)
    assert inertia(vectors, seeds(vectors, 128)) <= 1.03 * flat.inertia_


@pytest.mark.parametrize("dim", [1, 2, 65, 96])
@pytest.mark.parametrize("k", [1, 2, 3, 17, 99, 100])
def test_every_centroid_is_the_mean_of_some_vectors(dim: int, k: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, dim)).astype(np.float32)
    centroids = seeds(vectors, k)
    assert centroids.shape == (k, dim)
    assert centroids.dtype == np.float32
    assert np.isfinite(centroids).all()
    assert (centroids >= vectors.min(axis=0) - 1e-5).all()
    assert (centroids <= vectors.max(axis=0) + 1e-5).all()
    if k == 1:
        np.testing.assert_allclose(centroids[0], vectors.mean(axis=0), atol=1e-6)
    if k == 100:
        assert inertia(vectors, centroids) == 0


def test_the_weighted_mean_of_the_centroids_is_the_mean_of_all_vectors() -> None:
    vectors = low_rank(500, 80, 8)
    masses = np.random.default_rng(1).uniform(0.5, 3, 500)
    mean = seeds(vectors, 1, masses)[0]
    np.testing.assert_allclose(mean, (vectors * masses[:, None]).sum(axis=0) / masses.sum(), rtol=1e-5)


def test_heavy_vectors_draw_centroids() -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    heavy = np.where(np.arange(400) < 10, 1e4, 1.0)
    gaps = np.linalg.norm(vectors[:10, None] - seeds(vectors, 40, heavy)[None], axis=2).min(axis=1)
    assert gaps.max() < 0.05


def test_vectors_that_differ_only_outside_the_projection() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 100)).astype(np.float32) * 1e3
    vectors = np.concatenate([vectors, vectors])
    vectors[:60, 0] += 1e-3
    centroids = seeds(vectors, 110)
    assert np.isfinite(centroids).all()
    assert len(np.unique(centroids, axis=0)) == 110


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e15, 1e30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_tiny_huge_and_shifted_values(scale: float, offset: float) -> None:
    vectors = ((np.random.default_rng(0).normal(size=(200, 70)) + offset) * scale).astype(np.float32)
    centroids = seeds(vectors, 20)
    assert np.isfinite(centroids).all()
    assert len(np.unique(centroids, axis=0)) == 20


def test_duplicates_count_by_their_number() -> None:
    vectors = np.repeat(np.arange(5, dtype=np.float32)[:, None], [1, 50, 1, 1, 1], axis=0)
    found = seed_centroids(vectors, 5, "hierarchical", np.random.default_rng(0), CPU)
    assert sorted(found[:, 0].tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="k = 6 exceeds the 5 distinct vectors among the 54"):
        seed_centroids(vectors, 6, "hierarchical", np.random.default_rng(0), CPU)


def test_the_seed_determines_the_result() -> None:
    vectors = low_rank(600, 70, 10)
    assert np.array_equal(seeds(vectors, 30), seeds(vectors, 30))
    assert not np.array_equal(seeds(vectors, 30), seeds(vectors, 30, seed=1))


def test_projection_keeps_the_distances_of_low_rank_vectors() -> None:
    generator = np.random.default_rng(0)
    vectors = (generator.normal(size=(300, 20)) @ generator.normal(size=(20, 200)) + 50).astype(np.float32)
    points = principal_components(vectors, generator, CPU).numpy()
    assert points.shape == (300, 48)
    before = np.linalg.norm(vectors[:100, None] - vectors[None, 100:], axis=2)
    after = np.linalg.norm(points[:100, None] - points[None, 100:], axis=2)
    np.testing.assert_allclose(after / before, (after / before).mean(), rtol=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), min_size=1, max_size=30), st.data())
def test_allocation_respects_its_limits_and_uses_all_centroids(
    cells: list[tuple[float, int]], data: st.DataObject
) -> None:
    shares, limits = np.array([share for share, _ in cells]), np.array([limit for _, limit in cells])
    k = data.draw(st.integers(len(cells), int(limits.sum())))
    numbers = allocate(shares / max(shares.sum(), 1e-300), limits, k)
    assert numbers.sum() == k
    assert (numbers >= 1).all()
    assert (numbers <= limits).all()


def test_allocation_is_in_proportion() -> None:
    assert allocate(np.array([0.5, 0.3, 0.2]), np.array([100, 100, 100]), 10).tolist() == [5, 3, 2]
    assert allocate(np.array([0.9, 0.05, 0.05]), np.array([4, 100, 100]), 24).tolist() == [4, 10, 10]
    assert allocate(np.array([1.0, 0.0, 0.0]), np.array([100, 100, 100]), 12).tolist() == [10, 1, 1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.data())
def test_filling_leaves_no_cluster_empty(k: int, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, k - 1), min_size=k, max_size=40)))
    distances = np.random.default_rng(0).random(len(labels)).astype(np.float32)
    filled = fill_empty(labels, distances, k)
    assert set(filled.tolist()) == set(range(k))
    assert (filled != labels).sum() == k - len(np.unique(labels))


def test_filling_moves_the_farthest_vectors() -> None:
    labels, distances = np.array([0, 0, 0, 2]), np.array([1.0, 5.0, 2.0, 9.0])
    assert fill_empty(labels, distances, 3).tolist() == [0, 1, 0, 2]


def test_separated_groups_get_a_centroid_each() -> None:
    generator = np.random.default_rng(0)
    means = generator.normal(size=(80, 16)) * 10
    vectors = (means[generator.integers(80, size=4000)] + generator.normal(size=(4000, 16))).astype(np.float32)
    at_best = inertia(vectors, means.astype(np.float32))
    assert inertia(vectors, seeds(vectors, 80)) <= 1.1 * at_best
    plus_plus = seed_centroids(vectors, 80, "kmeans++", np.random.default_rng(0), CPU)
    assert inertia(vectors, plus_plus) > 1.1 * at_best


def test_the_cost_of_a_merge_is_the_rise_of_the_inertia() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    labels = np.arange(60) % 5
    masses = np.random.default_rng(1).uniform(1, 2, 60)

    def spread(members: npt.NDArray[np.bool_]) -> float:
        mean = np.average(vectors[members], axis=0, weights=masses[members])
        return float((((vectors[members] - mean) ** 2).sum(axis=1) * masses[members]).sum())

    means = np.stack([np.average(vectors[labels == j], axis=0, weights=masses[labels == j]) for j in range(5)])
    costs, partners = _merge_costs(torch.from_numpy(means).float(), np.bincount(labels, masses))
    gaps = np.linalg.norm(means[:, None] - means[None], axis=2) + np.diag(np.full(5, np.inf))
    assert partners.tolist() == gaps.argmin(axis=1).tolist()
    for j, partner in enumerate(partners.tolist()):
        rise = spread((labels == j) | (labels == partner)) - spread(labels == j) - spread(labels == partner)
        assert costs[j] == pytest.approx(rise, rel=1e-4)


def test_a_draft_comes_before_the_result_and_does_not_change_it() -> None:
    vectors = np.random.default_rng(0).standard_normal((3_000, 80)).astype(np.float32)
    drafts: list[Vectors] = []
    unwatched, watched = (
        seed_centroids(vectors, 60, "hierarchical", np.random.default_rng(0), CPU, draft=draft)
        for draft in (None, drafts.append)
    )
    assert np.array_equal(unwatched, watched)
    assert [draft.shape for draft in drafts] == [(60, 80)]
    inertias = [
        nearest_centroid_reference(torch.from_numpy(vectors), torch.from_numpy(found))[1].sum()
        for found in (vectors[:60], drafts[0], unwatched)
    ]
    assert inertias[0] > inertias[1] > inertias[2]


def test_repeated_vectors_are_used_once_without_a_copy() -> None:
    distinct = np.random.default_rng(0).standard_normal((500, 70)).astype(np.float32)
    places = np.arange(0, 1_000, 2)
    repeated = np.repeat(distinct, 2, axis=0)
    masses = np.full(500, 2.0)
    by_places = hierarchical_centroids(PickedRows(repeated, places), masses, 20, np.random.default_rng(0), CPU)
    copied = hierarchical_centroids(PickedRows(distinct, None), masses, 20, np.random.default_rng(0), CPU)
    assert np.array_equal(by_places, copied)
