"""Several ranks exchange values, share the rows, and do not wait for a dead rank."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sctok.kmeans_tools.sources.shared_source import SharedSource, shared
from sctok.kmeans_tools.sources.vectors import ArraySource
from sctok.runtime.distributed import ALONE, Group, join_group

from .ranks import run_ranks

_EXCHANGE = """
import json
import numpy, torch
sums, counts = torch.full((2, 3), 0.5 + group.rank, dtype=torch.float64), torch.tensor([group.rank, 1])
group.sum_(sums, counts)
sizes = [len(part) for part in group.gather(numpy.zeros(group.rank * 5))]
value = group.broadcast({"from": group.rank} if group.leads else None)
print(json.dumps([sums.tolist(), counts.tolist(), sizes, value]))
"""

_SHARE = """
import json
import numpy
from sctok.kmeans_tools.sources.shared_source import SharedSource
from sctok.kmeans_tools.sources.vectors import ArraySource
source = SharedSource(ArraySource(numpy.arange(1000)[:, None]), group)
ordered = [block.rows[:, 0].tolist() for block in source.blocks(90)]
shuffled = [block.rows[:, 0].tolist() for block in source.blocks(90, 7)]
print(json.dumps([ordered, shuffled, source.sample(100, (1, 2))[:, 0].tolist()]))
"""

_DIE = """
import os, time
group.sum_(__import__("torch").zeros(1))
if group.rank == 1:
    os._exit(9)
group.gather(1)
"""

_STALL = """
import time
given_up = Path(sys.argv[1])
while group.rank == 1 and not given_up.exists():
    time.sleep(0.05)
try:
    group.gather(1)
finally:
    given_up.touch()
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Return, for each of two ranks, the values that it exchanged and the rows that it read."""
    ended = run_ranks(2, _EXCHANGE + _SHARE, tmp_path_factory.mktemp("ranks"))
    assert [rank.code for rank in ended] == [0, 0], ended
    return [[json.loads(line) for line in rank.out.splitlines()] for rank in ended]


def test_ranks_exchange_values(outputs: list[list[Any]]) -> None:
    expected = [[[2.0] * 3] * 2, [1, 2], [0, 5], {"from": 0}]
    assert [exchanged for exchanged, _ in outputs] == [expected] * 2


def test_each_rank_reads_its_part_and_samples_are_those_of_a_single_process(outputs: list[list[Any]]) -> None:
    (_, (ordered, shuffled, sample)), (_, (ordered_1, shuffled_1, sample_1)) = outputs
    source = ArraySource(np.arange(1000)[:, None])
    assert [value for block in ordered + ordered_1 for value in block] == list(range(1000))
    assert len(ordered) == len(ordered_1)
    for first, second, block in zip(shuffled, shuffled_1, source.blocks(90, 7), strict=True):
        assert sorted(first + second) == sorted(block.rows[:, 0].tolist())
    assert sample == sample_1 == source.sample(100, (1, 2))[:, 0].tolist()


def test_a_dead_rank_is_an_error_for_the_others(tmp_path: Path) -> None:
    alive, dead = run_ranks(2, _DIE, tmp_path, wait=60)
    assert dead.code == 9
    assert alive.code == 1
    assert "ConnectionError: another rank of this run stopped" in alive.err


@pytest.mark.slow
def test_a_rank_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    waiting, _ = run_ranks(2, _STALL, tmp_path, tmp_path / "given up", timeout=5, wait=60)
    assert waiting.code == 1
    assert "did not answer in time" in waiting.err


def test_a_single_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(3)
    ALONE.sum_(values)
    assert values.tolist() == [0, 1, 2]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast(5) == 5
    source = ArraySource(np.eye(3))
    assert shared(source, ALONE) is source
    assert ALONE.local_device(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "4")  # set by another launcher, without an address
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with join_group() as group:
        assert group == ALONE


def test_parts_of_parts() -> None:
    source = ArraySource(np.arange(997)[:, None])
    groups = [Group(rank, 3) for rank in range(3)]
    places = [
        block.places
        for group in groups
        for part in range(2)
        for block in SharedSource(source, group).blocks(50, None, (part, 2))
    ]
    assert np.array_equal(np.sort(np.concatenate(places)), np.arange(997))
