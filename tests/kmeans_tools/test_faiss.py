"""FAISS as a backend: its SuperKMeans, and what is missing where it is not installed."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sctok.kmeans_tools.faiss_backend import require_faiss, train_superkmeans
from sctok.kmeans_tools.sources import Vectors

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
    result = train_superkmeans(vectors, k, 10, seed=3)
    assert result.centroids.shape == (k, dim)
    assert np.isfinite(result.centroids).all()
    assert len(result.history) == 10
    assert result.history[-1] <= result.history[0]
    distances = ((vectors[:, None].astype(float) - result.centroids[None]) ** 2).sum(axis=2).min(axis=1)
    assert distances.sum() <= 1.01 * result.history[-1] + 1e-3
    assert np.array_equal(train_superkmeans(vectors, k, 10, seed=3).centroids, result.centroids)


@needs_superkmeans
def test_superkmeans_needs_some_width() -> None:
    with pytest.raises(ValueError, match="needs vectors of width 32 or more, not 31"):
        train_superkmeans(blobs(100, 31), 4, 5, seed=0)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older: Any = SimpleNamespace(__version__="1.9.0")
    monkeypatch.setitem(sys.modules, "faiss", older)
    assert require_faiss() is older
    with pytest.raises(ImportError, match=r"FAISS 1\.9\.0 has no SuperKMeans: install faiss-cpu>=1\.15"):
        require_faiss(superkmeans=True)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"install sctok\[cpu\]"):
        require_faiss()
