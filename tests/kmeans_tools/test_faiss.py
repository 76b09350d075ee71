"""FAISS as a backend: SuperKMeans, and errors if FAISS is not installed."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.config import FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.passes.faiss_backend import require_faiss, superkmeans_sample_size, train_superkmeans
from sctok.kmeans_tools.sources.vectors import ArraySource, TooFewVectorsError, Vectors

needs_superkmeans = pytest.mark.skipif(
    not hasattr(pytest.importorskip("faiss"), "SuperKMeans"), reason="this FAISS has no SuperKMeans"
)


def blobs(rows: int, dim: int) -> Vectors:
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(12, dim)) * 4
    return (centers[generator.integers(12, size=rows)] + generator.normal(size=(rows, dim))).astype(np.float32)


@needs_superkmeans
@pytest.mark.parametrize(("rows", "dim", "k"), [(40, 32, 40), (501, 33, 7), (3000, 96, 24), (300, 48, 1)])
def test_superkmeans_lowers_the_inertia(rows: int, dim: int, k: int) -> None:
    vectors = blobs(rows, dim)
    centroids, history = train_superkmeans(vectors, k, 10, seed=3)
    assert centroids.shape == (k, dim)
    assert np.isfinite(centroids).all()
    assert len(history) == 10
    assert history[-1] <= history[0]
    distances = ((vectors[:, None].astype(float) - centroids[None]) ** 2).sum(axis=2).min(axis=1)
    assert distances.sum() <= 1.01 * history[-1] + 1e-3
    assert np.array_equal(train_superkmeans(vectors, k, 10, seed=3)[0], centroids)


@needs_superkmeans
def test_superkmeans_needs_a_minimum_width() -> None:
    with pytest.raises(ValueError, match="needs vectors of width 32 or more, not 31"):
        train_superkmeans(blobs(100, 31), 4, 5, seed=0)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older: Any = SimpleNamespace(__version__="1.9.0")
    monkeypatch.setitem(sys.modules, "faiss", older)
    assert require_faiss() is older
    with pytest.raises(ImportError, match=r"FAISS 1\.9\.0 has no SuperKMeans: install faiss-cpu>=1\.15"):
        require_faiss(superkmeans=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"install sctok\[cpu\]"):
        require_faiss()


def fit(source: ArraySource, k: int, **options: Any) -> FitResult:
    config = KMeansConfig(backend="faiss-superkmeans", device="cpu", **options)
    return fit_codebooks(source, [k], config)[k]


@needs_superkmeans
def test_superkmeans_as_a_backend_ends_in_a_certified_pass() -> None:
    vectors = blobs(2000, 40)
    result = fit(ArraySource(vectors), 24, iterations=8)
    labels, distances = nearest_centroid_reference(torch.from_numpy(vectors), torch.from_numpy(result.centroids))
    assert result.counts.tolist() == np.bincount(labels.numpy(), minlength=24).tolist()
    assert result.inertia == pytest.approx(float(distances.sum()), rel=1e-6)
    assert (result.iterations, len(result.inertia_history)) == (8, 9)
    assert result.certificate["certified_rows"] == 2000
    exact = fit_codebooks(ArraySource(vectors), [24], KMeansConfig(device="cpu"))[24]
    assert result.inertia <= 1.3 * exact.inertia


@needs_superkmeans
def test_superkmeans_on_a_sample_of_the_vectors() -> None:
    source = ArraySource(blobs(3000, 40))
    result = fit(source, 12, iterations=5, max_points_per_centroid=50)
    assert result.counts.sum() == 3000
    assert result.inertia_history[-2] == pytest.approx(result.inertia, rel=0.3)
    assert superkmeans_sample_size(100, 768, 10**9, None, None) == 25_600
    assert superkmeans_sample_size(100, 768, 10**9, None, 3 * 4 * 768 * 500) == 500
    assert superkmeans_sample_size(100, 768, 10**9, 10, 1) == 100
    assert superkmeans_sample_size(100, 768, 120, None, None) == 120


@needs_superkmeans
def test_superkmeans_limits_are_named() -> None:
    vectors = np.repeat(blobs(5, 40), 9, axis=0)
    with pytest.raises(TooFewVectorsError, match="k = 6 exceeds the 5 distinct vectors"):
        fit(ArraySource(vectors), 6)
    with pytest.raises(ValueError, match="supports neither weights nor first centroids"):
        fit(ArraySource(vectors, weights=np.arange(45)), 4)
