"""Final inertia compared with scikit-learn, and the choices of "auto"."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.vectors import ArraySource, Vectors


def noise() -> Vectors:
    return np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)


def blobs() -> Vectors:
    generator = np.random.default_rng(1)
    means = generator.normal(size=(50, 10)) * 3
    return (means[generator.integers(50, size=4000)] + generator.normal(size=(4000, 10))).astype(np.float32)


def digits() -> Vectors:
    found: Vectors = load_digits().data.astype(np.float32)
    return found


SETS = {"noise": noise, "blobs": blobs, "digits": digits}


def fit(vectors: Vectors, k: int, start: Vectors | None = None, **options: object) -> FitResult:
    settings = {"device": "cpu", **({} if start is None else {"seeding": "given"}), **options}
    initial = {} if start is None else {k: start}
    config = KMeansConfig(**settings)  # type: ignore[arg-type]
    return fit_codebooks(ArraySource(vectors), [k], config, FitContext(initial=initial))[k]


@pytest.mark.parametrize("name", SETS)
def test_as_good_as_the_best_of_five_runs_of_scikit_learn_from_the_same_seeds(name: str) -> None:
    vectors, k = SETS[name](), 32
    starts = [vectors[np.random.default_rng(seed).choice(len(vectors), k, replace=False)] for seed in range(5)]
    theirs = [KMeans(k, init=start, n_init=1, max_iter=300, tol=0).fit(vectors).inertia_ for start in starts]
    ours = [fit(vectors, k, start, algorithm="lloyd", iterations=300, tol=0).inertia for start in starts]
    assert min(ours) <= 1.002 * min(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


@pytest.mark.parametrize("name", SETS)
def test_auto_is_on_average_as_good_as_scikit_learn(name: str) -> None:
    vectors = SETS[name]()
    theirs = [KMeans(64, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(5)]
    ours = [fit(vectors, 64, seed=seed).inertia for seed in range(5)]
    assert np.mean(ours) <= 1.01 * np.mean(theirs)


def test_auto_settings() -> None:
    config = KMeansConfig()
    small = config.resolved(100_000, 768, 4096)
    assert (small.algorithm, small.seeding, small.tol, small.iterations) == ("lloyd", "hierarchical", 1e-4, 25)
    assert config.resolved(10_000, 768, 8).seeding == "kmeans++"
    huge = config.resolved(10**9, 768, 4096)
    assert (huge.algorithm, huge.tol, huge.iterations) == ("minibatch", 1e-4, 5)
    assert config.resolved(10**8, 768, 200_000).algorithm == "lloyd"
    tight = KMeansConfig(memory=1 << 20)
    assert tight.resolved(100_000, 768, 64).algorithm == "minibatch"
    assert tight.resolved(5_000, 768, 64).algorithm == "lloyd"
    asked = KMeansConfig(algorithm="lloyd", seeding="random", tol=0.0, iterations=3).resolved(10**9, 768, 16)
    assert (asked.algorithm, asked.seeding, asked.tol, asked.iterations) == ("lloyd", "random", 0.0, 3)
    assert KMeansConfig(algorithm="lloyd").resolved(10, 1, 2).tol == 1e-5


@pytest.mark.parametrize("algorithm", ["auto", "minibatch"])
def test_labels_on_request(algorithm: str) -> None:
    vectors = blobs()
    config = KMeansConfig(device="cpu", algorithm=algorithm, block_rows=700)
    result = fit_codebooks(ArraySource(vectors), [30, 7], config, FitContext(return_labels=True))
    for k, one in result.items():
        assert one.labels is not None
        assert one.labels.dtype == np.int32
        assert np.bincount(one.labels, minlength=k).tolist() == one.counts.tolist()
        distances = ((vectors.astype(np.float64) - one.centroids[one.labels]) ** 2).sum()
        assert one.inertia == pytest.approx(distances, rel=1e-6)
    assert fit(vectors, 7).labels is None
