"""Vectors kept in memory: the bits that the shards give, read once."""

from pathlib import Path

import numpy as np
import pytest

from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kmeans_tools.sources.cached_source import ResidentSource, keep_resident
from sctok.kmeans_tools.sources.vectors import ShardSource, VectorSource


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for seed, path in enumerate(paths):
        generator = np.random.default_rng(seed)
        with FeatureShardWriter(path, width=6, provenance={"encoder": "mini", "encoder_hash": "m" * 16}) as writer:
            for clip in range(3):
                writer.add_clip(f"clip-{clip}", generator.normal(size=(8 * 41, 6)), 41 * 2560)
    return paths


def assert_same_blocks(one: VectorSource, other: VectorSource, seed: int | None, part: tuple[int, int]) -> None:
    for mine, theirs in zip(one.blocks(100, seed, part), other.blocks(100, seed, part), strict=True):
        assert np.array_equal(mine.places, theirs.places)
        assert np.array_equal(mine.rows, theirs.rows)
        assert mine.rows.dtype == np.float32


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_every_pass_gives_what_the_shards_give(shards: list[Path], stack: int, part: tuple[int, int]) -> None:
    source, resident = ShardSource(shards, stack), ResidentSource(ShardSource(shards, stack))
    for seed in (None, 5, None, 6, 5):
        assert_same_blocks(source, resident, seed, part)
    assert np.array_equal(source.sample(90, (1,)), resident.sample(90, (1,)))
    assert (source.fingerprint, source.rows, source.dim) == (resident.fingerprint, resident.rows, resident.dim)


def test_later_passes_do_not_read_the_disk(shards: list[Path]) -> None:
    source, resident = ShardSource(shards, 2), ResidentSource(ShardSource(shards, 2))
    before = resident.sample(50, (3,))
    assert len(list(resident.blocks(100))) == len(list(source.blocks(100)))
    expected = list(source.blocks(64, 9))
    for path in shards:
        path.unlink()
    assert np.array_equal(resident.sample(50, (3,)), before)
    for block, wanted in zip(resident.blocks(64, 9), expected, strict=True):
        assert np.array_equal(block.rows, wanted.rows)


def test_a_pass_that_was_not_finished_is_read_again(shards: list[Path]) -> None:
    resident = ResidentSource(ShardSource(shards, 1))
    reader = resident.blocks(100)
    next(reader)
    assert_same_blocks(resident, ShardSource(shards, 1), None, (0, 1))


def test_only_what_fits_half_the_memory_is_kept(shards: list[Path]) -> None:
    source = ShardSource(shards, 4)
    needed = 2 * source.rows * (2 * source.dim + 1)
    assert isinstance(keep_resident(source, needed), ResidentSource)
    assert keep_resident(source, needed - 1) is source
