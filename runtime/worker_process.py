"""One supervised worker process, connected to this process by two pipes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

_PARENT_CHECK_SECONDS = 1.0
_EXIT_SECONDS = 30.0


class WorkerError(RuntimeError):
    """A worker process ended early. `reason` says how: "was killed by SIGKILL" or "ended with exit code 3"."""

    def __init__(self, name: str, exit_code: int | None) -> None:
        if exit_code is None:
            self.reason = "no longer answers"
        elif exit_code < 0:
            names = {number.value: number.name for number in signal.Signals}
            self.reason = f"was killed by {names.get(-exit_code, f'signal {-exit_code}')}"
        else:
            self.reason = f"ended with exit code {exit_code}"
        hint = ", perhaps because memory ran out" if exit_code == -signal.SIGKILL else ""
        super().__init__(f"the process {name} {self.reason}{hint}")


class WorkerProcess:
    """A spawned process that runs `work(tasks, results, *arguments)` and never outlives its parent.

    `tasks` and `results` are the worker's ends of two pipes: `tasks.recv()` returns what `send` sent, and `receive`
    returns what `results.send()` was given. If either process dies, the other one finds its pipes closed. Ctrl-C
    does not reach the worker: the parent decides. Work that reads tasks must end when `tasks` is closed.

    Args:
        name: name of the process, for errors.
        work: a function that can be imported.
        arguments: its further arguments, which are pickled.
        daemon: whether the worker ends when the parent exits; a daemonic worker cannot start workers itself.
        unwind: on SIGTERM, raise SystemExit in the work so that it cleans up. By default it ends at once.

    Attributes:
        results: the end of the pipe that `receive` reads; `multiprocessing.connection.wait` takes it.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self, name: str, work: Callable[..., None], *arguments: Any, daemon: bool = True, unwind: bool = False
    ) -> None:
        context = multiprocessing.get_context("spawn")
        tasks, self._tasks = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(os.getpid(), unwind, work, tasks, results, arguments), name=name, daemon=daemon
        )
        try:
            with _interrupts_blocked():
                self._process.start()
        except BaseException:
            self._tasks.close()
            self.results.close()
            raise
        finally:
            # Only the worker may hold its ends: otherwise its death would not close them.
            tasks.close()
            results.close()

    @property
    def sentinel(self) -> int:
        """A handle that `multiprocessing.connection.wait` reports as ready once the process has ended."""
        return self._process.sentinel

    def is_alive(self) -> bool:
        """Return whether the process is running."""
        return self._process.is_alive()

    def send(self, task: Any) -> None:
        """Send a task. Raises WorkerError if the process has died."""
        try:
            self._tasks.send(task)
        except OSError:
            raise self.death() from None

    def receive(self) -> Any:
        """Wait for the next result. Raises WorkerError if the process dies first."""
        try:
            return self.results.recv()
        except (EOFError, OSError):
            raise self.death() from None

    def death(self) -> WorkerError:
        """Return the error that says how the process ended, to be called once its pipes are closed."""
        return WorkerError(self._process.name, self.wait(_EXIT_SECONDS))

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the process has ended; return its exit code, or None if it still runs after `seconds`."""
        self._process.join(seconds)
        return self._process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM, and return at once."""
        self._process.terminate()

    def end(self, seconds: float) -> None:
        """Wait until the process has ended, and kill it after `seconds`."""
        if self.wait(seconds) is None:
            self._process.kill()
            self.wait()

    def close(self, seconds: float = 5.0) -> None:
        """Close the pipes, which ends an idle worker; kill a worker that still runs after `seconds`."""
        self._tasks.close()
        self.end(seconds)
        self.results.close()


def received(tasks: Connection) -> Iterator[Any]:
    """Yield the tasks sent to a worker until the parent closes the pipe or dies."""
    with suppress(EOFError, OSError):
        while True:
            yield tasks.recv()


def _run(
    parent: int,
    unwind: bool,
    work: Callable[..., None],
    tasks: Connection,
    results: Connection,
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _exit if unwind else signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    with suppress(BrokenPipeError):  # the parent no longer reads the results
        work(tasks, results, *arguments)


def _exit(*_: object) -> None:
    raise SystemExit(1)


def _end_with_parent(parent: int) -> None:
    process = multiprocessing.parent_process()
    assert process is not None
    # A fork of the parent may keep the parent's handle open, so the parent's process id is compared as well.
    while os.getppid() == parent:
        process.join(_PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_EXIT_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in this thread. A process started meanwhile inherits this and unblocks SIGINT once it is ignored."""
    resource_tracker.ensure_running()  # the first worker would start it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
