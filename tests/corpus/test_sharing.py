"""Ranks that share shards, timed stages, and the writing thread."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import run_command, tree, write_collection

from sctok.corpus.runs.events import FileFinished, RunEvent, ShardFinished, StagesTimed
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.sharding import Execution
from sctok.corpus.runs.writer import ConsumerThread
from sctok.corpus.verification import verify_folder
from sctok.runtime.stages import DECODING, EMBEDDING, WRITING, find_bottleneck

COMMANDS = ["extract", "tokenize"]


@pytest.mark.parametrize("command", COMMANDS)
def test_ranks_write_each_shard_once_and_equal_a_single_run(tmp_path: Path, command: str) -> None:
    audio = write_collection(tmp_path / "audio", 5)
    done: list[list[int]] = []
    for rank in (2, 0, 1):
        events: list[RunEvent] = []
        settings: dict[str, Any] = {"rank": rank, "world_size": 3, "files_per_shard": 1, "progress": events.append}
        result = run_command(command, [audio], tmp_path / "run", **settings)
        done.append([event.index for event in events if isinstance(event, ShardFinished)])
    assert done == [[2, 5], [0, 3, 6], [1, 4, 7]]
    assert (result.shards_left, result.summary.files) == (0, 5)
    run_command(command, [audio], tmp_path / "clean", files_per_shard=1)
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_a_plain_run_completes_the_shards_of_a_lost_rank(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 4)
    result = run_command("tokenize", [audio], tmp_path / "run", rank=1, world_size=2, files_per_shard=1)
    assert result.shards_left == 4
    assert verify_folder(tmp_path / "run").faults
    assert run_command("tokenize", [audio], tmp_path / "run", files_per_shard=1).shards_left == 0
    assert verify_folder(tmp_path / "run").faults == []


def test_a_rank_retries_its_own_failures(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 3)
    run_command("tokenize", [audio], tmp_path / "run", files_per_shard=1)
    tried: list[str] = []

    def note(event: RunEvent) -> None:
        if isinstance(event, FileFinished):
            tried.append(event.key)

    for rank in (0, 1):
        run_command(
            "tokenize",
            [audio],
            tmp_path / "run",
            files_per_shard=1,
            retry_failed=True,
            rank=rank,
            world_size=2,
            progress=note,
        )
    assert sorted(tried) == ["part 0/text", "part 1/empty", "part 1/truncated"]


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_out_of_range_are_refused(rank: int, world_size: int) -> None:
    with pytest.raises(RunError, match="rank"):
        Execution(rank=rank, world_size=world_size)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_profile_names_the_stages_and_changes_no_byte(tmp_path: Path, command: str) -> None:
    audio = write_collection(tmp_path / "audio", 3)
    events: list[RunEvent] = []
    run_command(command, [audio], tmp_path / "run", profile=True, progress=events.append)
    (stages,) = (event.seconds for event in events if isinstance(event, StagesTimed))
    assert {DECODING, WRITING} <= stages.keys()
    assert min(stages.values()) >= 0
    run_command(command, [audio], tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_the_bottleneck_is_the_slowest_stage_of_the_device() -> None:
    assert find_bottleneck({DECODING: 1.0, EMBEDDING: 2.0, WRITING: 9.0})[0] == EMBEDDING


def hand_on(consume: Callable[[Iterator[int]], None], events: Iterable[int]) -> None:
    with ConsumerThread[int](consume, ahead=1) as writer:
        for event in events:
            writer.put(event)


def test_the_consumer_sees_every_event_in_order() -> None:
    seen: list[int] = []
    hand_on(seen.extend, range(50))
    assert seen == list(range(50))


def test_errors_of_the_consumer_are_raised_by_the_producer() -> None:
    def consume(events: Iterator[int]) -> None:
        next(events)
        raise RunError("full")

    with pytest.raises(RunError, match="full"):
        hand_on(consume, range(100))


def test_the_consumer_cleans_up_if_the_work_is_abandoned() -> None:
    ended: list[str] = []

    def consume(events: Iterator[int]) -> None:
        try:
            for _ in events:
                pass
            ended.append("whole")
        finally:
            ended.append("cleaned up")

    def give_up() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_on(consume, give_up())
    assert ended == ["cleaned up"]
