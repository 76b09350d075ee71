"""Unusual and bad input for every algorithm and seeding: a clear ValueError or a correct result."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.config import ALGORITHMS, FitResult, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.seeding.first_centroids import SEEDINGS
from sctok.kmeans_tools.sources.iterables import IterableSource
from sctok.kmeans_tools.sources.vectors import ArraySource, ShardSource, VectorSource

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_seeding = pytest.mark.parametrize("seeding", SEEDINGS)
NORMAL = np.random.default_rng(0).normal(size=(120, 7))


def fit(source: Any, k: int, **options: Any) -> FitResult:
    vectors: VectorSource = source if hasattr(source, "blocks") else ArraySource(source)
    return fit_codebooks(vectors, [k], KMeansConfig(device="cpu", **{"iterations": 3, **options}))[k]


def assert_right(result: FitResult, vectors: Any) -> None:
    """Assert that counts and inertia agree with the float64 argmin over the centroids."""
    points = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    labels, distances = nearest_centroid_reference(points, torch.from_numpy(result.centroids))
    assert result.counts.tolist() == np.bincount(labels.numpy(), minlength=result.k).tolist()
    assert result.inertia == pytest.approx(float(distances.sum()), rel=1e-5, abs=1e-9)


@every_algorithm
@every_seeding
@pytest.mark.parametrize("dim", [1, 3, 7, 129])
def test_any_width(algorithm: str, seeding: str, dim: int) -> None:
    vectors = np.random.default_rng(dim).normal(size=(130, dim)).astype(np.float32)
    assert_right(fit(vectors, 5, algorithm=algorithm, seeding=seeding), vectors)


@every_algorithm
@every_seeding
def test_equal_vectors(algorithm: str, seeding: str) -> None:
    vectors = np.full((90, 4), 3.5, np.float32)
    result = fit(vectors, 1, algorithm=algorithm, seeding=seeding)
    assert result.centroids.tolist() == [[3.5] * 4]
    assert (result.inertia, result.certificate["explained_variance"]) == (0, None)
    with pytest.raises(ValueError, match="k = 2 exceeds the 1 distinct vectors"):
        fit(vectors, 2, algorithm=algorithm, seeding=seeding)


@every_algorithm
@every_seeding
def test_more_centroids_than_distinct_vectors(algorithm: str, seeding: str) -> None:
    with pytest.raises(ValueError, match="k = 121 exceeds the 120 vectors of array"):
        fit(NORMAL, 121, algorithm=algorithm, seeding=seeding)
    repeated = np.repeat(NORMAL[:6], 20, axis=0)
    with pytest.raises(ValueError, match="k = 7 exceeds the 6 distinct vectors"):
        fit(repeated, 7, algorithm=algorithm, seeding=seeding)
    assert fit(repeated, 6, algorithm=algorithm, seeding=seeding).inertia == pytest.approx(0, abs=1e-9)


@every_algorithm
@every_seeding
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_reported_with_the_row(algorithm: str, seeding: str, value: float) -> None:
    vectors = NORMAL.copy()
    vectors[77, 6] = value
    with pytest.raises(ValueError, match="array: row 77 holds NaN or infinity"):
        fit(vectors, 4, algorithm=algorithm, seeding=seeding)


@every_algorithm
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_])
def test_types_and_layouts(algorithm: str, dtype: type) -> None:
    vectors = np.asfortranarray((NORMAL > 0 if dtype is np.bool_ else np.abs(NORMAL) * 9).astype(dtype))[::-2, 1::2]
    vectors.setflags(write=False)
    assert not vectors.flags.c_contiguous
    assert_right(fit(vectors, 2, algorithm=algorithm, seeding="random"), vectors)


@every_algorithm
def test_iterables_and_tensors_give_the_result_of_the_array(algorithm: str) -> None:
    vectors = NORMAL.astype(np.float32)
    expected = fit(vectors, 6, algorithm=algorithm)
    tensors = fit(torch.from_numpy(vectors), 6, algorithm=algorithm)
    assert np.array_equal(expected.centroids, tensors.centroids)
    blocks = fit(IterableSource([vectors[:50], vectors[50:51], vectors[51:]]), 6, algorithm=algorithm)
    assert_right(blocks, vectors)
    assert blocks.inertia <= 1.5 * expected.inertia


@every_algorithm
@every_seeding
def test_the_input_array_is_not_modified(algorithm: str, seeding: str) -> None:
    vectors = NORMAL.astype(np.float32)
    before = vectors.copy()
    fit(vectors, 9, algorithm=algorithm, seeding=seeding)
    assert np.array_equal(vectors, before)


def shard(path: Path, width: int, seed: int) -> Path:
    with FeatureShardWriter(path, width=width, provenance={"encoder": "mini", "encoder_hash": "m" * 16}) as writer:
        writer.add_clip("a", np.random.default_rng(seed).normal(size=(80, width)), 10 * 2560)
    return path


@every_algorithm
def test_a_bad_value_in_a_shard_is_reported_with_shard_and_vector(algorithm: str, tmp_path: Path) -> None:
    paths = [shard(tmp_path / "a.h5", 6, 0), shard(tmp_path / "b.h5", 6, 1)]
    with h5py.File(paths[1], "r+") as file:
        file["features"][41, 5] = np.inf
    with pytest.raises(ValueError, match=r"b\.h5: vector 41 holds NaN or infinity"):
        fit(ShardSource(paths, 1), 4, algorithm=algorithm)


def test_a_shard_of_another_width_is_named(tmp_path: Path) -> None:
    paths = [shard(tmp_path / "a.h5", 6, 0), shard(tmp_path / "b.h5", 5, 1)]
    with pytest.raises(ValueError, match=r"b\.h5 holds features of width 5, .*a\.h5 of width 6"):
        fit(ShardSource(paths, 1), 4)


@pytest.mark.parametrize(
    "setting",
    [{"memory": "1G"}, {"iterations": True}, {"iterations": 2.5}, {"seed": None}, {"seed": 1.5}, {"tol": "x"}],
)
def test_settings_of_wrong_types_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} .* is not a"):
        KMeansConfig(**setting)
