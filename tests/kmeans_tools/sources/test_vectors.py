"""Reading of vectors: blocks, samples, and shards that do not fit together."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats.feature_shards import FeatureShard, FeatureShardWriter
from sctok.kmeans_tools.seeding.first_centroids import draw_sample
from sctok.kmeans_tools.sources.vectors import (
    ArraySource,
    ShardSource,
    Vectors,
    VectorSource,
    plan_blocks,
    sample_places,
)
from sctok.runtime.distributed import Group

WIDTH = 6


def write_shard(path: Path, columns: list[int], seed: int = 0, width: int = WIDTH, encoder: str = "mini") -> Path:
    generator = np.random.default_rng(seed)
    provenance = {"encoder": encoder, "encoder_hash": encoder[0] * 16}
    with FeatureShardWriter(path, width=width, provenance=provenance) as writer:
        for index, count in enumerate(columns):
            writer.add_clip(f"clip{index}", generator.normal(size=(8 * count, width)), 2560 * count)
    return path


def read_all(source: VectorSource, block_rows: int) -> tuple[Any, Vectors]:
    blocks = list(source.blocks(block_rows))
    assert all(len(block.rows) <= block_rows for block in blocks)
    return np.concatenate([block.places for block in blocks]), np.concatenate([block.rows for block in blocks])


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        write_shard(tmp_path / "a.h5", [3, 64, 5]),
        write_shard(tmp_path / "b.h5", []),
        write_shard(tmp_path / "c.h5", [70, 1, 30], seed=1),
    ]


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("block_rows", [1, 100, 513, 10_000])
def test_blocks_join_the_shards_in_order(shards: list[Path], stack: int, block_rows: int) -> None:
    source = ShardSource(shards, stack)
    expected = []
    for path in shards:
        with FeatureShard(path) as shard:
            expected.append(shard.read(0, shard.stacked_rows(stack), stack))
    places, rows = read_all(source, block_rows)
    assert source.dim == WIDTH * stack
    assert places.tolist() == list(range(source.rows))
    assert np.array_equal(rows, np.concatenate(expected))


def test_samples_are_distinct_places_and_repeatable(shards: list[Path]) -> None:
    source = ShardSource(shards, 2)
    _, rows = read_all(source, 1000)
    places = sample_places(source.rows, 100, (0, 1))
    assert len(set(places.tolist())) == 100
    assert np.array_equal(draw_sample(source, 100, (0, 1))[0], rows[places])
    assert not np.array_equal(places, sample_places(source.rows, 100, (0, 2)))
    assert np.array_equal(draw_sample(source, 10**9, (0, 1))[0], rows)


def test_an_array_and_shards_of_the_same_vectors_agree(shards: list[Path]) -> None:
    source = ShardSource(shards, 1)
    _, rows = read_all(source, 1000)
    array = ArraySource(rows)
    for one, other in zip(source.blocks(200), array.blocks(200), strict=True):
        assert np.array_equal(one.places, other.places)
        assert np.array_equal(one.rows, other.rows)


def test_more_shards_than_may_be_open(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{index:02}.h5", [2], seed=index) for index in range(20)]
    source = ShardSource(paths, 1)
    for _ in range(2):
        places, _ = read_all(source, 64)
        assert places.tolist() == list(range(320))


def test_shards_of_another_encoder_are_refused(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / "a.h5", [2]), write_shard(tmp_path / "b.h5", [2], encoder="base")]
    with pytest.raises(ValueError, match=r"b\.h5 holds features of encoder base \(b{16}\), .*a\.h5 of mini \(m{16}\)"):
        ShardSource(paths, 1)


def test_shards_of_another_width_are_refused(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / "a.h5", [2]), write_shard(tmp_path / "b.h5", [2], width=12)]
    with pytest.raises(ValueError, match=r"b\.h5 holds features of width 12, .*a\.h5 of width 6"):
        ShardSource(paths, 1)


def test_shards_of_other_filterbank_settings_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, bins in zip(paths, (128, 64), strict=True):
        provenance = {"encoder": "mini", "encoder_hash": "m" * 16, "filterbank": {"mel_bins": bins}}
        with FeatureShardWriter(path, width=WIDTH, provenance=provenance):
            pass
    with pytest.raises(ValueError, match=r"b\.h5 and .*a\.h5 were made with different filterbank settings"):
        ShardSource(paths, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_reported_with_shard_and_vector(tmp_path: Path, value: float) -> None:
    paths = [write_shard(tmp_path / "a.h5", [4]), write_shard(tmp_path / "b.h5", [40])]
    with h5py.File(paths[1], "r+") as file:
        file["features"][35, 2] = value
    with pytest.raises(ValueError, match=r"b\.h5: vector 17 holds NaN or infinity"):
        list(ShardSource(paths, 2).blocks(7))


def test_no_shards() -> None:
    with pytest.raises(ValueError, match="sctok extract"):
        ShardSource([], 1)


def test_the_fingerprint_follows_the_content(shards: list[Path], tmp_path: Path) -> None:
    one = ShardSource(shards, 1).fingerprint
    assert one == ShardSource(shards, 1).fingerprint
    assert one != ShardSource(shards, 2).fingerprint
    assert one != ShardSource(shards[:1], 1).fingerprint
    assert one != ShardSource(shards[::-1], 1).fingerprint
    write_shard(shards[0], [3, 64, 5], seed=2)
    assert one != ShardSource(shards, 1).fingerprint
    write_shard(shards[0], [3, 64, 5])
    assert one == ShardSource(shards, 1).fingerprint
    assert ArraySource(np.eye(3)).fingerprint != ArraySource(np.eye(4)).fingerprint


def test_a_shard_replaced_while_it_is_read_is_refused(shards: list[Path]) -> None:
    source = ShardSource(shards, 1)
    write_shard(shards[2], [70, 1, 30], seed=2)
    with pytest.raises(ValueError, match=r"c\.h5 changed while it was read"):
        list(source.blocks(100))


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.array([["a"]]), np.array([[1j]])]
)
def test_arrays_that_are_not_matrices_of_numbers_are_refused(array: Any) -> None:
    with pytest.raises(ValueError, match="vectors must be numbers of shape"):
        ArraySource(array)


def test_float64_beyond_the_range_of_float32_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 holds NaN or infinity"):
        list(ArraySource(np.array([[1.0], [1e300]])).blocks(2))


@given(
    rows=st.integers(1, 3000),
    block_rows=st.integers(1, 1500),
    world=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_spans_of_all_ranks_cover_all_rows(rows: int, block_rows: int, world: int) -> None:
    spans = [Group(rank, world).span(rows) for rank in range(world)]
    blocks = [block for span in spans for block in plan_blocks(rows, block_rows, span)]
    assert [place for start, stop in blocks for place in range(start, stop)] == list(range(rows))
    assert all(0 < stop - start <= block_rows for start, stop in blocks)


def test_blocks_need_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="block_rows 0 is not positive"):
        list(plan_blocks(10, 0))


def test_more_ranks_than_vectors_get_nothing(shards: list[Path]) -> None:
    source = ShardSource(shards, 1)
    assert list(source.blocks(10**6, Group(0, source.rows + 1).span(source.rows))) == []


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_are_read_as_arrays(dtype: torch.dtype) -> None:
    values = torch.arange(24).reshape(6, 4).T.to(dtype)
    (block,) = ArraySource(values).blocks(10)
    assert np.array_equal(block.rows, values.float().numpy())


def test_float32_arrays_are_copied_only_if_they_are_read_only() -> None:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    (block,) = ArraySource(array).blocks(10)
    assert np.shares_memory(block.rows, array)
    array.setflags(write=False)
    (block,) = ArraySource(array).blocks(10)
    assert block.rows.flags.writeable
    assert not np.shares_memory(block.rows, array)


def test_weights_stay_with_their_vectors() -> None:
    array, weights = np.arange(3000.0)[:, None], np.arange(3000) / 7
    source = ArraySource(array, weights=weights)
    for block in source.blocks(700):
        assert block.weights is not None
        assert block.weights.dtype == np.float64
        assert np.array_equal(block.weights, weights[block.places])
    assert source.fingerprint != ArraySource(array).fingerprint
    assert source.fingerprint != ArraySource(array, weights=weights + 1).fingerprint


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights of float64 \(1,\) are not 3 numbers"),
        (["a", "b", "c"], "are not 3 numbers"),
        ([1, -1, 1], "the weight of row 1 is -1.0"),
        ([1, 1, np.nan], "the weight of row 2 is nan"),
        ([0, 0, 0], "all weights are zero"),
    ],
)
def test_bad_weights_are_named(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArraySource(np.eye(3), weights=weights)


def test_finite_vectors_with_an_overflowing_sum_are_accepted() -> None:
    vectors = np.full((3, 2), 3e38, np.float32)
    assert np.array_equal(ArraySource(vectors).take(np.arange(3)), vectors)
