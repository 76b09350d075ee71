"""`sctok doctor`: what this machine has and what `auto` selects."""

import platform
import shutil
from importlib import metadata
from typing import Any

from sctok import __version__
from sctok.cli.shared.command import command
from sctok.cli.shared.options import JsonOption
from sctok.cli.shared.terminal import emit

LIBRARIES = (
    "torch", "numba", "triton", "faiss-cpu", "faiss-gpu", "h5py", "soundfile", "soxr", "webdataset", "huggingface-hub",
)  # fmt: skip


@command("sctok doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Report the devices, libraries and number formats of this machine, and what auto selects."""
    findings = {
        "sctok": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_libraries(),
    }
    findings |= _compute()
    findings["ffmpeg"] = shutil.which("ffmpeg") or "not found: only WAV, FLAC, OGG, Opus and MP3 can be read"
    width = max(map(len, findings))
    emit(findings, as_json, "\n".join(f"{key.ljust(width)}  {_text(value)}" for key, value in findings.items()))


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _compute() -> dict[str, Any]:
    import torch

    from sctok.features.checkpoints import load_weights
    from sctok.formats.bundled import BUNDLED_CODEBOOKS
    from sctok.runtime.devices import resolve_device, resolve_precision

    device = resolve_device("auto")
    weights = load_weights("mini")
    return {
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "no device",
        "faiss": _faiss(),
        "cpu threads": torch.get_num_threads(),
        **_low_precision(),
        "cpu nearest centroids": _search(),
        "bundled encoder": f"mini, width {weights.config.width}, {weights.config.depth} blocks, hash {weights.hash}",
        "bundled codebooks": list(BUNDLED_CODEBOOKS),
        "auto device": str(device),
        "auto precision": resolve_precision("auto", device, []),
        "auto k-means backend": "torch",
    }


def _low_precision() -> dict[str, str]:
    """Return whether bf16 and fp16 work on this CPU, for each part that can use them."""
    from sctok.codec.decoding import DECODER
    from sctok.features.extractor import ENCODER
    from sctok.runtime.devices import low_precision_faults
    from sctok.training.codec import CODEC_TRAINING
    from sctok.training.encoder import PRETRAINING

    uses = (ENCODER, DECODER, PRETRAINING, CODEC_TRAINING)
    return {
        f"cpu {precision}, {use.name}": f"does not work here, fp32 is used instead ({fault})" if fault else "works"
        for precision in ("bf16", "fp16")
        for use, fault in low_precision_faults(precision, uses).items()
    }


def _search() -> str:
    from sctok.kernels.cpu.vnni import vnni_bits
    from sctok.runtime.jit import jit_works

    if vnni_bits():
        return f"8-bit products of {vnni_bits()} bits"
    return f"float32 products ({'no VNNI' if jit_works() else 'Numba does not compile: NUMBA_DISABLE_JIT is set'})"


def _faiss() -> str:
    from sctok.kmeans_tools.passes.faiss_backend import faiss_gpus

    try:
        count = faiss_gpus()
    except ImportError as error:
        return str(error)
    return f"works, {count} GPUs" if count else "works on the CPU"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
