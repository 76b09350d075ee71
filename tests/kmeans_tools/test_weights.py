"""Weighted fits: an integer weight equals that number of copies, and weight zero removes a vector."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.distinct import distinct_rows
from sctok.kmeans_tools.sources.vectors import ArraySource, Vectors

ALGORITHMS = ["lloyd", "minibatch"]


def fit(vectors: Vectors, k: int, weights: Any = None, **options: Any) -> FitResult:
    initial = {k: options.pop("initial")} if "initial" in options else {}
    config = KMeansConfig(**{"device": "cpu", **({"seeding": "given"} if initial else {}), **options})
    return fit_codebooks(ArraySource(vectors, weights=weights), [k], config, FitContext(initial=initial))[k]


def points(rows: int = 300, dim: int = 5, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("seeding", ["kmeans++", "random"])
def test_a_weight_equals_copies(seeding: str) -> None:
    vectors = points()
    copies = np.random.default_rng(1).integers(1, 4, len(vectors))
    one = fit(vectors, 12, copies, seeding=seeding, algorithm="lloyd")
    other = fit(np.repeat(vectors, copies, axis=0), 12, seeding=seeding, algorithm="lloyd")
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.dtype == np.float64
    assert one.inertia == pytest.approx(other.inertia, rel=1e-6)
    assert one.certificate["perplexity"] == pytest.approx(other.certificate["perplexity"])
    assert one.certificate["explained_variance"] == pytest.approx(other.certificate["explained_variance"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_of_one_change_nothing(algorithm: str) -> None:
    vectors = points()
    one, other = (fit(vectors, 9, weights, algorithm=algorithm) for weights in (None, np.ones(300)))
    np.testing.assert_array_equal(one.centroids, other.centroids)
    assert one.inertia_history == other.inertia_history


@pytest.mark.parametrize("seeding", ["kmeans++", "random"])
def test_vectors_of_weight_zero_are_ignored(seeding: str) -> None:
    vectors = points()
    far = points(seed=1) * 100
    mixed = np.stack([far, vectors], axis=1).reshape(-1, 5)
    one = fit(mixed, 12, np.tile([0.0, 1.5], 300), seeding=seeding, algorithm="lloyd")
    other = fit(vectors, 12, np.full(300, 1.5), seeding=seeding, algorithm="lloyd")
    np.testing.assert_array_equal(one.centroids, other.centroids)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.inertia_history == other.inertia_history


def test_mini_batches_ignore_vectors_of_weight_zero() -> None:
    vectors = np.concatenate([points(), points(seed=1) * 1000])
    result = fit(vectors, 12, np.repeat([1.0, 0.0], 300), algorithm="minibatch")
    assert np.abs(result.centroids).max() < 10
    assert result.counts.sum() == 300


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_clusters_are_not_filled_with_vectors_of_weight_zero(algorithm: str) -> None:
    vectors = np.concatenate([points(40), np.full((20, 5), 1e4, np.float32)])
    start = np.concatenate([points(2), np.full((6, 5), -1e4, np.float32) + np.arange(6, dtype=np.float32)[:, None]])
    result = fit(vectors, 8, np.repeat([1.0, 0.0], [40, 20]), initial=start, algorithm=algorithm, iterations=4)
    assert np.abs(result.centroids[result.counts > 0]).max() < 10
    assert result.certificate["dead_codes"] == 0


def test_more_centroids_than_vectors_of_positive_weight() -> None:
    with pytest.raises(ValueError, match="k = 4 exceeds the 3 vectors"):
        fit(points(10), 4, np.repeat([1.0, 0.0], [3, 7]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=40), st.integers(1, 12))
def test_distinct_rows_agree_with_numpy(pairs: list[tuple[int, int]], width: int) -> None:
    vectors = np.repeat(np.array(pairs, np.float32), width, axis=1)
    vectors[::3] *= np.float32(-1)  # gives zeros of both signs
    weights = np.arange(1, len(vectors) + 1, dtype=np.float64)
    places, masses = distinct_rows(vectors, weights)
    _, first, inverse = np.unique(vectors + np.float32(0), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    assert places.tolist() == first[order].tolist()
    assert masses.tolist() == np.bincount(inverse.reshape(-1), weights)[order].tolist()
