"""Runs that are killed, share a folder, or run out of disk space end in the bytes of one clean run."""

import contextlib
import json
import multiprocessing
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest
from fakes import FakeExtractor, run_command, tree, write_audio, write_collection

from sctok.audio.loader import LoaderError
from sctok.audio.windows import WINDOW_SAMPLES
from sctok.corpus.runs.events import FileFinished, RunEvent, ShardFinished
from sctok.corpus.runs.run_folder import RunError
from sctok.formats.files import DiskFullError, FormatError

Start = Callable[..., Popen[str]]
COMMANDS = ["extract", "tokenize"]


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp-*")]


def living(group: int) -> list[int]:
    """Return handles of the processes of a group."""
    handles = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[2]) == group:
                handles.append(os.pidfd_open(int(entry.parent.name)))
    return handles


def ended(handle: int) -> None:
    """Wait until a process has ended; fail if it does not."""
    assert select.select([handle], [], [], 60.0)[0], "a process outlives the command"
    os.close(handle)


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments_ends_in_the_same_bytes(
    collection: Path, tmp_path: Path, start_fake: Start, command: str
) -> None:
    run_command(command, [collection], tmp_path / "clean")
    process = start_fake("kill", command, collection, tmp_path / "killed", 12, 5, 0)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(out) >= 4
    assert tree(tmp_path / "killed") == tree(tmp_path / "clean")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_with_decoding_workers_ends_in_the_same_bytes(
    collection: Path, tmp_path: Path, start_fake: Start, command: str
) -> None:
    run_command(command, [collection], tmp_path / "clean")
    process = start_fake("kill", command, collection, tmp_path / "killed", 6, 1, 2)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(out) >= 2
    assert tree(tmp_path / "killed") == tree(tmp_path / "clean")


@pytest.mark.parametrize("command", [pytest.param("extract", marks=pytest.mark.slow), "tokenize"])
def test_two_processes_share_the_shards_and_write_none_twice(
    collection: Path, tmp_path: Path, start_fake: Start, command: str
) -> None:
    run_command(command, [collection], tmp_path / "clean", files_per_shard=1)
    both = [start_fake("run", command, collection, tmp_path / "shared", 0, "cpu") for _ in range(2)]
    done = []
    for process in both:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        events = [json.loads(line) for line in out.splitlines()]
        done.append([event["index"] for event in events if event["event"] == "ShardFinished"])
    assert sorted(done[0] + done[1]) == list(range(13))
    assert tree(tmp_path / "shared") == tree(tmp_path / "clean")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_several_devices_share_the_shards(collection: Path, tmp_path: Path, start_fake: Start, command: str) -> None:
    run_command(command, [collection], tmp_path / "clean", files_per_shard=1)
    process = start_fake("run", command, collection, tmp_path / "shared", 1, "cpu,cpu")
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in out.splitlines()]
    assert sorted(event["index"] for event in events if event["event"] == "ShardFinished") == list(range(13))
    assert sum(event["event"] == "FileFinished" for event in events) == 13
    assert not [event for event in events if event["event"] == "WorkerLost"]
    assert tree(tmp_path / "shared") == tree(tmp_path / "clean")


@pytest.mark.slow
def test_nothing_is_lost_if_a_worker_process_is_killed(collection: Path, tmp_path: Path, start_fake: Start) -> None:
    run_command("extract", [collection], tmp_path / "clean", files_per_shard=1)
    process = start_fake("doomed", collection, tmp_path / "run")
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert '"WorkerLost"' in out
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize(
    ("workers", "devices"), [(0, "cpu"), (2, "cpu"), pytest.param(2, "cpu,cpu", marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_no_process_and_no_temporary(
    collection: Path, tmp_path: Path, start_fake: Start, workers: int, devices: str
) -> None:
    process = start_fake("run", "extract", collection, tmp_path / "run", workers, devices)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "ShardFinished":
            break
    group = living(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == -signal.SIGINT or process.returncode == 130
    assert temporaries(tmp_path / "run") == []
    for member in group:
        ended(member)
    run_command("extract", [collection], tmp_path / "run", files_per_shard=1)
    run_command("extract", [collection], tmp_path / "clean", files_per_shard=1)
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("command", COMMANDS)
def test_finished_shards_stay_if_the_disk_fills_up(
    collection: Path, tmp_path: Path, start_fake: Start, command: str
) -> None:
    run_command(command, [collection], tmp_path / "clean")
    suffix = "h5" if command == "extract" else "tar"
    sizes = sorted(path.stat().st_size for path in (tmp_path / "clean").glob(f"*.{suffix}"))
    process = start_fake("limited", command, collection, tmp_path / "run", (sizes[-1] + sizes[-2]) // 2)
    out, errors = process.communicate()
    assert process.returncode == 3, errors
    assert out.count("\n") == 1
    assert f".{suffix}" in out
    assert "make room" in out
    assert temporaries(tmp_path / "run") == []
    clean = tree(tmp_path / "clean")
    for name, digest in tree(tmp_path / "run").items():
        assert clean[name] == digest, name
    run_command(command, [collection], tmp_path / "run")
    assert tree(tmp_path / "run") == clean


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("lost", ["run.json", "manifest.jsonl"])
def test_deleting_a_damaged_plan_loses_no_work(collection: Path, tmp_path: Path, command: str, lost: str) -> None:
    run_command(command, [collection], tmp_path / "run")
    clean = tree(tmp_path / "run")
    damaged = tmp_path / "run" / lost
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(FormatError, match=rf"{lost}.*delete it and make it again"):
        run_command(command, [collection], tmp_path / "run")
    damaged.unlink()
    assert run_command(command, [collection], tmp_path / "run").seconds_done == 0
    assert tree(tmp_path / "run") == clean


@pytest.mark.parametrize("command", COMMANDS)
def test_other_settings_are_refused_without_the_configuration_too(
    collection: Path, tmp_path: Path, command: str
) -> None:
    run_command(command, [collection], tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunError, match=r"shard-00000\.\w+ but no run\.json"):
        run_command(command, [collection], tmp_path / "run", channel=0)


@pytest.mark.parametrize("command", COMMANDS)
def test_only_failures_are_retried(tmp_path: Path, command: str) -> None:
    audio = write_collection(tmp_path / "audio", 6)
    run_command(command, [audio], tmp_path / "run")
    write_audio(audio / "part 1" / "empty.wav", 3000)
    assert run_command(command, [audio], tmp_path / "run").summary.failed == 3
    events: list[RunEvent] = []
    result = run_command(command, [audio], tmp_path / "run", retry_failed=True, progress=events.append)
    assert sorted(event.key for event in events if isinstance(event, FileFinished)) == [
        "part 0/text",
        "part 1/empty",
        "part 1/truncated",
    ]
    assert (result.summary.files, result.summary.failed) == (7, 2)
    run_command(command, [audio], tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("call", range(6))
def test_a_plain_run_completes_an_interrupted_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, call: int
) -> None:
    audio = write_collection(tmp_path / "audio", 6)
    run_command(command, [audio], tmp_path / "run")
    write_audio(audio / "part 1" / "empty.wav", 3000)
    calls = iter(range(call + 1))

    def die(*_: object) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sctok.formats.files._sync", die)
        with pytest.raises(KeyboardInterrupt):
            run_command(command, [audio], tmp_path / "run", retry_failed=True)
    run_command(command, [audio], tmp_path / "run")
    run_command(command, [audio], tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_the_next_run_retries_unlisted_inputs(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 3000)
    (tmp_path / "list.csv").write_text("path\na.wav\nb.wav\n")
    result = run_command("extract", [tmp_path / "list.csv"], tmp_path / "run")
    assert result.summary.failed == 1
    write_audio(tmp_path / "b.wav", 3000)
    result = run_command("extract", [tmp_path / "list.csv"], tmp_path / "run")
    assert (result.summary.files, result.summary.failed) == (2, 0)


def test_a_file_that_kills_its_decoder_can_be_moved_away(tmp_path: Path) -> None:
    for index, windows in enumerate((20, 1)):
        write_audio(tmp_path / "in" / f"{index}.wav", windows * WINDOW_SAMPLES, seed=index)

    class Killer(FakeExtractor):
        def embed(self, waves: np.ndarray, last: np.ndarray) -> np.ndarray:
            for worker in multiprocessing.active_children():
                worker.kill()
                worker.join()
            return super().embed(waves, last)

    settings = {"workers": 1, "batch_size": 1, "files_per_shard": 1}
    with pytest.raises(LoaderError, match="move the file away") as caught:
        run_command("extract", [tmp_path / "in"], tmp_path / "run", make=lambda device: Killer(), **settings)
    assert "\n" not in str(caught.value)
    Path(caught.value.args[0]).unlink()
    result = run_command("extract", [tmp_path / "in"], tmp_path / "run", **settings)
    assert (result.summary.files, result.summary.failed) == (1, 1)
    assert caught.value.args[0] in (tmp_path / "run" / "failed.jsonl").read_text()


def test_a_disk_too_full_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = write_collection(tmp_path / "audio", 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sctok.formats.files._sync", full)
        with pytest.raises(DiskFullError, match=r"manifest\.jsonl"):
            run_command("extract", [audio], tmp_path / "run")
    run_command("extract", [audio], tmp_path / "run")
    run_command("extract", [audio], tmp_path / "clean")
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")


def test_shards_that_another_process_works_on_are_skipped(tmp_path: Path) -> None:
    audio = write_collection(tmp_path / "audio", 4)
    nested: list[Any] = []

    def progress(event: RunEvent) -> None:
        if isinstance(event, ShardFinished) and not nested:
            nested.append(run_command("extract", [audio], tmp_path / "run", files_per_shard=1, make=other))

    other = lambda device: FakeExtractor()  # noqa: E731
    result = run_command("extract", [audio], tmp_path / "run", files_per_shard=1, progress=progress)
    run_command("extract", [audio], tmp_path / "clean", files_per_shard=1)
    assert nested[0].shards_left > 0
    assert result.shards_left == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["shards"] == 7
    assert tree(tmp_path / "run") == tree(tmp_path / "clean")
