"""Reading only the vectors that passes need."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from sctok.kmeans_tools.sources.reading import needed_blocks
from sctok.kmeans_tools.sources.vectors import ArraySource, Block


@dataclass
class Wanted:
    """A pass that needs the vectors at `places`."""

    places: set[int]
    rows: int
    scattered: bool = True

    @property
    def fraction(self) -> float:
        return len(self.places) / self.rows

    def select(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.isin(places, list(self.places))


class Coarse(ArraySource):
    """An array source that claims to read 50 neighbours for every vector."""

    grain = 50


def read(source: ArraySource, *passes: Wanted, block_rows: int = 30) -> list[Block]:
    return list(needed_blocks(source, passes, block_rows))


def source(kind: type[ArraySource] = ArraySource) -> ArraySource:
    return kind(np.arange(2000, dtype=np.float32).reshape(1000, 2), weights=np.arange(1, 1001))


@pytest.mark.parametrize("kind", [ArraySource, Coarse])
def test_vectors_for_two_passes_come_once_in_order_with_their_weights(kind: type[ArraySource]) -> None:
    wanted = Wanted({1, 5, 999}, 1000), Wanted({5, 700}, 1000)
    blocks = read(source(kind), *wanted, block_rows=3)
    places = np.concatenate([block.places for block in blocks])
    assert places.tolist() == [1, 5, 700, 999]
    assert [len(block.rows) for block in blocks] == [3, 1]
    for block in blocks:
        assert block.rows[:, 0].tolist() == (2 * block.places).tolist()
        assert block.weights is not None
        assert block.weights.tolist() == (block.places + 1).tolist()


@pytest.mark.parametrize("count", [600, 1000])
def test_all_vectors_are_read_if_most_are_needed(count: int) -> None:
    blocks = read(source(), Wanted(set(range(count)), 1000))
    assert sum(len(block.places) for block in blocks) == 1000


def test_all_vectors_are_read_if_scattered_ones_of_a_coarse_source_are_needed() -> None:
    few = set(range(0, 1000, 20))
    assert sum(len(block.places) for block in read(source(Coarse), Wanted(few, 1000))) == 1000
    assert sum(len(block.places) for block in read(source(), Wanted(few, 1000))) == 50
    together = Wanted(set(range(100, 150)), 1000, scattered=False)
    assert sum(len(block.places) for block in read(source(Coarse), together)) == 50


def test_nothing_is_read_if_nothing_is_needed() -> None:
    assert read(source(), Wanted(set(), 1000)) == []
