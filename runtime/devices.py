"""Select the device and the precision, and test which operators this CPU computes in low precision."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from .low_precision import DTYPES as DTYPES
from .low_precision import FAILED, PASSED, STARTED

logger = logging.getLogger("sctok.devices")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PROBE_SECONDS = 120
_PROBE = "from sctok.runtime.low_precision import main; main()"


@dataclass(frozen=True)
class Use:
    """A computation that can run in low precision.

    name: its name in messages. steps: the `module:function` that returns the steps to test; see `low_precision.Step`.
    """

    name: str
    steps: str


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called `name`. "auto" is the first CUDA device, or the CPU without one.

    Raises:
        ValueError: The name is not a device name, or the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} does not exist: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def resolve_precision(name: str, device: torch.device, uses: Sequence[Use]) -> str:
    """Return fp32, bf16 or fp16 for a device. "auto" is fp32 on CPUs and the best half precision on GPUs.

    Args:
        name: auto, fp32, bf16 or fp16.
        device: The device that computes.
        uses: The computations. If this CPU fails at one of them in low precision, the result is fp32, with a warning
            that names the operator.

    Raises:
        ValueError: The name is not auto, fp32, bf16 or fp16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown: use {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        best = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        return best if name == "auto" else name
    if name in ("auto", "fp32"):
        return "fp32"
    for use, fault in low_precision_faults(name, uses).items():
        if fault is not None:
            logger.warning("%s in %s does not work on this CPU (%s): computing in fp32 instead", use.name, name, fault)
            return "fp32"
    return name


def require_precision(name: str, device: torch.device, use: Use) -> None:
    """Raise ValueError if this CPU fails at a use in fp32, bf16 or fp16. The message names the operator."""
    fault = None if device.type == "cuda" or name == "fp32" else low_precision_faults(name, [use])[use]
    if fault is not None:
        raise ValueError(f"{use.name} in {name} does not work on this CPU ({fault}): use fp32")


def tune_for_training(device: torch.device) -> None:
    """Let a GPU use TF32 for float32 matrices and benchmark its convolution algorithms, in this process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


_faults: dict[tuple[str, Use], str | None] = {}  # known in this process, by precision and use


def low_precision_faults(precision: str, uses: Sequence[Use]) -> dict[Use, str | None]:
    """Return, for each use, the operator that fails on this CPU in bf16 or fp16 and the reason; None if all work.

    Child processes run the operators. A virtual machine may advertise AMX and still kill the process that uses it
    (SIGILL), and this process could not catch that. Results are cached until this process ends.
    """
    pending = [use for use in uses if (precision, use) not in _faults]
    while pending:
        found = _run_probes(precision, pending)
        _faults.update({(precision, use): fault for use, fault in found.items()})
        pending = [use for use in pending if use not in found]
    return {use: _faults[precision, use] for use in uses}


def _run_probes(precision: str, uses: Sequence[Use]) -> dict[Use, str | None]:
    """Test uses in a child process, and return the faults of those it finished; the first use is always among them."""
    command = [sys.executable, "-c", _PROBE, precision, *(use.steps for use in uses)]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS)
        output, ending = done.stdout, _ending(done)
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b""
        output = partial if isinstance(partial, str) else partial.decode(errors="replace")
        ending = f"no result after {PROBE_SECONDS} s"
    events = [line.split("\t") for line in output.splitlines() if line.count("\t") == 2]
    named, operators, found = {use.steps: use for use in uses}, dict.fromkeys(uses, "the start of the test"), {}
    for event, steps, text in events:
        use = named[steps]
        if event == STARTED:
            operators[use] = text
        elif event in (PASSED, FAILED):
            found[use] = None if event == PASSED else f"{operators[use]}: {text}"
    first = next((use for use in uses if use not in found), None)
    if first is not None:
        found[first] = f"{operators[first]}: {ending}"
    return found


def _ending(done: "subprocess.CompletedProcess[str]") -> str:
    """Return why a child process ended before it tested all uses."""
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    return done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"


class _Shortcuts:
    """The PyTorch settings that allow TF32 and bf16 in float32 products, disabled while any thread needs 24 bits."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, [""]
        modules: Any = torch.backends
        backends = [modules.cuda.matmul, modules.mkldnn.matmul]
        self._backends = backends if all(hasattr(backend, "fp32_precision") for backend in backends) else []

    def disable(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            if not self._backends:  # before PyTorch 2.9
                self._before = [torch.get_float32_matmul_precision()]
                torch.set_float32_matmul_precision("highest")
                return
            self._before = [str(backend.fp32_precision) for backend in self._backends]
            for backend in self._backends:
                backend.fp32_precision = "ieee"

    def restore(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if not self._backends:
                torch.set_float32_matmul_precision(self._before[0])
            for backend, setting in zip(self._backends, self._before, strict=False):
                backend.fp32_precision = setting


_SHORTCUTS = _Shortcuts()


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32, bf16 and autocast out of float32 products, for error bounds that assume 24 bits.

    Several threads may use it at once. The last one restores the settings that the first one found.
    """
    _SHORTCUTS.disable()
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _SHORTCUTS.restore()
