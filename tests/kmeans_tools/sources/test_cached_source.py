"""Cached vectors are read once and have the bits of the shards."""

from pathlib import Path

import numpy as np
import pytest

from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kmeans_tools.seeding.first_centroids import draw_sample
from sctok.kmeans_tools.sources.cached_source import CachedSource, cache_if_fits
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


def assert_same_blocks(one: VectorSource, other: VectorSource, span: tuple[int, int] | None) -> None:
    for mine, theirs in zip(one.blocks(100, span), other.blocks(100, span), strict=True):
        assert np.array_equal(mine.places, theirs.places)
        assert np.array_equal(mine.rows, theirs.rows)
        assert mine.rows.dtype == np.float32


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("span", [None, (31, 200)])
def test_every_pass_gives_the_vectors_of_the_shards(
    shards: list[Path], stack: int, span: tuple[int, int] | None
) -> None:
    source, cached = ShardSource(shards, stack), CachedSource(ShardSource(shards, stack))
    for _ in range(3):
        assert_same_blocks(source, cached, span)
    assert np.array_equal(draw_sample(source, 90, (1,))[0], draw_sample(cached, 90, (1,))[0])
    assert (source.fingerprint, source.rows, source.dim) == (cached.fingerprint, cached.rows, cached.dim)


def test_later_passes_do_not_read_the_disk(shards: list[Path]) -> None:
    source, cached = ShardSource(shards, 2), CachedSource(ShardSource(shards, 2))
    before = draw_sample(cached, 50, (3,))[0]
    assert len(list(cached.blocks(100))) == len(list(source.blocks(100)))
    expected = list(source.blocks(64))
    for path in shards:
        path.unlink()
    assert np.array_equal(draw_sample(cached, 50, (3,))[0], before)
    for block, wanted in zip(cached.blocks(64), expected, strict=True):
        assert np.array_equal(block.rows, wanted.rows)


def test_an_unfinished_pass_is_read_again(shards: list[Path]) -> None:
    cached = CachedSource(ShardSource(shards, 1))
    reader = cached.blocks(100)
    next(reader)
    assert_same_blocks(cached, ShardSource(shards, 1), None)


def test_only_vectors_that_fit_half_the_memory_are_cached(shards: list[Path]) -> None:
    source = ShardSource(shards, 4)
    needed = 2 * source.rows * (2 * source.dim + 1)
    assert isinstance(cache_if_fits(source, needed), CachedSource)
    assert cache_if_fits(source, needed - 1) is source
