"""Running external programs with a time limit and one-line errors."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterable
from os import killpg
from pathlib import Path

from .base import CodecUnavailable

TIMEOUT_SECONDS = 600.0


def find_tool(program: str, install: str) -> str:
    """Return the path of a program. Raises CodecUnavailable, which says what to install."""
    found = shutil.which(program)
    if found is None:
        raise CodecUnavailable(f"{program} is not on the PATH; install {install}")
    return found


def run_tool(command: Iterable[str | Path], data: bytes = b"", timeout: float = TIMEOUT_SECONDS) -> bytes:
    """Run a program with `data` on stdin and return its stdout.

    After `timeout` seconds, the program and its children are killed.

    Raises:
        ValueError: the program fails (with the last lines of its stderr) or takes too long.
        FileNotFoundError, PermissionError: it cannot be started.
    """
    words = [str(word) for word in command]
    program = Path(words[0]).name
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = process.communicate(data, timeout)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{program} was stopped after {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):  # detached children may hold the other ends
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
    if process.returncode:
        reason = "; ".join(line.strip() for line in err.decode("utf-8", "replace").splitlines()[-3:] if line.strip())
        raise ValueError(f"{program} ended with exit code {process.returncode}{': ' + reason if reason else ''}")
    return out
