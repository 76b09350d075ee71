"""Encoders, codebooks, whole runs and the bare model, for benchmarks/tokenization.py."""

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sctok.codec.storage.codec_folder import load_codebooks
from sctok.corpus.runs.events import RunEvent, RunPlanned, StagesTimed, WindowsEncoded
from sctok.corpus.runs.sharding import Execution
from sctok.corpus.tokenization import tokenize_corpus
from sctok.features.checkpoints import EncoderWeights, load_weights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.features.extractor import CUT, KEEP, FeatureExtractor
from sctok.features.tokenizer import SemanticTokenizer
from sctok.formats.codebooks import Codebook, CodebookInfo
from sctok.formats.stacking import stack_patches

from .tokenization_corpora import Audio, windows_of

STAND_IN = "base"  # an encoder of the published size with random weights, so that nothing is downloaded
SIZES = {STAND_IN: EncoderConfig(), "tiny": EncoderConfig(32, 3, 2)}
MODEL_STAGES = ("encoder", "nearest centroid")


@dataclass(frozen=True)
class System:
    """An encoder by name, its padding, and a codebook for it."""

    encoder: str
    device: str
    precision: str
    codebook: Codebook
    padding: str = KEEP

    def load(self, device: str | None = None) -> FeatureExtractor:
        """Load the encoder onto the device."""
        return load(self.encoder, device or self.device, self.precision, self.padding)

    def load_tokenizer(self, device: str | None = None) -> SemanticTokenizer:
        """Load the encoder onto the device and combine it with the codebook."""
        return SemanticTokenizer(self.load(device), [self.codebook])

    def without_padding(self) -> "System":
        """Return the system that cuts padding, with the same centroids, which is enough for timing."""
        loaded = load(self.encoder, "cpu", "fp32", CUT)
        info = replace(self.codebook.metadata, encoder_hash=loaded.hash)
        return replace(self, codebook=replace(self.codebook, metadata=info), padding=CUT)


def load(encoder: str, device: str, precision: str, padding: str = KEEP) -> FeatureExtractor:
    """Load an encoder: mini, a path, or random weights of size base or tiny."""
    return FeatureExtractor(_weights(encoder), torch.device(device), precision, padding)


def _weights(encoder: str) -> EncoderWeights:
    if encoder not in SIZES:
        return load_weights(encoder)
    torch.manual_seed(0)
    tensors = dict(AudioMAE(SIZES[encoder]).state_dict())
    tensors = {name: value if value.any() else 0.02 * torch.randn(value.shape) for name, value in tensors.items()}
    return EncoderWeights(f"stand-in {encoder}", SIZES[encoder], tensors, {})


def make_system(encoder: str, device: str, precision: str, rows: int, sound: Audio) -> System:
    """Return an encoder with the codebook of the bundled codec or `rows` of its own features, at 50 tokens/s."""
    weights = _weights(encoder)
    for book in load_codebooks(files("sctok.weights") / "codec-mini") if rows == 4096 else ():  # type: ignore[arg-type]
        if book.metadata.encoder_hash == weights.hash:
            return System(encoder, device, precision, book)
    extractor = FeatureExtractor(weights, torch.device(device), precision)
    vectors = stack_patches(extractor.embed(*windows_of(sound, -(-rows // 256) + 1)), 2).reshape(
        -1, 2 * weights.config.width
    )
    chosen = np.random.default_rng(0).permutation(len(vectors))[:rows]
    info = CodebookInfo("merged", (), 2, weights.name, weights.hash, n_vectors=rows)
    return System(encoder, device, precision, Codebook(vectors[chosen].copy(), np.ones(rows, np.int64), info))


def run_whole(system: System, audio: Path, out: Path, *, workers: int, batch: int, devices: int = 1) -> dict[str, Any]:
    """Tokenize a folder like `sctok tokenize` and return seconds, CPU seconds, and the seconds of each stage.

    The clock starts after the inputs are listed and the encoder is loaded.
    """
    shutil.rmtree(out, ignore_errors=True)
    seen: dict[str, Any] = {"windows": 0, "stages": {}}
    execution = Execution((system.device,) * devices, batch, workers, profile=True)

    def watch(event: RunEvent) -> None:
        match event:
            case RunPlanned():
                seen["begun"] = time.perf_counter(), cpu_seconds()
            case WindowsEncoded(count):
                seen["windows"] += count
            case StagesTimed(times):
                seen["stages"] = {name: seen["stages"].get(name, 0.0) + value for name, value in times.items()}

    result = tokenize_corpus([audio], [out], system.load_tokenizer, None, execution, watch)[0]
    wall, cpu = seen.pop("begun")
    seconds = time.perf_counter() - wall
    return {
        **seen,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "audio_seconds": result.seconds_done,
        "times_real_time": result.seconds_done / seconds,
    }


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def bare_job(system: System) -> Callable[[Audio, Any], object]:
    """Return a function that turns a batch of windows in memory into tokens in memory."""
    return system.load_tokenizer().tokenize


def seconds_of(call: Callable[[], object], repeats: int, *, device: str) -> float:
    """Return the smallest time of a call in seconds. On a GPU, a call ends when the device is idle."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    call()
    best = float("inf")
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - start)
    return best
