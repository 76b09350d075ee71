"""The encoder on a GPU, for benchmarks/tokenization.py: its speed, and the tokens that low precision changes."""

import time
from typing import Any

import numpy as np
import torch

from sctok.audio.filterbank import filterbank
from sctok.features.encoder import EncoderConfig
from sctok.features.tokenizer import SemanticQuantizer, SemanticTokenizer
from sctok.formats.stacking import stack_patches

from .tokenization_corpora import Audio, windows_of
from .tokenization_systems import System, load, make_system, seconds_of

PRECISIONS = ("fp32", "bf16", "fp16")
BATCHES = (16, 32, 64)
REPEATS = 5


def encoder_gflop(config: EncoderConfig) -> float:
    """Return the operations of the encoder for one window in GFLOP."""
    positions, width = 513, config.width
    block = 24 * positions * width**2 + 4 * positions**2 * width
    return (config.depth * block + 2 * 512 * 256 * width) / 1e9


def encoder_rates(encoder: str, device: str, *, quick: bool) -> list[dict[str, Any]]:
    """Return windows per second of the encoder, given filterbanks on the device."""
    rows = []
    cases = [("eager", precision, size) for precision in PRECISIONS for size in BATCHES]
    cases += [("graph", precision, size) for precision in PRECISIONS for size in BATCHES]
    cases += [("compile", "bf16", 64)] if quick else [("compile", precision, 64) for precision in PRECISIONS]
    for way, precision, size in cases:
        extractor = load(encoder, device, precision)
        extractor.backend, extractor.batch_size = way, size
        mel = torch.randn(size, 1024, 128, device=device)
        start = time.perf_counter()
        with torch.inference_mode():
            extractor._embed_batch(mel)
            first = time.perf_counter() - start
            seconds = seconds_of(lambda each=extractor, mel=mel: each._embed_batch(mel), REPEATS, device=device)
        rate = size / seconds
        tflops = rate * encoder_gflop(extractor._model.config) / 1e3  # type: ignore[arg-type]
        rows.append(
            {"encoder": encoder, "way": way, "precision": precision, "batch": size, "windows_per_second": rate}
            | {"tflops": tflops, "first_call_seconds": first}
        )
        del extractor
        torch.cuda.empty_cache()
    return rows


def ways_agree(encoder: str, device: str, sound: Audio) -> dict[str, float]:
    """Return the largest difference of features between a graph and eager launches, for each precision."""
    waves, last = windows_of(sound, 16)
    found = {}
    for precision in PRECISIONS:
        graph, eager = load(encoder, device, precision), load(encoder, device, precision)
        eager.backend = "eager"
        found[precision] = float(np.abs(graph.embed(waves, last) - eager.embed(waves, last)).max())
    return found


def token_changes(device: str, sound: Audio, windows: int, rows: int) -> list[dict[str, Any]]:
    """Return the number of tokens of the bundled encoder that differ from fp32 on the device, and on the CPU."""
    system = make_system("mini", device, "fp32", rows, sound)
    waves, last = windows_of(sound, windows)
    quantizer = SemanticQuantizer(system.codebook, torch.device(device))

    def tokens(where: str, precision: str) -> Any:
        patches = torch.from_numpy(load("mini", where, precision).embed(waves, last)).to(device)
        return quantizer.labels(stack_patches(patches, 2)).cpu()

    reference = tokens(device, "fp32")
    count = min(len(waves), 16)
    here = load("mini", "cpu", "fp32").embed(waves[:count], last[:count])
    on_cpu = quantizer.labels(stack_patches(torch.from_numpy(here).to(device), 2)).cpu()
    changed = [{"precision": "fp32 on the CPU", "tokens": on_cpu.numel(), "changed": _share(on_cpu, reference[:count])}]
    for precision in ("bf16", "fp16"):
        found = tokens(device, precision)
        changed.append({"precision": precision, "tokens": found.numel(), "changed": _share(found, reference)})
    return [{**each, "codebook": len(system.codebook.centroids)} for each in changed]


def _share(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found != reference).double().mean())


def stage_rates(system: System, sound: Audio, size: int) -> dict[str, float]:
    """Return milliseconds per batch of windows: copy to the device, filterbank, encoder, search, and total."""
    device = system.device
    waves, last = (torch.from_numpy(each).pin_memory() for each in windows_of(sound, size))
    extractor = system.load()
    tokenizer = SemanticTokenizer(extractor, [system.codebook])
    quantizer = SemanticQuantizer(system.codebook, torch.device(device))
    there, ends = waves.to(device), last.to(device)
    patches = stack_patches(extractor.embed(there, ends), 2)
    step = extractor.batch_size

    def filterbanks() -> None:
        for start in range(0, size, step):
            filterbank(there[start : start + step], ends[start : start + step])

    calls = {
        "copy, pinned": lambda: waves.to(device, non_blocking=True),
        "filterbank": filterbanks,
        "filterbank and encoder": lambda: extractor.embed(there, ends),
        "nearest centroid": lambda: quantizer.labels(patches).cpu(),
        "all, on the device": lambda: list(tokenizer.tokenize(there, ends)),
        "all, from arrays": lambda: list(tokenizer.tokenize(waves.numpy(), last.numpy())),
    }
    return {name: 1e3 * seconds_of(call, REPEATS, device=device) for name, call in calls.items()}
