"""Which device and precision to compute with, and whether this CPU survives low precision."""

import logging
import os
import subprocess
import sys
from functools import cache

import torch

logger = logging.getLogger("sctok.devices")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_SECONDS = 120
_PROBE = """
import sys, torch
dtype = getattr(torch, sys.argv[1])
x = torch.randn(513, 768).to(dtype)
w = torch.randn(2304, 768).to(dtype)
y = torch.nn.functional.linear(x, w)
q = torch.randn(2, 12, 513, 64).to(dtype)
z = torch.nn.functional.scaled_dot_product_attention(q, q, q)
reference = x.float() @ w.float().T
error = (y.float() - reference).abs().max() / reference.abs().max()
sys.exit(0 if error < 0.05 and bool(torch.isfinite(z.float()).all()) else 1)
"""


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device that `name` means; `auto` is the first CUDA device, else the CPU.

    Raises:
        ValueError: `name` is no device, or one that is not there.
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
        raise ValueError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16 for a device; `auto` is fp32 on CPUs and the best half precision on GPUs.

    Low precision that this CPU does not survive falls back to fp32 with a warning.

    Raises:
        ValueError: `name` is none of auto, fp32, bf16, fp16.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is none of {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        best = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        return best if name == "auto" else name
    if name in ("auto", "fp32"):
        return "fp32"
    if cpu_supports(name):
        return name
    logger.warning("%s products do not work on this CPU: computing in fp32 instead", name)
    return "fp32"


def tune_for_training(device: torch.device) -> None:
    """Let a GPU multiply float32 matrices in TF32 and try out its convolutions, for this process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


@cache
def cpu_supports(precision: str) -> bool:
    """Return whether a child process survives matrix products and attention in `precision` on this CPU.

    Virtual machines may advertise AMX and yet kill the process that uses it (SIGILL), which cannot be caught here.
    """
    command = [sys.executable, "-c", _PROBE, str(DTYPES[precision]).removeprefix("torch.")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False
