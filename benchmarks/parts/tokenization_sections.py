"""The sections of benchmarks/tokenization.py, in the order in which they are printed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sctok.features.extractor import KEEP, PADDINGS

from .tokenization_corpora import Audio, windows_of, write_collection
from .tokenization_device import encoder_rates, stage_rates, token_changes, ways_agree
from .tokenization_peers import plain_loop, sctok_steps, three_scripts
from .tokenization_systems import MODEL_STAGES, System, bare_job, cpu_seconds, run_whole

LONG, SHORT = 60.0, 1.0  # lengths of files in seconds
_MEMORY = Path(__file__).parents[1] / "tokenization_memory.py"


@dataclass(frozen=True)
class Setting:
    """Settings that the sections share."""

    system: System
    sound: Audio
    folder: Path
    workers: int
    batch: int
    seconds: float
    short_files: int
    memory_files: tuple[int, ...]
    clusters: int
    repeats: int
    quick: bool

    def collection(self, files: int, seconds: float, kind: str = "wav") -> Path:
        """Return the folder of a collection, written at the first call."""
        path = self.folder / f"{kind}-{files}-{seconds:g}"
        if not path.exists():
            write_collection(path, self.sound, files, seconds, kind)
        return path

    def long(self, kind: str = "wav") -> Path:
        """Return the collection of long files, which most sections read."""
        return self.collection(max(1, round(self.seconds / LONG)), LONG, kind)

    def run(self, audio: Path, workers: int | None = None, devices: int = 1) -> dict[str, Any]:
        """Tokenize, and return the best of the repeats."""
        many = self.workers if workers is None else workers
        settings: dict[str, Any] = {"workers": many, "batch": self.batch, "devices": devices}
        runs = [run_whole(self.system, audio, self.folder / "tokens", **settings) for _ in range(self.repeats)]
        return min(runs, key=lambda each: each["seconds"])


def stages(setting: Setting) -> list[dict[str, Any]]:
    """Measure the time of each stage for two kinds of files, decoded in the same process and in another one."""
    rows = []
    for kind in ("wav", "flac"):
        for workers in (0, setting.workers):
            found = setting.run(setting.long(kind), workers)
            model = sum(found["stages"].get(name, 0.0) for name in MODEL_STAGES)
            rows.append({"kind": kind, "workers": workers, **found, "overhead": 1 - model / found["seconds"]})
    return rows


def bare(setting: Setting) -> dict[str, Any]:
    """Compare the model on a batch in memory with a whole run of as many windows, in turn; the best of each."""
    waves, last = windows_of(setting.sound, setting.batch)
    job = bare_job(setting.system)
    on_gpu = setting.system.device.startswith("cuda")
    batch: Any = (
        [torch.from_numpy(each).to(setting.system.device) for each in (waves, last)] if on_gpu else (waves, last)
    )
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "whole": []}  # seconds and CPU seconds of a window
    for _ in range(setting.repeats):
        whole = replace(setting, repeats=1).run(setting.long())
        found["whole"].append((whole["seconds"] / whole["windows"], whole["cpu_seconds"] / whole["windows"]))
        calls = -(-whole["windows"] // setting.batch)
        start, cpu = time.perf_counter(), cpu_seconds()
        for _ in range(calls):
            job(*batch)
        count = calls * setting.batch
        found["bare"].append(((time.perf_counter() - start) / count, (cpu_seconds() - cpu) / count))
    wall, cpu_time = ({name: min(each[i] for each in values) for name, values in found.items()} for i in (0, 1))
    return {"seconds": wall, "cpu_seconds": cpu_time}


def workers(setting: Setting) -> list[dict[str, Any]]:
    """Measure the speed by the number of decoding processes, and with two encoding processes."""
    most = max(2, min(16, os.cpu_count() or 2))
    counts = sorted({0, 1, 2, most // 2, most})
    rows = [{"workers": count, "devices": 1, **setting.run(setting.long("flac"), count)} for count in counts]
    if setting.system.device == "cpu":
        rows.append({"workers": 2, "devices": 2, **setting.run(setting.long("flac"), 2, devices=2)})
    return rows


def lengths(setting: Setting) -> list[dict[str, Any]]:
    """Compare one-second files with the same sound in files of a minute, with and without padding, in turn.

    With padding, one-second files take ten times as long, so only a tenth of them is read.
    """
    cases: dict[tuple[str, float], dict[str, Any]] = {}
    for _ in range(setting.repeats):
        for system in (setting.system, setting.system.without_padding()):
            for seconds in (LONG, SHORT):
                count = setting.short_files // (10 if system.padding == KEEP else 1)
                files = max(1, round(count * SHORT / seconds))
                found = replace(setting, system=system, repeats=1).run(setting.collection(files, seconds))
                about = {"padding": system.padding, "file_seconds": seconds, "files": files}
                best = cases.setdefault((system.padding, seconds), {**about, **found})
                if found["seconds"] < best["seconds"]:
                    best.update(found)
    for found in cases.values():
        found["model_seconds"] = sum(found["stages"].get(name, 0.0) for name in MODEL_STAGES)
        found["rest_cpu_seconds"] = found["cpu_seconds"] - found["model_seconds"] * torch.get_num_threads()
    return list(cases.values())


def memory(setting: Setting) -> list[dict[str, Any]]:
    """Measure the peak memory of the main process by the number of one-second files, in separate processes."""
    rows = []
    for padding in PADDINGS:
        for files in setting.memory_files:
            audio = setting.collection(files, SHORT)
            command = [sys.executable, _MEMORY, audio, "--device", setting.system.device, "--padding", padding]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"padding": padding, "files": files, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def loop(setting: Setting) -> list[dict[str, Any]]:
    """Compare a plain loop over files, like the published code, with sctok."""
    rows = []
    for kind in ("wav", "flac"):
        plain = plain_loop(setting.system, setting.long(kind), setting.folder / "loop")
        rows.append({"kind": kind, "plain loop": plain, "sctok": setting.run(setting.long(kind))})
    return rows


def scripts(setting: Setting) -> dict[str, Any]:
    """Compare three scripts that dump features, cluster them with scikit-learn and label them, with sctok."""
    audio, folder = setting.long(), setting.folder / "scripts"
    theirs = three_scripts(setting.system, audio, folder / "dump", setting.clusters)
    return {
        "clusters": setting.clusters,
        "scripts": theirs,
        "sctok": sctok_steps(setting.system, audio, folder / "root", setting.clusters),
    }


def device(setting: Setting) -> dict[str, Any]:
    """Measure a GPU: speed of the encoder, stages of a batch, and tokens that low precision changes."""
    system = setting.system
    if not system.device.startswith("cuda"):
        return {}
    return {
        "changes": token_changes(system.device, setting.sound, 64 if setting.quick else 512, 4096),
        "agreement": ways_agree(system.encoder, system.device, setting.sound),
        "stages": stage_rates(system, setting.sound, setting.batch),
        "encoder": encoder_rates(system.encoder, system.device, quick=setting.quick),
    }


SECTIONS: dict[str, Callable[[Setting], Any]] = {
    each.__name__: each for each in (device, stages, bare, workers, lengths, memory, loop, scripts)
}
