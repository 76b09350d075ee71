"""A supervised worker process: its answers, its death, and that it never outlives its parent."""

import gc
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

from sctok.runtime.worker_process import WorkerError, WorkerProcess, received


def echo(tasks: Connection, results: Connection, prefix: str) -> None:
    for task in received(tasks):
        results.send(prefix + task)


def obey(tasks: Connection, results: Connection) -> None:
    """Do what each task says: exit with a code, or be killed by a signal."""
    for kind, number in received(tasks):
        if kind == "exit":
            os._exit(number)
        os.kill(os.getpid(), number)


def fail(tasks: Connection, results: Connection) -> None:
    raise KeyError("nothing there")


def wait_for_sigterm(tasks: Connection, results: Connection, path: Path, ignore: bool) -> None:
    if ignore:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        results.send(os.getpid())
        threading.Event().wait()
    finally:
        path.write_text("cleaned up")


def nest(tasks: Connection, results: Connection) -> None:
    inner = WorkerProcess("inner", echo, "inner ")
    for task in received(tasks):
        inner.send(task)
        results.send(inner.receive())
    inner.close()


def flood(tasks: Connection, results: Connection) -> None:
    while True:
        results.send(bytes(1_000_000))


def test_tasks_are_answered_in_order() -> None:
    worker = WorkerProcess("echo", echo, "got ")
    try:
        worker.send("one")
        worker.send("two")
        assert wait([worker.results]) == [worker.results]
        assert [worker.receive(), worker.receive()] == ["got one", "got two"]
        assert worker.is_alive()
    finally:
        worker.close()
    assert not worker.is_alive()
    assert worker.wait() == 0


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (("exit", 3), "ended with exit code 3"),
        (("exit", 0), "ended with exit code 0"),
        (("kill", signal.SIGSEGV), "was killed by SIGSEGV"),
        (("kill", signal.SIGKILL), "was killed by SIGKILL"),
        (("kill", 40), "was killed by signal 40"),  # a real-time signal, which has no name
    ],
)
def test_a_death_is_reported_with_its_cause(task: tuple[str, int], reason: str) -> None:
    worker = WorkerProcess("obey", obey)
    try:
        worker.send(task)
        with pytest.raises(WorkerError) as caught:
            worker.receive()
        assert caught.value.reason == reason
        assert f"the process obey {reason}" in str(caught.value)
        assert ("memory" in str(caught.value)) == ("SIGKILL" in reason)
        assert wait([worker.sentinel], 60) == [worker.sentinel]
        with pytest.raises(WorkerError, match=reason):
            worker.send(task)
    finally:
        worker.close()


def test_work_that_raises_ends_with_exit_code_1(capfd: pytest.CaptureFixture[str]) -> None:
    worker = WorkerProcess("fail", fail)
    try:
        with pytest.raises(WorkerError, match="ended with exit code 1"):
            worker.receive()
    finally:
        worker.close()
    assert "nothing there" in capfd.readouterr().err


@pytest.mark.parametrize("unwind", [True, False])
def test_a_terminated_worker_cleans_up_if_asked_to_unwind(tmp_path: Path, unwind: bool) -> None:
    worker = WorkerProcess("waiting", wait_for_sigterm, tmp_path / "note", False, unwind=unwind)
    worker.receive()
    worker.terminate()
    worker.close(60)
    assert (tmp_path / "note").exists() == unwind
    assert worker.wait() == (1 if unwind else -signal.SIGTERM)


def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    worker = WorkerProcess("stubborn", wait_for_sigterm, tmp_path / "note", True)
    worker.receive()
    worker.terminate()
    worker.close(0.1)
    assert worker.wait() == -signal.SIGKILL


def test_a_worker_that_writes_more_than_is_read_can_be_ended() -> None:
    worker = WorkerProcess("flood", flood)
    worker.receive()
    worker.terminate()
    worker.close()
    assert worker.wait() == -signal.SIGTERM


def test_a_worker_that_is_not_daemonic_can_start_workers() -> None:
    worker = WorkerProcess("nest", nest, daemon=False)
    try:
        worker.send("task")
        assert worker.receive() == "inner task"
    finally:
        worker.close(60)
    assert worker.wait() == 0


def test_a_process_that_cannot_be_started_leaves_no_open_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    gc.collect()  # handles of processes of other tests
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="no more processes"):
        WorkerProcess("echo", echo, "")
    assert set(Path("/proc/self/fd").iterdir()) <= before


PARENT = """
import os, signal, sys, time
from pathlib import Path
from tests.runtime.test_worker_process import wait_for_sigterm
from sctok.runtime.worker_process import WorkerProcess

if __name__ == "__main__":
    worker = WorkerProcess("waiting", wait_for_sigterm, Path(sys.argv[1]), False, unwind=True)
    if len(sys.argv) > 2 and not os.fork():  # a copy that keeps the handles of the parent open
        time.sleep(60)
    print(worker.receive(), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("fork", [[], ["fork"]])
def test_a_worker_cleans_up_and_ends_when_its_parent_is_killed(tmp_path: Path, fork: list[str]) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(tmp_path / "note"), *fork]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        worker = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([worker], [], [], 60.0)[0], "the worker outlives its parent"
        finally:
            os.close(worker)
            os.killpg(parent.pid, signal.SIGKILL)
    assert (tmp_path / "note").read_text() == "cleaned up"


def test_interrupts_do_not_reach_a_worker() -> None:
    worker = WorkerProcess("echo", echo, "")
    try:
        (process,) = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)  # while it starts
        worker.send("still here")
        assert worker.receive() == "still here"
        os.kill(process.pid, signal.SIGINT)
        worker.send("still here")
        assert worker.receive() == "still here"
    finally:
        worker.close()
