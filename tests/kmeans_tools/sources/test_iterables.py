"""Iterables of blocks: the same vectors as an array, and iterables that cannot be read twice."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sctok.kmeans_tools.seeding.first_centroids import draw_sample
from sctok.kmeans_tools.sources.iterables import IterableSource
from sctok.kmeans_tools.sources.vectors import ArraySource, Vectors
from sctok.runtime.distributed import Group

VECTORS = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
CUTS = [(0, 1), (1, 1), (1, 700), (700, 763), (763, 1000)]


def pieces() -> Iterator[Vectors]:
    for start, stop in CUTS:
        yield VECTORS[start:stop]


def read(source: Any, *arguments: Any) -> tuple[Any, Vectors]:
    blocks = list(source.blocks(*arguments))
    return np.concatenate([block.places for block in blocks]), np.concatenate([block.rows for block in blocks])


@pytest.mark.parametrize("block_rows", [1, 63, 700, 5000])
def test_blocks_have_the_requested_size(block_rows: int) -> None:
    source = IterableSource(pieces)
    places, rows = read(source, block_rows)
    assert (source.rows, source.dim) == VECTORS.shape
    assert np.array_equal(places, np.arange(1000))
    assert np.array_equal(rows, VECTORS)
    assert max(len(block.rows) for block in source.blocks(block_rows)) <= block_rows


@pytest.mark.parametrize("world", [2, 3])
def test_the_spans_of_all_ranks_cover_all_rows(world: int) -> None:
    parts = [read(IterableSource(pieces), 90, Group(rank, world).span(1000)) for rank in range(world)]
    places = np.concatenate([part[0] for part in parts])
    assert np.array_equal(np.sort(places), np.arange(1000))
    assert np.array_equal(np.concatenate([part[1] for part in parts]), VECTORS[places])


def test_samples_equal_those_of_an_array() -> None:
    source, array = IterableSource(pieces), ArraySource(VECTORS)
    for count in (1, 200, 5000):
        assert np.array_equal(draw_sample(source, count, (1, 2))[0], draw_sample(array, count, (1, 2))[0])
    assert source.take(np.empty(0, np.int64)).shape == (0, 5)


def test_the_fingerprint_depends_only_on_the_values() -> None:
    halves = [VECTORS[:500].astype(np.float64), torch.from_numpy(VECTORS[500:])]
    assert IterableSource(halves).fingerprint == IterableSource(pieces).fingerprint
    assert IterableSource(halves[:1]).fingerprint != IterableSource(pieces).fingerprint


@pytest.mark.parametrize("blocks", [[], [np.empty((0, 4))], lambda: iter(())])
def test_empty_iterables_are_refused(blocks: Any) -> None:
    with pytest.raises(ValueError, match="iterable yields no vectors"):
        IterableSource(blocks)


def test_one_shot_iterators_are_refused() -> None:
    with pytest.raises(ValueError, match="can be read only once; pass a function"):
        IterableSource(pieces())
    once = pieces()
    source = IterableSource(lambda: once)
    with pytest.raises(ValueError, match="yields 0 vectors, and 1000 the first time"):
        read(source, 100)


@pytest.mark.parametrize("later", [999, 1001])
def test_a_different_number_of_vectors_in_a_later_pass_is_refused(later: int) -> None:
    reads = iter([1000, later])

    def changing() -> Iterable[Vectors]:
        return [np.zeros((next(reads), 3), np.float32)]

    source = IterableSource(changing)
    with pytest.raises(ValueError, match=f"yields {later} vectors, and 1000 the first time"):
        read(source, 100)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.eye(3), np.ones((2, 4))], "block 1 has vectors of width 4, others of 3"),
        ([np.eye(3), np.ones(3)], r"block 1 must be numbers of shape \(n, D\), not float64 \(3,\)"),
        ([np.array([["a"]])], "block 0 must be numbers"),
        ([np.ones((2, 0))], "block 0 must be numbers"),
        ([np.eye(3), np.full((2, 3), np.nan)], "vector 3 holds NaN or infinity"),
        ([np.eye(2), np.array([[1, 2], [1, 1e300]])], "vector 3 holds NaN or infinity"),
    ],
)
def test_bad_blocks_are_named(blocks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IterableSource(blocks)


def test_read_only_blocks_are_read_without_a_warning() -> None:
    block = np.ones((3, 2), np.float32)
    block.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert IterableSource([block]).rows == 3


def test_an_error_in_the_iterable_is_raised() -> None:
    reads = iter([False, True])

    def failing() -> Iterator[Vectors]:
        fails = next(reads)
        yield np.eye(3, dtype=np.float32)
        if fails:
            raise OSError("the disk is gone")

    source = IterableSource(failing)
    with pytest.raises(OSError, match="the disk is gone"):
        read(source, 2)
