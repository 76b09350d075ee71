"""Bounds across iterations: skipping changes no label, no centroid and no inertia, and does skip."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.kernels.assign import Assignment
from sctok.kernels.reference import nearest_centroid_reference, squared_distances
from sctok.kmeans_tools import fit as fit_module
from sctok.kmeans_tools.bounds import Bounds, bounds_fit, distance_bound
from sctok.kmeans_tools.config import FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources import ArraySource, Vectors


def blobs(rows: int, dim: int, centers: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 3
    values = means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim))
    return values.astype(np.float16).astype(np.float32)


def assign(points: torch.Tensor, centroids: torch.Tensor) -> Assignment:
    """Return the two nearest centroids of each point, by brute force in float64."""
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
    return fit_codebooks(source, [k], config, initial={k: start}, return_labels=True)[k]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for runner-ups in every pass but the first."""
    monkeypatch.setattr(Bounds, "tight", property(lambda self: self.age > 0))


def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "bounds_fit", lambda rows, memory: False)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("options", [{}, {"block_rows": 97}, {"max_points_per_centroid": 30}])
def test_skipping_changes_no_bit_of_float16_vectors(monkeypatch: pytest.MonkeyPatch, options: dict[str, int]) -> None:
    vectors = blobs(1500, 4, 12)
    runs = range(1, 24, 3)
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
    assert min(skipping[-1].assigned) < 300


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
    assert result.certificate["kept_rows"] == 1000 - result.assigned[-1] > 500


@pytest.mark.usefixtures("eager")
def test_one_centroid_is_found_in_one_pass() -> None:
    result = fit(blobs(200, 3, 4), 1, iterations=5)
    assert result.assigned[0] == 200
    assert result.counts.tolist() == [200]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([1e-30, 1e-3, 1.0, 1e12]), st.booleans())
def test_no_vector_that_may_be_skipped_changes_its_label(seed: int, k: int, scale: float, grid: bool) -> None:
    generator = np.random.default_rng(seed)

    def draw(count: int) -> torch.Tensor:
        values = generator.integers(-3, 4, (count, 2)) if grid else generator.normal(size=(count, 2))
        return torch.from_numpy((values * scale).astype(np.float32))

    points, centroids = draw(60), draw(k)
    bounds = Bounds.empty(60, centroids)
    bounds.start_pass(grown=True)
    bounds.update(points, torch.arange(60), assign(points, centroids), None)
    for _ in range(4):
        factors = generator.choice([0.0, 2.0**-8, 2.0**-4, 0.5], (k, 1))
        step = draw(k) * torch.from_numpy(factors).float()
        moved = centroids + step
        bounds.centroids_moved(centroids, moved)
        centroids = moved
        kept = ~bounds.survivors()
        labels, distances = nearest_centroid_reference(points, centroids)
        assert bounds.labels[kept].tolist() == labels[kept].tolist()
        assert (bounds.upper.double() >= distances.sqrt())[kept].all()


def test_ties_are_always_assigned_again() -> None:
    centroids = torch.tensor([[0.0], [2.0], [2.0]])
    points = torch.tensor([[1.0], [2.0], [0.25]])
    bounds = Bounds.empty(3, centroids)
    bounds.start_pass(grown=True)
    bounds.update(points, torch.arange(3), assign(points, centroids), None)
    bounds.centroids_moved(centroids, centroids)
    assert bounds.survivors().tolist() == [True, True, False]


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 2.0**126, width=32))
def test_distance_bounds_enclose_what_rounding_hides(square: float) -> None:
    value = torch.tensor([square], dtype=torch.float32)
    above = np.nextafter(np.float32(square), np.float32(np.inf), dtype=np.float32)
    below = np.nextafter(np.float32(square), np.float32(-1), dtype=np.float32)
    middle_up, middle_down = (float(square) + float(above)) / 2, max(0.0, (float(square) + float(below)) / 2)
    assert float(distance_bound(value, up=True)) >= math.sqrt(middle_up)
    assert float(distance_bound(value, up=False)) <= math.sqrt(middle_down)


def test_bounds_take_an_eighth_of_the_memory() -> None:
    assert bounds_fit(1000, 96_000)
    assert not bounds_fit(1001, 96_000)
    assert bounds_fit(10**8, None)
    assert not bounds_fit(10**9, None)
