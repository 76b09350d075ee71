"""Feature sets larger than the memory, and killed runs, in child processes."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sctok.formats.feature_shards import FeatureShardWriter

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
MIB = 2**20
MEMORY = 64 * MIB
PROVENANCE = {"encoder": "mini", "encoder_hash": "m" * 16}

_CLUSTER = """
import sys
from pathlib import Path
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.domains import DomainPlan, train_codebooks
from sctok.kmeans_tools.progress import FitStarted, PassFinished
from sctok.kmeans_tools.sources.vectors import ShardSource

shards, output, algorithm, seeding, memory = sys.argv[1:6]
source = ShardSource(shards.split(","), 4)
config = KMeansConfig(
    device="cpu", algorithm=algorithm, seeding=seeding, iterations=int(sys.argv[6]), memory=int(memory) or None, tol=0
)
def progress(event):
    if isinstance(event, FitStarted) or (isinstance(event, PassFinished) and not event.is_final):
        print(event.k, flush=True)
ks = tuple(int(k) for k in sys.argv[7].split(","))
train_codebooks("x", source, DomainPlan(4, ks, config, Path(output)), progress)
status = Path("/proc/self/status").read_text()
print("peak", int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def write_shard(path: Path, columns: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    with FeatureShardWriter(path, width=192, provenance=PROVENANCE) as writer:
        for start in range(0, columns, 1024):
            count = min(1024, columns - start)
            rows = generator.integers(0, 4, (8 * count, 1)) * 2 + generator.normal(size=(8 * count, 192))
            writer.add_clip(str(start), rows, count * 2560)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", _CLUSTER, *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "seeding"), [("lloyd", "kmeans++"), ("auto", "hierarchical"), ("minibatch", "random")]
)
def test_four_times_more_features_than_memory(algorithm: str, seeding: str, tmp_path: Path) -> None:
    large, small = write_shard(tmp_path / "large.h5", 32_768), write_shard(tmp_path / "small.h5", 512)
    copies = 4 * MEMORY // large.stat().st_size + 1

    def peak(shards: list[Path], output: str) -> int:
        names = ",".join(map(str, shards))
        arguments = (names, tmp_path / output, algorithm, seeding, MEMORY, 3, 32)
        child = subprocess.run(command(*arguments), check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        return int(child.stdout.split("peak")[1])

    base, large_peak = peak([small], "small"), peak([large] * copies, "large")
    assert copies * large.stat().st_size >= 4 * MEMORY
    used = large_peak - base
    assert used <= MEMORY // MIB, f"{used} MiB more than a run on very little data; the limit is {MEMORY // MIB} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "seeding"), [("lloyd", "kmeans++"), ("auto", "auto"), ("minibatch", "random")])
def test_killed_again_and_again_gives_the_file_of_one_clean_run(algorithm: str, seeding: str, tmp_path: Path) -> None:
    shards = ",".join(str(write_shard(tmp_path / f"{seed}.h5", 700, seed)) for seed in range(2))
    options = (algorithm, seeding, 0, 12, "24,300")

    def run(output: str, lines: int | None) -> None:
        """Cluster; kill the process after a number of lines of progress."""
        arguments = command(shards, tmp_path / output, *options)
        with subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(lines or 0):
                child.stdout.readline()
            if lines is not None:
                child.send_signal(signal.SIGKILL)
            child.stdout.read()
        assert child.returncode == (0 if lines is None else -signal.SIGKILL)

    generator = random.Random(algorithm)
    for _ in range(3):
        run("killed", generator.randint(1, 6))
    assert list((tmp_path / "killed" / ".checkpoints").glob("*.safetensors"))
    run("killed", None)
    run("whole", None)
    for k in (24, 300):
        name = f"x-{k}-r25.safetensors"
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "killed" / ".checkpoints").iterdir())
