"""A local Ray cluster processes the shards, and nothing is lost if a worker is lost."""

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import make_dying, run_command, tree, write_collection

from sctok.corpus.engines.ray import _watch
from sctok.corpus.runs.events import RunEvent, WorkerLost
from sctok.corpus.runs.run_folder import RunError
from sctok.corpus.runs.sharding import LOCAL


@pytest.mark.slow
def test_nothing_is_lost_if_a_worker_is_killed_inside_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    paths = [str(Path(__file__).parents[3] / "src"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    audio = write_collection(tmp_path / "audio", 6)
    run_command("tokenize", [audio], tmp_path / "clean", files_per_shard=2)
    events: list[RunEvent] = []
    result = run_command(
        "tokenize",
        [audio],
        tmp_path / "run",
        files_per_shard=2,
        batch_size=1,
        devices=("cpu", "cpu"),
        ray_address=LOCAL,
        make=partial(make_dying, tmp_path / "died"),
        progress=events.append,
    )
    assert (tmp_path / "died").exists()
    assert sum(isinstance(event, WorkerLost) for event in events) == 1
    assert result.shards_left == 0
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_without_ray_the_error_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    audio = write_collection(tmp_path / "audio", 2)
    with pytest.raises(RunError, match=r"sctok\[ray\]"):
        run_command("tokenize", [audio], tmp_path / "run", ray_address=LOCAL)


class RayError(Exception):
    pass


class WorkerCrashedError(RayError):
    pass


class NodeDiedError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """A Ray whose tasks are their outcomes: an error to raise, or None."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        WorkerCrashedError=WorkerCrashedError,
        NodeDiedError=NodeDiedError,
        OutOfMemoryError=OutOfMemoryError,
        RayTaskError=RayTaskError,
    )

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Exception | None) -> None:
        if task is not None:
            raise task


class NoEvents:
    def get_nowait(self) -> Any:
        raise LookupError


def watch(tasks: list[Exception | None], following: list[Exception | None]) -> list[RunEvent]:
    events: list[RunEvent] = []
    _watch(FakeRay(), LookupError, NoEvents(), tasks, lambda: following.pop(0), events.append)
    assert not following
    return events


@pytest.mark.parametrize("error", [WorkerCrashedError(), NodeDiedError(), OutOfMemoryError()])
def test_a_lost_worker_is_replaced_for_any_reason(error: Exception) -> None:
    (event,) = watch([error, None], [None])
    assert isinstance(event, WorkerLost)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RayTaskError(ValueError("the disk is gone")), ValueError, "the disk is gone"),
        (RayTaskError(RayError("cannot import sctok")), RunError, "a Ray worker failed: cannot import sctok"),
        (RayError("the cluster is gone"), RunError, "Ray failed: the cluster is gone"),
    ],
)
def test_other_errors_end_the_run_with_one_line(error: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        watch([None, error], [])


def test_losing_several_workers_in_a_row_ends_the_run() -> None:
    lost: list[Exception | None] = [WorkerCrashedError()] * 3
    with pytest.raises(RunError, match="4 Ray workers in a row were lost"):
        watch([WorkerCrashedError()], lost)
