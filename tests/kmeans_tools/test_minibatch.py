"""Nested mini-batches and running means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.minibatch import RunningMeans, first_share, grown_share, in_batch, noise_level, place_uniforms
from sctok.kmeans_tools.sources.vectors import ArraySource, Vectors


def blobs(rows: int, dim: int, centers: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 4
    return (means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim))).astype(np.float32)


def fit(vectors: Vectors, k: int, **options: object) -> FitResult:
    settings = {"device": "cpu", "algorithm": "minibatch", "seeding": "random", **options}
    return fit_codebooks(ArraySource(vectors), [k], KMeansConfig(**settings))[k]  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.4), st.sampled_from([1000, 10**6, 10**9]), st.integers(0, 5))
def test_batches_are_nested_and_have_the_requested_size(share: float, rows: int, seed: int) -> None:
    places = np.arange(0, rows, max(1, rows // 20_000), dtype=np.int64)
    small, large = (in_batch(places, part, rows, (seed, 1)) for part in (share, 2 * share))
    assert not (small & ~large).any()
    spread = np.sqrt(share * (1 - share) * len(places))
    assert abs(small.sum() - share * len(places)) <= 6 * spread + (512 if rows > 10**7 else 16) * 6
    assert in_batch(places, 1.0, rows, (seed, 1)).all()


def test_uniforms_depend_only_on_place_and_seed() -> None:
    places = np.arange(100_000)
    values = place_uniforms(places, (1, 2))
    assert np.array_equal(values[500:600], place_uniforms(places[500:600], (1, 2)))
    assert not np.array_equal(values, place_uniforms(places, (1, 3)))
    assert 0 < values.min() < values.max() < 1
    counts, _ = np.histogram(values, 10, (0, 1))
    assert np.abs(counts - 10_000).max() < 500
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_neighbouring_vectors_of_large_sets_join_a_batch_together() -> None:
    places = np.arange(5 * 512, dtype=np.int64)
    chosen = in_batch(places, 0.5, 10**9, (0, 1)).reshape(5, 512)
    assert (chosen == chosen[:, :1]).all()


def test_the_batch_grows_within_the_allowed_number_of_passes() -> None:
    vectors = blobs(30_000, 4, 12)
    result = fit(vectors, 20, block_rows=500, iterations=3, tol=0)
    batch = result.assigned[0]
    assert batch == pytest.approx(500, rel=0.2)
    assert result.assigned[-1] == 30_000
    assert max(result.assigned[:-1]) > 4 * batch
    assert sum(result.assigned[:-1]) <= 3.1 * 30_000
    assert result.iterations == len(result.assigned) - 1 > 5


def test_enough_vectors_stop_the_fit_before_all_are_read() -> None:
    vectors = blobs(60_000, 2, 3)
    result = fit(vectors, 3, seeding="kmeans++", tol=1e-2)
    assert result.converged
    assert sum(result.assigned[:-1]) < 30_000
    assert result.inertia <= 1.02 * fit(vectors, 3, seeding="kmeans++", algorithm="lloyd").inertia


def test_as_good_as_lloyd_within_a_few_percent() -> None:
    vectors = blobs(20_000, 8, 40)
    assert fit(vectors, 40, seeding="hierarchical").inertia <= 1.03 * fit(vectors, 40, algorithm="lloyd").inertia


def test_starved_clusters_are_moved_when_the_batch_grows() -> None:
    vectors = np.concatenate([blobs(40_000, 3, 5), np.full((3, 3), 60, np.float32)])
    start = np.concatenate([vectors[:5], vectors[-1:], vectors[:2] + np.float32(1e-3)])
    config = KMeansConfig(device="cpu", algorithm="minibatch", seeding="given", block_rows=4000, tol=0)
    result = fit_codebooks(ArraySource(vectors), [8], config, FitContext(initial={8: start}))[8]
    assert result.certificate["dead_codes"] == 0
    assert result.inertia_history[-1] < result.inertia_history[0]


def test_steps_of_growth() -> None:
    assert first_share(100, 10**6, None) == 4096 / 10**6
    assert first_share(1000, 10**6, None) == 16_000 / 10**6
    assert first_share(10, 10**6, 1024) == 1024 / 10**6
    assert first_share(10, 50, None) == 1
    assert grown_share(0.3) == 0.6
    assert grown_share(0.6) == 1
    assert noise_level(10, 1000) == pytest.approx(0.005)


@pytest.mark.parametrize("weighted", [False, True])
def test_running_means_are_the_means_of_all_assigned_vectors(weighted: bool) -> None:
    vectors = blobs(700, 5, 6)
    weights = np.random.default_rng(1).choice([0.0, 0.5, 2.0], 700) if weighted else np.ones(700)
    start = torch.from_numpy(vectors[:9].copy())
    running = RunningMeans(start.clone(), torch.zeros(9, dtype=torch.float64))
    labels = np.empty(700, np.int64)
    for first in range(0, 700, 64):
        part = slice(first, first + 64)
        found = running.add(torch.from_numpy(vectors[part]), weights[part] if weighted else None)
        labels[part] = found.labels.numpy()
    mass = np.bincount(labels, weights, minlength=9)
    np.testing.assert_allclose(running.mass, mass)
    for j in range(9):
        expected = np.average(vectors[labels == j], axis=0, weights=weights[labels == j]) if mass[j] else start[j]
        np.testing.assert_allclose(running.centroids[j], expected, rtol=1e-4, atol=1e-5)


def test_running_means_start_with_the_given_mass() -> None:
    running = RunningMeans(torch.tensor([[0.0], [10.0]]), torch.tensor([3.0, 0.0], dtype=torch.float64))
    running.add(torch.tensor([[4.0], [12.0], [14.0]]))
    assert running.centroids[:, 0].tolist() == [1.0, 13.0]
    assert running.mass.tolist() == [4.0, 2.0]
