"""Bounds skip vectors without changing labels, centroids or the inertia."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sctok.kernels.assign import Assignment
from sctok.kernels.reference import nearest_centroid_reference, squared_distances
from sctok.kmeans_tools import fit as fit_module
from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.passes import bounds as bounds_module
from sctok.kmeans_tools.passes.bounds import Bounds, bounds_fit, distance_bound
from sctok.kmeans_tools.passes.moved_centroids import MovedCentroids
from sctok.kmeans_tools.sources.vectors import ArraySource, Vectors


def blobs(rows: int, dim: int, centers: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 3
    values = means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim))
    return values.astype(np.float16).astype(np.float32)


def assign(points: torch.Tensor, centroids: torch.Tensor) -> Assignment:
    """Return the two nearest centroids of each point by brute force in float64."""
    table = squared_distances(points[:, None], centroids[None])
    order = torch.sort(table, dim=1, stable=True)
    if len(centroids) == 1:
        nothing = torch.full((len(points),), math.inf)
        return Assignment(order.indices[:, 0], order.values[:, 0].float(), 0, None, nothing)
    values = order.values.to(torch.float32)
    return Assignment(order.indices[:, 0], values[:, 0], 0, order.indices[:, 1], values[:, 1])


def fit(vectors: Vectors, k: int, weights: Any = None, **options: Any) -> FitResult:
    start = options.pop("initial", vectors[:k])
    config = KMeansConfig(**{"device": "cpu", "seeding": "given", "algorithm": "lloyd", "tol": 0.0, **options})
    source = ArraySource(vectors, weights=weights)
    return fit_codebooks(source, [k], config, FitContext(initial={k: start}, return_labels=True))[k]


@pytest.fixture(autouse=True)
def screening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with movers even if there are few centroids."""
    monkeypatch.setattr(bounds_module, "_SCREENED_CENTROIDS", 1)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for runner-ups in every pass except the first."""
    monkeypatch.setattr(Bounds, "tight", property(lambda self: self.age > 0))


def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "bounds_fit", lambda rows, memory: False)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("options", [{}, {"block_rows": 97}, {"max_points_per_centroid": 30}])
def test_skipping_changes_no_bit_of_float16_vectors(monkeypatch: pytest.MonkeyPatch, options: dict[str, int]) -> None:
    vectors = blobs(1500, 4, 12)
    runs = (1, 2, 5, 9, 22)
    skipping = [fit(vectors, 20, iterations=count, **options) for count in runs]
    without_bounds(monkeypatch)
    for one, count in zip(skipping, runs, strict=True):
        other = fit(vectors, 20, iterations=count, **options)
        assert np.array_equal(one.centroids, other.centroids)
        assert np.array_equal(one.labels, other.labels)
        assert one.counts.tolist() == other.counts.tolist()
        np.testing.assert_allclose(one.inertia_history, other.inertia_history, rtol=1e-7)
        assert one.inertia == other.inertia
        assert max(other.assigned) == other.assigned[-1] == 1500
    assert min(skipping[-1].assigned) < 150


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
def test_skipping_with_weights_and_common_offset(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(900, 3)).astype(np.float32) + np.float32(500)
    weights = np.random.default_rng(1).choice([0.0, 0.3, 2.5], 900)
    one = fit(vectors, 14, weights, algorithm=algorithm, iterations=30)
    without_bounds(monkeypatch)
    other = fit(vectors, 14, weights, algorithm=algorithm, iterations=30)
    np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-6)
    np.testing.assert_allclose(one.inertia_history, other.inertia_history, rtol=1e-5)
    np.testing.assert_allclose(one.counts, other.counts, rtol=1e-12)
    assert min(one.assigned) < min(other.assigned)


@pytest.mark.usefixtures("eager")
def test_labels_belong_to_the_centroids_after_skipping() -> None:
    vectors = blobs(1000, 5, 9)
    result = fit(vectors, 15, iterations=40)
    labels, distances = nearest_centroid_reference(torch.from_numpy(vectors), torch.from_numpy(result.centroids))
    assert result.labels is not None
    assert result.labels.tolist() == labels.tolist()
    assert result.inertia == pytest.approx(float(distances.sum()), rel=1e-6)
    assert result.kept > 900


@pytest.mark.usefixtures("eager")
def test_few_centroids_are_skipped_without_comparing_with_movers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds_module, "_SCREENED_CENTROIDS", 2048)
    vectors = blobs(1500, 4, 12)
    one = fit(vectors, 20, iterations=30)
    without_bounds(monkeypatch)
    other = fit(vectors, 20, iterations=30)
    assert np.array_equal(one.centroids, other.centroids)
    assert np.array_equal(one.labels, other.labels)
    assert min(one.assigned) < 300


@pytest.mark.usefixtures("eager")
def test_one_centroid_needs_one_pass() -> None:
    result = fit(blobs(200, 3, 4), 1, iterations=5)
    assert result.assigned[0] == 200
    assert result.counts.tolist() == [200]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([1e-30, 1e-3, 1.0, 1e12]), st.booleans(), st.data())
def test_skipped_vectors_keep_their_label(seed: int, k: int, scale: float, grid: bool, data: st.DataObject) -> None:
    generator = np.random.default_rng(seed)

    def draw(count: int) -> torch.Tensor:
        values = generator.integers(-3, 4, (count, 2)) if grid else generator.normal(size=(count, 2))
        return torch.from_numpy((values * scale).astype(np.float32))

    points, centroids, places = draw(60), draw(k), torch.arange(60)
    bounds = Bounds.empty(60, centroids)
    bounds.start_pass(grown=True)
    bounds.update(points, places, assign(points, centroids), None)
    for _ in range(4):
        factors = generator.choice([0.0] * 20 + [2.0**-8, 2.0**-4, 0.5], (k, 1))
        moved = centroids + draw(k) * torch.from_numpy(factors).float()
        bounds.centroids_moved(centroids, moved)
        centroids = moved
        bounds.start_pass(grown=True)
        rows = bounds.survivors().nonzero()[:, 0]
        if data.draw(st.booleans()):
            movers = MovedCentroids(centroids, bounds.last.movers) if len(bounds.last.movers) else None
            rows = bounds.screen(points, places, rows, centroids, movers)
        labels, _ = nearest_centroid_reference(points, centroids)
        kept = torch.ones(60, dtype=torch.bool)
        kept[rows] = False
        assert bounds.labels[kept].tolist() == labels[kept].tolist()
        bounds.update(points[rows], rows, assign(points[rows], centroids), None)


def test_ties_are_compared_again_if_a_centroid_moves() -> None:
    centroids = torch.tensor([[0.0], [2.0], [2.0], [50.0]])
    points = torch.tensor([[1.0], [2.0], [0.25]])
    bounds = Bounds.empty(3, centroids)
    bounds.start_pass(grown=True)
    bounds.update(points, torch.arange(3), assign(points, centroids), None)
    bounds.centroids_moved(centroids, centroids)
    assert bounds.survivors().tolist() == [False, False, False]
    bounds.centroids_moved(centroids, torch.tensor([[0.0], [2.0], [2.0], [50.5]]))
    bounds.start_pass(grown=False)
    assert bounds.survivors().tolist() == [True, True, False]


def test_vectors_are_compared_only_with_movers() -> None:
    centroids = torch.arange(16.0)[:, None]
    points = centroids + 0.25
    bounds = Bounds.empty(16, centroids)
    bounds.start_pass(grown=True)
    bounds.update(points, torch.arange(16), assign(points, centroids), None)
    after = centroids.clone()
    after[3] += 0.4
    bounds.centroids_moved(centroids, after)
    bounds.start_pass(grown=False)
    assert bounds.last.movers.tolist() == [3]
    assert bounds.last.slow == 0
    everything = torch.arange(16)
    undecided = bounds.screen(points, everything, everything, after, MovedCentroids(after, torch.tensor([3])))
    assert undecided.tolist() == []
    after[3] = 7.2
    bounds.centroids_moved(centroids, after)
    bounds.start_pass(grown=False)
    everything = torch.arange(16)
    undecided = bounds.screen(points, everything, everything, after, MovedCentroids(after, torch.tensor([3])))
    assert undecided.tolist() == [3, 7]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 2.0**126, width=32))
def test_distance_bounds_include_the_rounding_error(square: float) -> None:
    value = torch.tensor([square], dtype=torch.float32)
    above = np.nextafter(np.float32(square), np.float32(np.inf), dtype=np.float32)
    below = np.nextafter(np.float32(square), np.float32(-1), dtype=np.float32)
    middle_up, middle_down = (float(square) + float(above)) / 2, max(0.0, (float(square) + float(below)) / 2)
    assert float(distance_bound(value, up=True)) >= math.sqrt(middle_up)
    assert float(distance_bound(value, up=False)) <= math.sqrt(middle_down)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1e-25, 1e-3, 1.0, 1e15, 1e19]), st.floats(0, 1e4))
def test_movers_are_never_nearer_than_their_bound(seed: int, dim: int, scale: float, offset: float) -> None:
    generator = np.random.default_rng(seed)
    points, centroids = (
        torch.from_numpy(((generator.normal(size=(count, dim)) + offset) * scale).astype(np.float32))
        for count in (30, 6)
    )
    points[:3] = centroids[:3]
    labels, indices = torch.from_numpy(generator.integers(6, size=30)), torch.tensor([1, 4, 5])
    below = MovedCentroids(centroids, indices).distances_below(points, labels)
    distances = squared_distances(points[:, None], centroids[None, indices]).sqrt()
    distances[labels[:, None] == indices] = math.inf
    nearest = distances.amin(dim=1)
    assert ((below <= nearest) | below.isnan()).all()
    if scale == 1.0 and offset < 10:
        assert (below >= 0.99 * nearest - 1e-2).all()


def test_a_single_mover_is_ignored_for_its_own_vectors() -> None:
    below = MovedCentroids(torch.zeros(3, 2), torch.tensor([1])).distances_below(torch.ones(2, 2), torch.tensor([1, 0]))
    assert below[0] == math.inf
    assert below[1] == pytest.approx(math.sqrt(2), rel=1e-4)


def test_bounds_take_an_eighth_of_the_memory() -> None:
    assert bounds_fit(1000, 96_000)
    assert not bounds_fit(1001, 96_000)
    assert bounds_fit(10**8, None)
    assert not bounds_fit(10**9, None)
