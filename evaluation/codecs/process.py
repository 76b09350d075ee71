"""Codecs in a process of their own: one that takes its process with it costs the file that it was at, and no more."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from sctok.evaluation.metrics.processes import PATIENCE, cause_of_death, reason_of

from .base import CodecUnderTest, RoundTrip, Wave
from .registry import open_codec


class CodecProcess:
    """Another process that codecs are opened and used in, replaced when it dies. A context manager."""

    def __init__(self, device: str = "auto") -> None:
        """Start nothing yet. device: of all codecs, see `open_codec`."""
        self._device = device
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def open(self, spec: str) -> CodecUnderTest:
        """Return the codec that `spec` names. Raises as `open_codec`, and ValueError where its process dies."""
        name, settings = self.ask(spec)
        return _Elsewhere(name, settings, spec, self)

    def ask(self, spec: str, **call: Any) -> Any:
        """Return name and settings of a codec or, with the arguments of `roundtrip`, what that returns or raises."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._process is not None
        assert self._connection is not None
        try:
            self._connection.send((spec, call))
            found = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            cause = cause_of_death(self._process.exitcode)
            raise ValueError(cause if call else f"codec {spec!r} cannot be opened: {cause}") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._device), daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, ours

    def close(self) -> None:
        """End the process; codecs that are used afterwards start another one."""
        if self._process is not None and self._connection is not None:
            self._process.terminate()
            self._process.join(PATIENCE)
            if self._process.is_alive():
                self._process.kill()
            self._connection.close()
            self._process = self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class _Elsewhere:
    """A codec that is in another process."""

    name: str
    settings: Mapping[str, Any]
    spec: str
    process: CodecProcess

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`; ValueError where the codec's process dies."""
        coded: RoundTrip = self.process.ask(self.spec, wave=wave, sample_rate=sample_rate, key=key)
        return coded


def _serve(calls: Connection, device: str) -> None:
    """Answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that programs that a codec runs are ended too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # stdout is for results, and what codecs print is none
    opened: dict[str, CodecUnderTest] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            spec, call = calls.recv()
            calls.send(_answer(opened, spec, device, call))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # whatever a codec is at


def _answer(opened: dict[str, CodecUnderTest], spec: str, device: str, call: Mapping[str, Any]) -> Any:
    try:
        if spec not in opened:
            opened[spec] = open_codec(spec, device=device)
        codec = opened[spec]
        return codec.roundtrip(**call) if call else (codec.name, dict(codec.settings))
    except Exception as error:  # whatever it is, the other process raises it
        return _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an error as another process can read it."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # of this process
    except Exception:
        return ValueError(reason_of(error))
    return copy
