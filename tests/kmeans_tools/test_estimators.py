"""The estimators: scikit-learn's own checks, float64 oracles, weights, seeds, and all kinds of input."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from sklearn import cluster
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import sctok
from sctok import KMeans, MiniBatchKMeans
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.float64 import frames
from sctok.kmeans_tools.sources.vectors import ArraySource, ShardSource

BOTH = pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])
KINDS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def blobs(rows: int, dim: int = 5, centers: int = 6, *, seed: int = 0, dtype: Any = np.float64) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 4
    values = means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim)) + 3
    return values.astype(dtype)


def oracle(vectors: NDArray[Any], centers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    labels, squares = nearest_centroid_reference(torch.tensor(vectors), torch.tensor(centers))
    return labels.numpy(), squares.numpy()


def assert_consistent(model: Any, vectors: NDArray[Any], weights: Any = None) -> None:
    labels, squares = oracle(vectors, model.cluster_centers_)
    assert model.labels_.tolist() == labels.tolist()
    assert model.predict(vectors).tolist() == labels.tolist()
    mass = np.ones(len(vectors)) if weights is None else np.asarray(weights)
    assert model.inertia_ == pytest.approx(float((mass * squares).sum()), rel=1e-6, abs=1e-12)
    assert model.score(vectors, sample_weight=weights) == pytest.approx(-model.inertia_, rel=1e-6, abs=1e-12)
    np.testing.assert_allclose(model.counts_, np.bincount(labels, mass, model.n_clusters))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([KMeans(), MiniBatchKMeans(), MiniBatchKMeans(2, batch_size=10)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@BOTH
@KINDS
@pytest.mark.parametrize(("rows", "dim", "k"), [(1, 1, 1), (15, 1, 4), (63, 7, 63), (500, 3, 17)])
def test_labels_and_inertia_belong_to_the_centers(estimator: Any, dtype: Any, rows: int, dim: int, k: int) -> None:
    vectors = blobs(rows, dim, dtype=dtype)
    model = estimator(k, random_state=0).fit(vectors)
    assert model.cluster_centers_.shape == (k, dim)
    assert model.cluster_centers_.dtype == dtype
    assert model.labels_.dtype == np.int32
    assert_consistent(model, vectors)


@BOTH
@KINDS
def test_results_do_not_depend_on_blocks(estimator: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, weights = blobs(500, 3, dtype=dtype), np.random.default_rng(0).random(500)
    whole = estimator(4, random_state=0).fit(vectors, sample_weight=weights)
    monkeypatch.setattr(frames, "BLOCK_ELEMENTS", 250)
    parts = estimator(4, random_state=0).fit(vectors, sample_weight=weights)
    assert np.array_equal(parts.cluster_centers_, whole.cluster_centers_)
    assert np.array_equal(parts.labels_, whole.labels_)
    assert np.array_equal(parts.transform(vectors), whole.transform(vectors))
    assert_consistent(parts, vectors, weights)


def test_many_rows() -> None:
    vectors = blobs(65_537, 2, dtype=np.float32)
    assert_consistent(KMeans(3, init=vectors[:3], max_iter=1).fit(vectors), vectors)


@KINDS
def test_rows_of_weight_zero_are_ignored(dtype: Any) -> None:
    vectors = blobs(17_000, 2, dtype=dtype)
    weights = np.random.default_rng(1).integers(0, 100, len(vectors))
    vectors[weights == 0] = 1e6
    model = KMeans(5, random_state=0, max_iter=3).fit(vectors, sample_weight=weights)
    assert_consistent(model, vectors, weights)
    kept = KMeans(5, random_state=0, max_iter=3).fit(vectors[weights > 0], sample_weight=weights[weights > 0])
    assert np.array_equal(kept.cluster_centers_, model.cluster_centers_)


@KINDS
def test_one_step_equals_scikit_learn(dtype: Any) -> None:
    vectors = blobs(700, 12, 9, dtype=dtype)
    start = vectors[:20]
    model = KMeans(20, init=start, max_iter=1, tol=0).fit(vectors)
    expected = cluster.KMeans(20, init=start, n_init=1, max_iter=1, tol=0, algorithm="lloyd").fit(vectors)
    np.testing.assert_allclose(model.cluster_centers_, expected.cluster_centers_, rtol=0, atol=4e-6)
    assert model.inertia_ == pytest.approx(expected.inertia_, rel=1e-5)
    assert model.n_iter_ == expected.n_iter_ == 1


def test_converges_like_scikit_learn_from_the_same_start() -> None:
    vectors = blobs(2000, 8, 30)
    start = vectors[np.random.default_rng(1).choice(2000, 32, replace=False)]
    model = KMeans(32, init=start, tol=0).fit(vectors)
    expected = cluster.KMeans(32, init=start, n_init=1, tol=0, algorithm="lloyd").fit(vectors)
    assert model.inertia_ <= 1.002 * expected.inertia_


def test_partial_fit_is_a_running_mean_as_in_scikit_learn() -> None:
    vectors = blobs(600, 4)
    start = vectors[:6]
    model = MiniBatchKMeans(6, init=start)
    expected = cluster.MiniBatchKMeans(6, init=start, n_init=1, reassignment_ratio=0)
    for batch in np.split(vectors, 6):
        model.partial_fit(batch)
        expected.partial_fit(batch)
        np.testing.assert_allclose(model.cluster_centers_, expected.cluster_centers_, rtol=1e-9)
        assert model.labels_.tolist() == expected.labels_.tolist()
        assert model.inertia_ == pytest.approx(expected.inertia_)
    assert model.n_steps_ == 6
    assert model.counts_.sum() == 600


def test_partial_fit_keeps_moving_after_many_vectors() -> None:
    first = np.full((1, 1), 1000, np.float32)
    model = MiniBatchKMeans(1, init=first).partial_fit(first, sample_weight=[1e5])
    for _ in range(200):  # each moves the center by less than half a unit of float32
        model.partial_fit(first + 1)
    assert model.cluster_centers_[0, 0] == np.float32(1000 + 200 / (1e5 + 200))


def test_partial_fit_seeds_from_the_first_batch_and_continues_after_fit() -> None:
    vectors = blobs(400, 3, 4)
    model = MiniBatchKMeans(4, random_state=0).partial_fit(vectors[:100])
    assert_consistent(clone(model).fit(vectors), vectors)
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=4"):
        MiniBatchKMeans(4).partial_fit(vectors[:3])
    model.fit(vectors)
    before, counts = model.cluster_centers_.copy(), model.counts_.copy()
    model.partial_fit(before[:1] + 0.5)
    assert model.counts_.tolist() == [counts[0] + 1, *counts[1:]]
    np.testing.assert_allclose(model.cluster_centers_[0], before[0] + 0.5 / (counts[0] + 1), rtol=1e-6)
    assert np.array_equal(model.cluster_centers_[1:], before[1:])


@BOTH
@KINDS
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_weight_equals_repetition(estimator: Any, dtype: Any, data: st.DataObject) -> None:
    rows = data.draw(st.integers(4, 40))
    vectors = data.draw(arrays.arrays(dtype, (rows, 2), elements=st.integers(-50, 50).map(float), unique=True))
    weights = data.draw(arrays.arrays(np.int64, rows, elements=st.integers(0, 4)).filter(lambda w: (w > 0).sum() > 3))
    weighted = estimator(3, random_state=1).fit(vectors, sample_weight=weights)
    order = np.random.default_rng(0).permutation(int(weights.sum()))
    repeated = estimator(3, random_state=1).fit(vectors.repeat(weights, axis=0)[order])
    assert np.array_equal(weighted.cluster_centers_, repeated.cluster_centers_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_)
    assert weighted.n_iter_ == repeated.n_iter_


@BOTH
def test_random_state_determines_the_result(estimator: Any) -> None:
    vectors = blobs(300, 4, 20)
    first, second = (estimator(12, random_state=5).fit(vectors) for _ in range(2))
    assert np.array_equal(first.cluster_centers_, second.cluster_centers_)
    assert not np.array_equal(first.cluster_centers_, estimator(12, random_state=6).fit(vectors).cluster_centers_)
    state = estimator(12, random_state=np.random.RandomState(5)).fit(vectors)
    assert np.array_equal(first.cluster_centers_, state.cluster_centers_)


def test_more_runs_are_never_worse() -> None:
    vectors = blobs(300, 4, 20)
    one, ten = (KMeans(20, init="random", n_init=runs, random_state=0).fit(vectors) for runs in (1, 10))
    assert ten.inertia_ < one.inertia_
    assert KMeans(20, init="random", random_state=0).fit(vectors).inertia_ == ten.inertia_


@pytest.mark.parametrize("init", ["auto", "hierarchical", "k-means++", "random"])
def test_named_seedings(init: str) -> None:
    vectors = blobs(300, 4, 10)
    model = KMeans(10, init=init, n_init=4, random_state=0).fit(vectors)
    expected = cluster.KMeans(10, n_init=4, random_state=0).fit(vectors)
    assert model.inertia_ <= 1.002 * expected.inertia_


def test_init_can_be_a_function_of_the_data() -> None:
    vectors = blobs(100)

    def first_rows(X: NDArray[Any], n_clusters: int, random_state: np.random.RandomState) -> NDArray[Any]:
        assert X is not None
        assert isinstance(random_state, np.random.RandomState)
        return X[:n_clusters]

    called = KMeans(4, init=first_rows, n_init=1).fit(vectors)
    assert np.array_equal(called.cluster_centers_, KMeans(4, init=vectors[:4]).fit(vectors).cluster_centers_)


@BOTH
@pytest.mark.parametrize("offset", [0.0, 1e9])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e60])
def test_float64_survives_offset_and_scale(estimator: Any, offset: float, scale: float) -> None:
    vectors = blobs(200, 3, 4)
    plain = estimator(4, random_state=0).fit(vectors)
    model = estimator(4, random_state=0).fit((vectors + offset) * scale)
    assert model.labels_.tolist() == plain.labels_.tolist()
    assert model.inertia_ == pytest.approx(plain.inertia_ * scale**2, rel=1e-4)


def test_predict_on_strided_and_read_only_arrays() -> None:
    vectors = blobs(500, 6)
    model = KMeans(7, random_state=0).fit(vectors)
    expected = model.predict(vectors).tolist()
    wide = np.zeros((500, 12))
    wide[:, ::2] = vectors
    frozen = vectors.copy()
    frozen.flags.writeable = False
    for view in (np.asfortranarray(vectors), wide[:, ::2], frozen, vectors[::-1][::-1], vectors.tolist()):
        assert model.predict(view).tolist() == expected
    assert [int(model.predict(row[None])[0]) for row in vectors[:15]] == expected[:15]
    assert model.predict(vectors[:63]).tolist() == expected[:63]


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, bool])
def test_other_dtypes(dtype: Any) -> None:
    vectors = (blobs(60, 20) > 3).astype(dtype)
    model = KMeans(3, random_state=0).fit(vectors)
    assert model.cluster_centers_.dtype == (np.float32 if dtype == np.float16 else np.float64)
    assert_consistent(model, vectors.astype(np.float64))


def test_transform_returns_the_distance_to_every_center() -> None:
    vectors = blobs(50, 3) + 1e6
    model = KMeans(4, random_state=0).fit(vectors)
    expected = np.sqrt(((vectors[:, None] - model.cluster_centers_[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(model.transform(vectors), expected, rtol=1e-7)
    np.testing.assert_allclose(model.transform(model.cluster_centers_).diagonal(), 0, atol=0)
    assert model.transform(vectors.astype(np.float32)).dtype == np.float32
    assert model.get_feature_names_out().tolist() == ["kmeans0", "kmeans1", "kmeans2", "kmeans3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_tensors_give_tensors(dtype: torch.dtype) -> None:
    vectors = torch.from_numpy(blobs(80)).to(dtype)
    numbers = vectors.to(torch.float64).numpy()
    model = KMeans(4, random_state=0)
    labels = model.fit_predict(vectors)
    assert isinstance(model.cluster_centers_, np.ndarray)
    assert labels.dtype == torch.int64
    assert labels.tolist() == oracle(numbers, model.cluster_centers_)[0].tolist()
    assert torch.equal(model.predict(vectors), labels)
    moved = model.transform(vectors)
    assert moved.dtype == (torch.float32 if dtype in (torch.float32, torch.bfloat16) else torch.float64)
    assert moved.argmin(dim=1).tolist() == labels.tolist()
    assert model.score(vectors) == pytest.approx(-model.inertia_)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    with FeatureShardWriter(path, width=3, provenance={"encoder": "test", "encoder_hash": "0" * 16}) as writer:
        writer.add_clip("clip", blobs(800, 3, dtype=np.float16), samples=1)
    return path


@BOTH
def test_shards_sources_and_blocks(estimator: Any, shard: Path) -> None:
    stacked = ShardSource([shard], 2)
    vectors = stacked.take(np.arange(stacked.rows))
    model = estimator(5, random_state=0).fit(stacked)
    assert_consistent(model, vectors)
    assert model.predict(stacked).tolist() == model.labels_.tolist()
    assert model.transform(stacked).shape == (stacked.rows, 5)
    for unstacked in (str(shard), [shard], [*np.split(blobs(800, 3, dtype=np.float16), 2)]):
        model = estimator(5, random_state=0).fit(unstacked)
        assert_consistent(model, ShardSource([shard], 1).take(np.arange(800)))

    def blocks() -> Any:
        return (vectors[start : start + 100] for start in range(0, len(vectors), 100))

    assert_consistent(estimator(5, random_state=0).fit(blocks), vectors)


def test_sources_have_their_own_weights() -> None:
    vectors = blobs(100, dtype=np.float32)
    weights = np.arange(100.0)
    model = KMeans(3, random_state=0).fit(ArraySource(vectors, "mine", weights))
    assert_consistent(model, vectors, weights)
    with pytest.raises(ValueError, match="a source has its own weights"):
        model.score(ArraySource(vectors), sample_weight=weights)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_rows_are_named(estimator: Any, bad: float) -> None:
    vectors = blobs(30)
    model = estimator(2).fit(vectors)
    vectors[17, 2] = bad
    for call in (estimator(2).fit, model.predict, model.transform, model.score):
        for given_vectors in (vectors, vectors.astype(np.float32), torch.from_numpy(vectors)):
            with pytest.raises(ValueError, match="row 17 holds NaN or infinity"):
                call(given_vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters 0 is not"),
        ({"n_clusters": True}, "n_clusters True is not"),
        ({"n_clusters": 2.5}, "n_clusters 2.5 is not"),
        ({"n_clusters": 31}, "n_samples=30 should be >= n_clusters=31"),
        ({"max_iter": 0}, "max_iter 0 is not"),
        ({"n_init": "many"}, "n_init 'many' is not"),
        ({"tol": -1.0}, "tol -1.0 is not"),
        ({"tol": "none"}, "tol 'none' is not"),
        ({"init": "best"}, "init 'best' is not one of"),
        ({"init": np.zeros((3, 5))}, r"init of shape \(3, 5\) is not 2 centers of 5"),
        ({"algorithm": "elkan"}, "algorithm 'elkan' is not one of"),
        ({"precision": "double"}, "precision 'double' is not one of"),
        ({"device": "abacus"}, "device 'abacus' is unknown"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KMeans(**{"n_clusters": 2, **options}).fit(blobs(30))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 29, r"sample_weight: weights of float64 \(29,\) are not 30 numbers"),
        ([-1.0] * 30, "the weight of row 0 is -1.0"),
        ([0.0] * 30, "all weights are zero"),
        ([1e308] * 30, "too large to be summed"),
    ],
)
def test_bad_weights_are_named(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KMeans(2).fit(blobs(30), sample_weight=weights)


def test_batches_and_widths_that_do_not_fit() -> None:
    vectors = blobs(30)
    with pytest.raises(ValueError, match="batch_size 0 is not"):
        MiniBatchKMeans(2, batch_size=0).fit(vectors)
    with pytest.raises(ValueError, match="partial_fit needs an array or a tensor"):
        MiniBatchKMeans(2).partial_fit([vectors, vectors])
    model = KMeans(2).fit(vectors)
    for narrow in (vectors[:, :3], torch.from_numpy(vectors[:, :3]), [vectors[:, :3]]):
        with pytest.raises(ValueError, match="X has 3 features, but KMeans is expecting 5 features"):
            model.predict(narrow)
    with pytest.raises(ValueError, match="X must be a matrix"):
        model.predict(torch.zeros(5))
    with pytest.raises(NotFittedError):
        KMeans().predict(vectors)


@BOTH
def test_fewer_distinct_rows_than_clusters(estimator: Any) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], [-0.0, 1.0], [0.0, 1.0]] * 5)
    with pytest.warns(ConvergenceWarning, match="3 distinct rows, fewer than n_clusters=7"):
        model = estimator(7).fit(vectors)
    assert model.inertia_ == 0
    assert len(np.unique(model.labels_)) == 3
    assert_consistent(model, vectors)


def test_clone_pickle_pipeline_and_search() -> None:
    vectors = blobs(200, dtype=np.float32)
    model = KMeans(4, random_state=0).fit(vectors)
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(vectors).tolist() == clone(model).fit_predict(vectors).tolist() == model.labels_.tolist()
    line = make_pipeline(StandardScaler(), KMeans(4, random_state=0)).fit(vectors)
    assert line.transform(vectors).shape == (200, 4)
    search = GridSearchCV(KMeans(random_state=0), {"n_clusters": [2, 6]}, cv=2).fit(vectors)
    assert search.best_params_ == {"n_clusters": 6}


def test_verbose_prints_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    model = KMeans(3, random_state=0, verbose=1).fit(blobs(50))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_ + 1
    assert all("inertia" in line for line in lines)


def test_importing_sctok_is_cheap_and_errors_name_missing_packages() -> None:
    code = (
        "import sctok, sys\n"
        "assert 'KMeans' in dir(sctok)\n"
        "assert not {'torch', 'sklearn', 'numpy'} & sys.modules.keys()\n"
        "sys.modules['sklearn'] = None\n"
        "sctok.KMeans\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: install sctok[sklearn] to use KMeans and MiniBatchKMeans"


def test_unknown_public_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'kmeans'"):
        _ = sctok.kmeans
