"""Alternatives to sctok: a plain loop over files, and three scripts that dump, cluster and label."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from sctok.audio.filterbank import filterbank
from sctok.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SPAN, token_count, window_count
from sctok.formats.stacking import stack_patches

from .tokenization_systems import System, load

SKLEARN_BATCH = 4096


def plain_loop(system: System, audio: Path, out: Path) -> dict[str, Any]:
    """Tokenize like the published code: one file at a time in one process, float32 distances to all centroids."""
    out.mkdir(parents=True, exist_ok=True)
    model = _model(system)
    centroids = torch.from_numpy(system.codebook.centroids).to(system.device)
    start, seconds = time.perf_counter(), 0.0
    for path in _files(audio):
        samples, vectors = _embed(model, path, system.device)
        labels = torch.cdist(vectors, centroids).argmin(dim=1)[: token_count(samples, 2)]
        np.save(out / f"{path.parent.name}-{path.stem}.npy", labels.cpu().numpy())
        seconds += samples / SAMPLE_RATE
    spent = time.perf_counter() - start
    return {"seconds": spent, "audio_seconds": seconds, "times_real_time": seconds / spent}


def three_scripts(system: System, audio: Path, out: Path, clusters: int) -> dict[str, float]:
    """Return the seconds to dump features as .npy, run MiniBatchKMeans on them, and label them."""
    from sklearn.cluster import MiniBatchKMeans

    out.mkdir(parents=True, exist_ok=True)
    model = _model(system)
    times = [time.perf_counter()]
    for path in _files(audio):
        samples, vectors = _embed(model, path, system.device)
        np.save(out / f"{path.parent.name}-{path.stem}.npy", vectors[: token_count(samples, 2)].cpu().numpy())
    times.append(time.perf_counter())
    dumped = sorted(out.glob("*.npy"))
    vectors = np.concatenate([np.load(path) for path in dumped])
    found = MiniBatchKMeans(clusters, batch_size=SKLEARN_BATCH, random_state=0, n_init=1).fit(vectors)
    times.append(time.perf_counter())
    for path in dumped:
        np.save(path.with_suffix(".tokens"), found.predict(np.load(path)))
    times.append(time.perf_counter())
    dump, cluster, label = np.diff(times)
    return {"dump features": dump, "MiniBatchKMeans": cluster, "label": label, "inertia": float(found.inertia_)}


def sctok_steps(system: System, audio: Path, root: Path, clusters: int) -> dict[str, float]:
    """Return the seconds of the same three steps in sctok: extract, cluster, tokenize."""
    from sctok.cli.app import main

    book = root / "codebooks" / f"speech-{clusters}-r50.safetensors"
    times = [time.perf_counter()]
    for command in (
        ["extract", str(audio), "--domain", "speech", "--encoder", system.encoder],
        ["cluster", "--domain", "speech", "--k", str(clusters), "--token-rate", "50"],
        ["tokenize", str(audio), "--codebook", str(book), "--encoder", system.encoder],
    ):
        if main([*command, "--root", str(root), "--device", system.device]):
            raise RuntimeError(f"sctok {' '.join(command)} failed")
        times.append(time.perf_counter())
    extract, cluster, tokenize = np.diff(times)
    return {"dump features": extract, "MiniBatchKMeans": cluster, "label": tokenize}


def _model(system: System) -> Any:
    return load(system.encoder, system.device, "fp32")._model


def _files(audio: Path) -> list[Path]:
    return sorted(path for path in audio.rglob("*") if path.is_file())


@torch.inference_mode()
def _embed(model: Any, path: Path, device: str) -> tuple[int, torch.Tensor]:
    """Return the samples of a file and its stacked features, one window at a time."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(wave.mean(axis=1), rate, SAMPLE_RATE)
    count = window_count(len(mono))
    padded = np.zeros(count * WINDOW_SAMPLES + WINDOW_SPAN - WINDOW_SAMPLES, np.float32)
    padded[: len(mono)] = mono
    parts = []
    for index in range(count):
        window = torch.from_numpy(padded[index * WINDOW_SAMPLES :][:WINDOW_SPAN])[None].to(device)
        parts.append(model(filterbank(window, torch.tensor([index == count - 1]).to(device))))
    features = stack_patches(torch.cat(parts), 2)
    return len(mono), features.reshape(-1, features.shape[-1])
