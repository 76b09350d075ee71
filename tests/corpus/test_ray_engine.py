"""A local cluster of Ray does the shards, and the loss of a worker in the middle of one loses nothing."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import make_dying, run_command, tree, write_collection

from sctok.corpus.runs import RunError
from sctok.corpus.sharding import LOCAL


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_shard_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    paths = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    audio = write_collection(tmp_path / "audio", 6)
    run_command("tokenize", [audio], tmp_path / "clean", files_per_shard=2)
    events: list[dict[str, Any]] = []
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
    assert [event["event"] for event in events].count("lost") == 1
    assert result.shards_left == 0
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_without_ray_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    audio = write_collection(tmp_path / "audio", 2)
    with pytest.raises(RunError, match=r"sctok\[ray\]"):
        run_command("tokenize", [audio], tmp_path / "run", ray_address=LOCAL)
