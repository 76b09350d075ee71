"""Codecs in a worker process: a codec that kills its process loses only the file that it was coding."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

from sctok.evaluation.metrics.processes import reason_of
from sctok.runtime.worker_process import WorkerError, WorkerProcess, received

from .base import CodecUnderTest, NamedCodec, RoundTrip, Wave
from .registry import open_codec


class CodecProcess:
    """A worker process that opens and runs codecs, and is replaced when it dies. A context manager."""

    def __init__(self, device: str = "auto") -> None:
        """Start nothing yet. device: for all codecs, see `open_codec`."""
        self._device = device
        self._worker: WorkerProcess | None = None

    def open(self, spec: str) -> CodecUnderTest:
        """Return the codec that `spec` names. Raises as `open_codec`, and ValueError if the process dies."""
        name, settings = self.ask(spec)
        return _RemoteCodec(name, settings, spec, self)

    def ask(self, spec: str, **call: Any) -> Any:
        """Return name and settings of a codec; with arguments, return or raise what its `roundtrip` does."""
        if self._worker is None or not self._worker.is_alive():
            self.close()
            self._worker = WorkerProcess("sctok-codec", _serve, self._device, unwind=True)
        try:
            self._worker.send((spec, call))
            answer = self._worker.receive()
        except WorkerError as death:
            cause = f"its process {death.reason}"
            raise ValueError(cause if call else f"codec {spec!r} cannot be opened: {cause}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process; codecs that are used later start another one."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class _RemoteCodec(NamedCodec):
    """A codec in the worker process."""

    spec: str
    process: CodecProcess

    def roundtrip(self, wave: Wave, sample_rate: int, *, key: str = "") -> RoundTrip:
        """See `CodecUnderTest`. Raises ValueError if the process dies."""
        coded: RoundTrip = self.process.ask(self.spec, wave=wave, sample_rate=sample_rate, key=key)
        return coded


def _serve(calls: Connection, answers: Connection, device: str) -> None:
    os.dup2(2, 1)  # stdout is for results; what codecs print goes to stderr
    opened: dict[str, CodecUnderTest] = {}
    for spec, call in received(calls):
        answers.send(_answer(opened, spec, device, call))


def _answer(opened: dict[str, CodecUnderTest], spec: str, device: str, call: Mapping[str, Any]) -> Any:
    try:
        if spec not in opened:
            opened[spec] = open_codec(spec, device=device)
        codec = opened[spec]
        return codec.roundtrip(**call) if call else (codec.name, dict(codec.settings))
    except Exception as error:  # the other process raises it
        return _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can unpickle."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # safe: the bytes are from this process
    except Exception:
        return ValueError(reason_of(error))
    return copy
