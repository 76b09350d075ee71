"""Fits of codebooks: comparison with scikit-learn and brute force; seeds, sweeps and interruptions."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from sctok.formats.codebooks import Codebook
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.config import FitContext, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import config_hash, fit_codebooks
from sctok.kmeans_tools.progress import FitEvent, FitStarted
from sctok.kmeans_tools.sources.vectors import ArraySource, Block, Vectors

CPU = {"device": "cpu"}


def blobs(rows: int, dim: int, centers: int, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(centers, dim)) * 4
    values = means[generator.integers(centers, size=rows)] + generator.normal(size=(rows, dim))
    return (values + 3).astype(np.float32)


def fit(vectors: Any, k: int, **options: Any) -> FitResult:
    given = options.pop("initial", None)
    initial = {} if given is None else {k: given}
    config = KMeansConfig(**{**CPU, **({"seeding": "given"} if initial else {}), **options})
    return fit_codebooks(ArraySource(vectors), [k], config, FitContext(initial=initial))[k]


def assert_belongs(result: FitResult, vectors: Vectors) -> None:
    labels, distances = nearest_centroid_reference(torch.from_numpy(vectors), torch.from_numpy(result.centroids))
    assert result.counts.tolist() == np.bincount(labels.numpy(), minlength=result.k).tolist()
    assert result.inertia == pytest.approx(float(distances.sum()), rel=1e-6)
    assert result.inertia_history[-1] == result.inertia


def assert_same(one: FitResult, other: FitResult) -> None:
    assert np.array_equal(one.centroids, other.centroids)
    assert np.array_equal(one.counts, other.counts)
    assert one.inertia_history == other.inertia_history
    ours, theirs = ({**result.certificate, "config_hash": ""} for result in (one, other))
    assert ours == theirs


def test_one_step_equals_scikit_learn() -> None:
    vectors = blobs(700, 12, 9)
    start = vectors[:20]
    result = fit(vectors, 20, initial=start, iterations=1)
    expected = KMeans(20, init=start, n_init=1, max_iter=1, tol=0, algorithm="lloyd").fit(vectors)
    np.testing.assert_allclose(result.centroids, expected.cluster_centers_, atol=1e-4)
    assert result.inertia == pytest.approx(expected.inertia_, rel=1e-5)
    assert_belongs(result, vectors)


def test_inertia_is_close_to_scikit_learn_from_the_same_start() -> None:
    vectors = blobs(3000, 16, 60)
    start = vectors[np.random.default_rng(1).choice(3000, 64, replace=False)]
    result = fit(vectors, 64, initial=start, iterations=20, tol=0)
    expected = KMeans(64, init=start, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(vectors)
    assert result.inertia <= 1.01 * expected.inertia_


def test_plus_plus_seeding_is_as_good_as_in_scikit_learn() -> None:
    vectors = blobs(3000, 16, 60)
    expected = KMeans(60, n_init=3, random_state=0).fit(vectors)
    assert fit(vectors, 60).inertia <= 1.05 * expected.inertia_


def test_inertia_never_rises() -> None:
    history = fit(blobs(2000, 8, 30), 100, seeding="random", tol=0).inertia_history
    assert len(history) > 5
    assert all(later <= before * (1 + 1e-7) for before, later in pairwise(history))


@pytest.mark.parametrize(("rows", "dim", "k"), [(1, 1, 1), (15, 1, 4), (63, 7, 63), (500, 3, 17), (65_537, 2, 5)])
def test_ragged_sizes(rows: int, dim: int, k: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    result = fit(vectors, k, iterations=3)
    assert_belongs(result, vectors)
    assert result.counts.sum() == rows


def test_as_many_centroids_as_vectors_have_zero_inertia() -> None:
    vectors = blobs(40, 5, 4)
    result = fit(vectors, 40, seeding="random")
    assert result.inertia == 0
    assert result.certificate["dead_codes"] == 0


def test_empty_clusters_are_filled_and_the_inertia_falls() -> None:
    vectors = blobs(800, 6, 10)
    far = np.full((15, 6), 1e3, np.float32) + np.arange(15, dtype=np.float32)[:, None]
    result = fit(vectors, 20, initial=np.concatenate([vectors[:5], far]), iterations=10, tol=0)
    assert result.certificate["dead_codes"] == 0
    assert all(later < before for before, later in pairwise(result.inertia_history[:5]))
    assert_belongs(result, vectors)


def test_duplicate_centroids_are_repaired() -> None:
    vectors = blobs(300, 4, 12)
    result = fit(vectors, 12, initial=np.repeat(vectors[:1], 12, axis=0), iterations=15)
    assert result.certificate["dead_codes"] == 0
    assert len(np.unique(result.centroids, axis=0)) == 12


def test_dead_codes_that_cannot_be_filled_are_reported() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 30, axis=0)
    result = fit(vectors, 5, initial=np.arange(15, dtype=np.float32).reshape(5, 3))
    assert result.inertia == 0
    assert result.certificate["dead_codes"] == 2
    assert result.certificate["perplexity"] == pytest.approx(3)


def test_a_sweep_equals_single_runs() -> None:
    vectors = blobs(1500, 6, 20)
    for algorithm in ("lloyd", "minibatch"):
        config = KMeansConfig(algorithm=algorithm, seed=3, iterations=4, **CPU)
        together = fit_codebooks(ArraySource(vectors), [8, 32, 17], config)
        assert list(together) == [8, 32, 17]
        for k, result in together.items():
            assert_same(result, fit_codebooks(ArraySource(vectors), [k], config)[k])


def test_the_seed_determines_the_result() -> None:
    vectors = blobs(500, 4, 8)
    assert_same(fit(vectors, 16, seed=1), fit(vectors, 16, seed=1))
    assert not np.array_equal(fit(vectors, 16, seed=1).centroids, fit(vectors, 16, seed=2).centroids)


def test_block_size_does_not_change_the_result_for_float16_vectors() -> None:
    vectors = blobs(900, 5, 8).astype(np.float16)
    one, other = (fit(vectors, 24, iterations=6, block_rows=rows, tol=0) for rows in (64, 900))
    assert np.array_equal(one.centroids, other.centroids)
    assert np.array_equal(one.counts, other.counts)


class _Stop(BaseException):
    """Simulates a kill: nothing catches it."""


class _Interrupted(ArraySource):
    """An array source that raises _Stop after a number of blocks."""

    def __init__(self, array: Vectors, blocks: int) -> None:
        super().__init__(array)
        self.left = blocks

    def blocks(self, block_rows: int, span: tuple[int, int] | None = None) -> Iterator[Block]:
        for block in super().blocks(block_rows, span):
            if self.left == 0:
                raise _Stop
            self.left -= 1
            yield block


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
def test_interrupted_anywhere_and_resumed_gives_the_same_bits(algorithm: str, tmp_path: Path) -> None:
    vectors = blobs(600, 5, 8)
    config = KMeansConfig(algorithm=algorithm, seeding="random", iterations=4, tol=0, block_rows=256, **CPU)
    expected = fit_codebooks(ArraySource(vectors), [8, 30], config)
    for blocks in (0, 2, 5, 6, 10, 14):  # of 15: four iterations and the final pass
        options = FitContext(checkpoint_dir=tmp_path)
        with pytest.raises(_Stop):
            fit_codebooks(_Interrupted(vectors, blocks), [8, 30], config, options)
        events: list[FitEvent] = []
        options = FitContext(checkpoint_dir=tmp_path, progress=events.append)
        results = fit_codebooks(ArraySource(vectors), [8, 30], config, options)
        assert [event.resumed for event in events if isinstance(event, FitStarted)] == [True, True]
        for k, result in results.items():
            assert_same(result, expected[k])
        assert not list(tmp_path.iterdir())


def test_each_result_is_saved_before_its_checkpoint_is_removed(tmp_path: Path) -> None:
    saved = []

    def save(result: FitResult) -> None:
        assert len(list(tmp_path.glob(f"x-{result.k}-{result.config_hash}.safetensors"))) == 1
        saved.append(result.k)

    config = KMeansConfig(iterations=2, **CPU)
    options = FitContext(checkpoint_dir=tmp_path, name="x", save=save)
    fit_codebooks(ArraySource(blobs(200, 3, 4)), [4, 9], config, options)
    assert sorted(saved) == [4, 9]
    assert not list(tmp_path.iterdir())


def test_settings_and_data_change_the_configuration_hash(tmp_path: Path) -> None:
    source = ArraySource(blobs(200, 3, 4))
    settings: list[dict[str, Any]] = [{}, {"seed": 1}, {"tol": 0.1}, {"iterations": 3}]
    settings += [{"algorithm": "minibatch"}, {"precision": "fp32"}]
    hashes = {config_hash(source, 8, KMeansConfig(**options)) for options in settings}
    assert len(hashes) == 6
    assert config_hash(source, 8, KMeansConfig(device="cpu", backend="torch", iterations=25)) in hashes
    assert config_hash(source, 9, KMeansConfig()) not in hashes
    assert config_hash(ArraySource(blobs(200, 3, 4, seed=1)), 8, KMeansConfig()) not in hashes


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    source, config = ArraySource(blobs(200, 3, 4)), KMeansConfig(**CPU)
    path = tmp_path / f"kmeans-8-{config_hash(source, 8, config)}.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=path.name):
        fit_codebooks(source, [8], config, FitContext(checkpoint_dir=tmp_path))


def test_early_stop() -> None:
    vectors = blobs(2000, 4, 10)
    loose, tight = fit(vectors, 10, tol=0.01), fit(vectors, 10, tol=0, iterations=200)
    assert loose.iterations < tight.iterations < 200
    assert loose.converged
    assert tight.converged
    assert loose.inertia <= 1.05 * tight.inertia


def test_mini_batches_come_close_to_lloyd() -> None:
    vectors = blobs(4000, 8, 20)
    result = fit(vectors, 40, algorithm="minibatch")
    assert result.inertia <= 1.05 * fit(vectors, 40).inertia
    assert_belongs(result, vectors)


def test_iterations_on_a_subset_end_with_a_pass_over_all_vectors() -> None:
    vectors = blobs(4000, 4, 10)
    result = fit(vectors, 10, max_points_per_centroid=50)
    assert_belongs(result, vectors)
    assert result.n_vectors == 4000
    assert result.inertia <= 1.1 * fit(vectors, 10).inertia
    assert result.inertia_history[-2] == pytest.approx(result.inertia, rel=0.2)


def test_faiss_and_pytorch_agree() -> None:
    pytest.importorskip("faiss")
    vectors = blobs(1500, 16, 12)
    start = vectors[:24]
    one = fit(vectors, 24, initial=start, backend="faiss", iterations=10)
    other = fit(vectors, 24, initial=start, iterations=10)
    np.testing.assert_allclose(one.centroids, other.centroids, atol=1e-3)
    assert_belongs(one, vectors)
    assert fit(vectors, 24, initial=start, backend="faiss", precision="fp32").certificate["certified_rows"] == 0


def test_missing_faiss_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"install sctok\[cpu\]"):
        fit(blobs(50, 3, 2), 2, backend="faiss")


def test_the_certificate_agrees_with_brute_force() -> None:
    vectors = blobs(500, 6, 8) + 1000
    result = fit(vectors, 12)
    wide = vectors.astype(np.float64)
    total = ((wide - wide.mean(axis=0)) ** 2).sum()
    certificate = result.certificate
    assert certificate["explained_variance"] == pytest.approx(1 - result.inertia / total, abs=1e-5)
    shares = result.counts[result.counts > 0] / 500
    assert certificate["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    gaps = np.linalg.norm(result.centroids[:, None].astype(float) - result.centroids[None], axis=2)
    assert certificate["min_centroid_distance"] == pytest.approx(gaps[~np.eye(12, dtype=bool)].min(), rel=1e-5)
    assert certificate["certified_rows"] == 500


def test_zero_variance_with_one_centroid() -> None:
    result = fit(np.full((50, 3), 7.0), 1)
    assert result.inertia == 0
    assert result.certificate["explained_variance"] is None
    assert result.certificate["min_centroid_distance"] is None


@pytest.mark.parametrize("seeding", ["kmeans++", "random"])
def test_more_centroids_than_vectors_or_distinct_vectors(seeding: str) -> None:
    with pytest.raises(ValueError, match="k = 6 exceeds the 5 vectors of array"):
        fit(np.eye(5), 6, seeding=seeding)
    with pytest.raises(ValueError, match="k = 4 exceeds the 3 distinct vectors"):
        fit(np.repeat(np.eye(3), 5, axis=0), 4, seeding=seeding)
    assert fit(np.repeat(np.eye(3), 5, axis=0), 3, seeding=seeding).inertia == 0


def test_a_row_with_nan_is_named() -> None:
    vectors = blobs(100, 3, 2)
    vectors[42, 1] = np.nan
    with pytest.raises(ValueError, match="row 42 holds NaN or infinity"):
        fit(vectors, 4)


def test_vectors_too_large_for_float32_distances() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 3)) * 1e25
    with pytest.raises(ValueError, match="scale the vectors down"):
        fit(vectors, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "elkan"}, "algorithm 'elkan' is not one of auto, lloyd, minibatch"),
        ({"iterations": 0}, "iterations 0 is not a positive whole number"),
        ({"tol": -1.0}, "tol -1.0"),
        ({"tol": float("nan")}, "tol nan"),
        ({"seed": -1}, "seed -1"),
        ({"precision": "bf16"}, "precision 'bf16'"),
        ({"seeding": "given"}, "seeding 'given' needs first centroids for k = 4"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(blobs(50, 3, 2), 4, **options)


def test_first_centroids_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\) are not 4 finite vectors of width 3"):
        fit(blobs(50, 3, 2), 4, initial=np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_other_types_and_read_only_strided_arrays(dtype: type) -> None:
    vectors = np.abs(blobs(200, 10, 4) * 8).astype(dtype)[::2, ::3]
    vectors.setflags(write=False)
    assert_belongs(fit(vectors, 6), vectors.astype(np.float32))


def test_a_result_makes_a_valid_codebook() -> None:
    from sctok.formats.codebooks import CodebookInfo

    result = fit(blobs(100, 4, 3), 5)
    info = CodebookInfo("x", (), 1, "mini", "0" * 16, certificate=result.certificate)
    assert Codebook(result.centroids, result.counts, info).k == 5


def test_a_draft_comes_before_the_first_pass_and_does_not_change_the_result() -> None:
    order: list[str] = []
    drafts: dict[int, Vectors] = {}

    def draft(k: int, centroids: Vectors) -> None:
        order.append("draft")
        drafts[k] = centroids.copy()

    config = KMeansConfig(seed=1, seeding="hierarchical", device="cpu")
    source = ArraySource(blobs(2_000, 12, 30))
    options = FitContext(draft=draft, progress=lambda event: order.append(type(event).__name__))
    watched = fit_codebooks(source, [20], config, options)[20]
    assert order[:2] == ["draft", "FitStarted"]
    assert order.count("draft") == 1
    assert drafts[20].shape == watched.centroids.shape
    assert np.isfinite(drafts[20]).all()
    assert np.array_equal(fit_codebooks(source, [20], config)[20].centroids, watched.centroids)
