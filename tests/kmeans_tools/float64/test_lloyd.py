"""Data with a range far larger than its clusters: float64 labels, and at most the inertia of scikit-learn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import cluster
from sklearn.exceptions import ConvergenceWarning

from sctok import KMeans, MiniBatchKMeans
from sctok.kernels.assign import nearest_centroid
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.float64 import problem
from sctok.kmeans_tools.passes.cluster_sums import ExactSum
from sctok.kmeans_tools.sources.vectors import ArraySource

BOTH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])
Wide = NDArray[np.float64]


def blobs(rows: int = 600, dim: int = 5, centers: int = 6, *, seed: int = 0) -> Wide:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 4
    return means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim)) * 0.5


X = blobs()
NOISE = np.random.default_rng(7)
TIMES = NOISE.integers(1_700_000_000 * 10**9, 1_700_086_400 * 10**9, 600)
HOSTILE: dict[str, NDArray[Any]] = {
    "plain": X,
    **{f"two halves {offset:g} apart": np.vstack([X, X + offset]) for offset in (1e4, 1e7, 1e10, 1e12)},
    **{f"a row at {value:g}": np.vstack([X, np.full((1, 5), value)]) for value in (1e5, 1e8, 1e12, 1e15)},
    **{f"offset {offset:g}": X + offset for offset in (1e8, 1e12, -1e12)},
    **{f"scale {scale:g}": X * scale for scale in (1e-310, 1e-200, 1e-40, 1e60, 1e150, 1e200, 1e300)},
    "1e-6 and 1e6": np.vstack([X * 1e-6, X * 1e6]),
    "three scales": np.vstack([X * 1e-6, X, X * 1e6 + 1e7]),
    "scales of columns": X * 10.0 ** np.linspace(-8, 8, 5),
    "scales of clusters": np.vstack([blobs(100, seed=i) * 10.0**e for i, e in enumerate(range(-8, 9, 2))]),
    "one wide column": np.column_stack([X[:, :3], X[:, 3] * 1e9]),
    "nanoseconds": np.column_stack([TIMES, (X[:, :2] * 1000).astype(np.int64)]),
    "only nanoseconds": TIMES[:, None],
    "uint64 beyond 2^63": NOISE.integers(2**63, 2**63 + 10**7, (600, 2), dtype=np.uint64),
    "int8": (X * 3).astype(np.int8),
    "int64 with offset": (X * 1000).astype(np.int64) + 10**11,
    "equal columns": np.column_stack([X[:, :2], np.full(600, 1e9), np.zeros(600)]),
    "repeated rows": np.round(X[:, :2]).repeat(2, axis=0),
    "heavy tails": NOISE.standard_cauchy((600, 3)),
    "log-normal": np.exp(NOISE.normal(size=(600, 3)) * 8),
    "a narrow line": NOISE.normal(size=(600, 1)) * 1e-9 + 5,
}


def magnitude(vectors: NDArray[Any]) -> float:
    """Return the power of two next to the largest number; division by it is exact."""
    return float(2.0 ** np.frexp(np.abs(vectors.astype(np.float64)).max())[1])


def squares(vectors: Wide, centers: Wide) -> Wide:
    """Return all squared distances (n, k) of vectors and centers scaled by a power of two."""
    scale = magnitude(vectors)
    return ((vectors[:, None] / scale - centers[None] / scale) ** 2).sum(axis=2)


def safe(vectors: NDArray[Any]) -> Wide:
    """Return float64 vectors scaled so that the squares of scikit-learn neither overflow nor underflow."""
    return vectors.astype(np.float64) / magnitude(vectors)


@pytest.mark.filterwarnings("ignore:the inertia overflows:RuntimeWarning", "ignore::RuntimeWarning:sklearn")
@pytest.mark.parametrize("seeds", ["k-means++", "random rows"])
@pytest.mark.parametrize("name", HOSTILE)
def test_not_worse_than_scikit_learn_from_the_same_centers(name: str, seeds: str) -> None:
    vectors = HOSTILE[name]
    places = np.random.default_rng(1).choice(len(vectors), 12, replace=False)
    if seeds == "k-means++":
        places = cluster.kmeans_plusplus(safe(vectors), 12, random_state=0)[1]
    first = vectors[places].astype(np.float64)
    model = KMeans(12, init=first).fit(vectors)
    expected = cluster.KMeans(12, init=safe(vectors)[places], n_init=1).fit(safe(vectors))
    scale = magnitude(vectors)
    theirs = ((safe(vectors) - expected.cluster_centers_[expected.labels_]) ** 2).sum()
    ours = ((safe(vectors) - (model.cluster_centers_ / scale)[model.labels_]) ** 2).sum()
    assert ours <= 1.002 * theirs


@pytest.mark.filterwarnings("ignore:the inertia overflows:RuntimeWarning")
@BOTH
@pytest.mark.parametrize("name", HOSTILE)
def test_labels_inertia_and_distances_are_those_of_float64(name: str, estimator: Any) -> None:
    vectors = HOSTILE[name]
    model = estimator(8, random_state=0).fit(vectors)
    wide = vectors.astype(np.float64)
    near = squares(wide, model.cluster_centers_)
    own = np.take_along_axis(near, model.labels_[:, None].astype(np.int64), axis=1)[:, 0]
    assert (own <= near.min(axis=1) * (1 + 1e-12)).all()
    assert np.array_equal(model.predict(vectors), model.labels_)
    scale = magnitude(wide)
    with np.errstate(over="ignore"):
        assert model.inertia_ == pytest.approx(own.sum() * scale * scale, rel=1e-9)
    np.testing.assert_allclose(model.transform(vectors) / scale, np.sqrt(near), rtol=1e-7, atol=1e-300)


@pytest.mark.filterwarnings("ignore:the inertia overflows:RuntimeWarning", "ignore::RuntimeWarning:sklearn")
@pytest.mark.parametrize("name", HOSTILE)
def test_seeding_is_as_good_as_the_best_of_three_runs_of_scikit_learn(name: str) -> None:
    vectors = HOSTILE[name]
    model = KMeans(12, random_state=0).fit(vectors)
    best = min(cluster.KMeans(12, random_state=seed).fit(safe(vectors)).inertia_ for seed in range(3))
    scale = magnitude(vectors)
    assert ((safe(vectors) - (model.cluster_centers_ / scale)[model.labels_]) ** 2).sum() <= 1.05 * best


KINDS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "list": lambda vectors: vectors.tolist(),
    "tensor": torch.from_numpy,
    "blocks": lambda vectors: [vectors[:200], torch.from_numpy(vectors[200:])],
    "function": lambda vectors: lambda: iter([vectors[:1], vectors[1:]]),
    "source": ArraySource,
    "read-only columns": lambda vectors: np.broadcast_to(np.asfortranarray(vectors), vectors.shape),
}


@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [1e8, 1e12])
def test_every_kind_of_input_keeps_an_offset(kind: str, offset: float, estimator: Any) -> None:
    vectors = np.vstack([X, X + offset])
    best = cluster.KMeans(12, random_state=0, n_init=3).fit(X).inertia_
    for data in (vectors, (vectors * 64).astype(np.int64)):
        given = KINDS[kind](data)
        model = estimator(12, random_state=0).fit(given)
        assert model.cluster_centers_.dtype == np.float64
        near = ((data[:, None] - model.cluster_centers_[None]) ** 2).sum(axis=2)
        assert model.labels_.tolist() == near.argmin(axis=1).tolist()
        assert model.inertia_ == pytest.approx(near.min(axis=1).sum(), rel=1e-9)
        assert model.score(given) == -model.inertia_
        np.testing.assert_allclose(np.asarray(model.transform(given)), np.sqrt(near), rtol=1e-7)
        assert model.inertia_ <= 2.1 * best * 3 * (1 if data.dtype == np.float64 else 64**2)


@pytest.mark.parametrize("name", ["plain", "two halves 1e+07 apart", "a row at 1e+12", "three scales"])
def test_float64_is_used_if_float32_does_not_resolve_the_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = HOSTILE[name]
    whole = KMeans(12, random_state=0).fit(vectors)
    monkeypatch.setattr(problem, "_FEW_NUMBERS", 0)
    monkeypatch.setattr(problem, "_MERGED_ROWS", 0)
    model = KMeans(12, random_state=0).fit(vectors)
    assert model.inertia_ <= 1.05 * whole.inertia_


@pytest.mark.parametrize("offset", [0.0, 1e12])
def test_running_means_keep_an_offset(offset: float) -> None:
    first = X[:6] + offset
    model, plain = MiniBatchKMeans(6, init=first), MiniBatchKMeans(6, init=X[:6])
    for start in range(0, 600, 100):
        model.partial_fit(X[start : start + 100] + offset)
        plain.partial_fit(X[start : start + 100])
    np.testing.assert_allclose(model.cluster_centers_ - offset, plain.cluster_centers_, atol=1e-3)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distinct", ["16", "9", "10 that are rare"])
def test_few_distinct_rows_among_many(distinct: str, dtype: Any, estimator: Any) -> None:
    palette = np.random.default_rng(0).normal(size=(16, 3)).astype(dtype)
    places = np.random.default_rng(1).integers(int(distinct.split()[0]), size=40_000)
    vectors = palette[places]
    if "rare" in distinct:
        vectors = np.vstack([np.ones((39_990, 3), dtype), palette[:10]])
    model = estimator(8, random_state=0).fit(vectors)
    assert len(np.unique(model.labels_)) == 8
    assert (
        model.labels_.tolist()
        == nearest_centroid_reference(*map(torch.tensor, (vectors, model.cluster_centers_)))[0].tolist()
    )


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_distinct_rows_than_clusters_among_many(dtype: Any, estimator: Any) -> None:
    vectors = np.random.default_rng(0).integers(0, 2, (20_000, 2)).astype(dtype)
    for data in (vectors, [vectors[:5], vectors[5:]]):
        with pytest.warns(ConvergenceWarning, match="4 distinct rows, fewer than n_clusters=6"):
            model = estimator(6).fit(data)
        assert model.inertia_ == 0
        assert len(np.unique(model.labels_)) == 4


def test_an_overflow_of_the_inertia_emits_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="the inertia overflows float64"):
        model = KMeans(6, random_state=0).fit(X * 1e300)
    assert model.inertia_ == np.inf
    assert model.labels_.tolist() == KMeans(6, random_state=0).fit(X).labels_.tolist()
    assert np.isfinite(model.transform(X * 1e300)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distances_of_short_floats_are_float32(dtype: torch.dtype) -> None:
    vectors = torch.from_numpy(X * 4000).to(dtype)
    moved = KMeans(3, random_state=0).fit(vectors).transform(vectors)
    assert moved.dtype == torch.float32
    assert bool(torch.isfinite(moved).all())
    assert float(moved.max()) > 60_000


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.bool])
def test_tensors_of_integers(dtype: torch.dtype) -> None:
    vectors = torch.from_numpy(np.abs(X)).to(dtype)
    model = KMeans(3, random_state=0).fit(vectors)
    assert model.predict(vectors).tolist() == model.labels_.tolist()
    assert model.transform(vectors).dtype == torch.float64


T = torch.from_numpy(X)
NO_NUMBERS: dict[str, Any] = {
    "complex": X + 1j,
    "a complex tensor": T + 1j,
    "a sparse tensor": T.to_sparse(),
    "a tensor without data": T.to("meta"),
    "text": X.astype(str),
    "text in objects": X.astype(str).astype(object),
    "a list of text": [["1", "2"], ["3", "4"]],
    "dates": (X * 100).astype("M8[s]"),
    "durations": (X * 100).astype("m8[s]"),
    "masked values": np.ma.array(X, mask=X > 1),
    "complex blocks": [X + 1j],
    "complex tensors in blocks": [T + 1j, T + 1j],
    "masked blocks": [np.ma.array(X, mask=X > 1)],
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_data_without_real_numbers_are_refused(name: str) -> None:
    model = KMeans(2, random_state=0).fit(X)
    for call in (KMeans(2).fit, MiniBatchKMeans(2).fit, model.predict, model.transform, model.score):
        with pytest.raises(ValueError, match=r"(?i)complex|sparse|meta|text or dates|masked|must be numbers"):
            call(NO_NUMBERS[name])


@pytest.mark.parametrize("given", [T + 1j, T.to_sparse(), T.to("meta")])
def test_the_search_refuses_tensors_that_it_would_have_to_convert(given: torch.Tensor) -> None:
    for points, centers in ((given, T[:3]), (T, given)):
        with pytest.raises(ValueError, match="not a dense matrix of real numbers"):
            nearest_centroid(points, centers)


@pytest.mark.parametrize("weight", [1e300, 1e-300, 2**60, 5e-324])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_any_size(weight: float, dtype: Any) -> None:
    vectors = X.astype(dtype)
    plain = KMeans(6, random_state=0).fit(vectors)
    model = KMeans(6, random_state=0).fit(vectors, sample_weight=np.full(600, weight))
    np.testing.assert_allclose(np.sort(model.cluster_centers_, axis=0), np.sort(plain.cluster_centers_, axis=0))


@pytest.mark.parametrize("weights", [np.ones(600) + 1j, ["1"] * 600, np.ma.array(np.ones(600), mask=X[:, 0] > 0)])
def test_weights_that_are_not_numbers_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"real numbers|masked"):
        KMeans(2).fit(X, sample_weight=weights)


@pytest.mark.parametrize("k", [7, 90])
@pytest.mark.parametrize("name", ["two halves 1e+12 apart", "three scales", "uint64 beyond 2^63", "scale 1e+150"])
def test_the_search_is_exact_on_hostile_data(name: str, k: int) -> None:
    points = torch.from_numpy(HOSTILE[name].astype(np.float64))
    centers = points[torch.from_numpy(np.random.default_rng(0).choice(len(points), k, replace=False))] * (1 + 2.0**-30)
    found = nearest_centroid(points, centers, runner_up=True)
    labels, _ = nearest_centroid_reference(points, centers)
    assert torch.equal(found.labels, labels)


def test_exact_sums_do_not_depend_on_order() -> None:
    values = (NOISE.random(5000) * 10.0 ** NOISE.integers(-44, 38, 5000)).astype(np.float32)
    forward, parts = ExactSum(), ExactSum()
    forward.add(values)
    for part in np.array_split(values[::-1], 7):
        parts.add(part)
    assert forward.value == parts.value == pytest.approx(float(values.astype(np.float64).sum()), rel=1e-12)
