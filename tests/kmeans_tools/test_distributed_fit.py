"""Fits by one process and by two ranks agree; `sctok cluster` under torchrun."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.ranks import SOURCE, run_ranks

from sctok.formats.codebooks import load_codebook
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.domains import DomainPlan, train_codebooks
from sctok.kmeans_tools.sources.vectors import ShardSource
from sctok.runtime.distributed import ALONE

SETTINGS: dict[str, dict[str, Any]] = {
    "lloyd": {"algorithm": "lloyd", "seeding": "kmeans++", "iterations": 8},
    "auto": {"algorithm": "auto", "seeding": "hierarchical"},
    "minibatch": {"algorithm": "minibatch", "seeding": "random", "iterations": 4},
    "subset": {"algorithm": "lloyd", "seeding": "kmeans++", "iterations": 5, "max_points_per_centroid": 20},
}

_TRAIN = """
import json
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.domains import DomainPlan, train_codebooks
from sctok.kmeans_tools.sources.vectors import ShardSource
shards, output, settings = sys.argv[1:]
for name, options in json.loads(settings).items():
    source = ShardSource(shards.split(","), 2)
    config = KMeansConfig(device="cpu", block_rows=200, **options)
    plan = DomainPlan(2, (12, 40), config, Path(output) / name)
    books = train_codebooks("x", source, plan, group=group)
    print(json.dumps([[book.codebook.k, book.seconds is not None] for book in books]))
"""

# Weights, labels, more ranks than vectors, and reading only the vectors that are needed.
_SMALL = """
import numpy
from sctok.kmeans_tools.config import FitContext
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.vectors import ArraySource
class Counting(ArraySource):
    taken = 0
    def take(self, places):
        self.taken += len(places)
        return super().take(places)
generator = numpy.random.default_rng(0)
vectors, weights = generator.normal(size=(400, 3)), generator.integers(0, 5, 400)
config = KMeansConfig(device="cpu", iterations=6)
shared = FitContext(group=group, return_labels=True)
one = fit_codebooks(ArraySource([[1, 2]]), [1], config, shared)[1]
many = fit_codebooks(ArraySource(vectors, weights=weights), [9], config, shared)[9]
batches = KMeansConfig(device="cpu", algorithm="minibatch", seeding="random", iterations=1, block_rows=256)
counting = Counting(generator.normal(size=(20_000, 2)))
few = fit_codebooks(counting, [3], batches, FitContext(group=group))[3]
result = [one.inertia, one.labels.tolist(), many.inertia, many.counts.tolist(), many.labels.tolist(), few.inertia]
print(json.dumps([result, counting.taken]))
"""


def write_shards(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        paths.append(folder / f"{seed}.h5")
        with FeatureShardWriter(paths[-1], width=6, provenance={"encoder": "mini", "encoder_hash": "m" * 16}) as writer:
            for clip in range(4):
                rows = generator.integers(0, 5, (8 * 47, 1)) * 3 + generator.normal(size=(8 * 47, 6))
                writer.add_clip(f"clip-{clip}", rows, 47 * 2560)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, and the codebooks that two ranks trained on them, for all settings, in `shared`."""
    folder = tmp_path_factory.mktemp("shared")
    names = ",".join(map(str, write_shards(folder / "features")))
    ended = run_ranks(2, _TRAIN + _SMALL, folder, names, folder / "shared", json.dumps(SETTINGS))
    assert [rank.code for rank in ended] == [0, 0], ended
    printed = [[json.loads(line) for line in rank.out.splitlines()] for rank in ended]
    assert [lines[:-1] for lines in printed] == [[[[12, True], [40, True]]] * len(SETTINGS)] * 2
    (folder / "small.json").write_text(json.dumps([lines[-1] for lines in printed]))
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_and_one_process_give_the_same_codebooks(name: str, folder: Path, tmp_path: Path) -> None:
    config = KMeansConfig(device="cpu", block_rows=200, **SETTINGS[name])
    source = ShardSource(sorted((folder / "features").glob("*.h5")), 2)
    assert not list((folder / "shared" / name / ".checkpoints").iterdir())
    for book in train_codebooks("x", source, DomainPlan(2, (12, 40), config, tmp_path)):
        other, one = load_codebook(folder / "shared" / name / book.path.name), book.codebook
        np.testing.assert_allclose(other.centroids, one.centroids, rtol=1e-5, atol=1e-5)
        assert np.array_equal(other.counts, one.counts)
        np.testing.assert_allclose(other.metadata.inertia_history, one.metadata.inertia_history, rtol=1e-5)
        mine, theirs = other.metadata.certificate or {}, one.metadata.certificate or {}
        assert mine["config_hash"] == theirs["config_hash"]
        assert mine["certified_rows"] == one.metadata.n_vectors


def test_weights_labels_and_an_idle_rank(folder: Path) -> None:
    (result, taken), (other, other_taken) = json.loads((folder / "small.json").read_text())
    assert result == other
    names: dict[str, Any] = {"group": ALONE, "json": json, "KMeansConfig": KMeansConfig}
    with redirect_stdout(io.StringIO()) as output:
        exec(_SMALL, names)
    (expected, taken_alone) = json.loads(output.getvalue())
    one, one_labels, many, counts, labels, few = expected
    assert result[:2] == [one, one_labels] == [0, [0]]
    assert result[2] == pytest.approx(many, rel=1e-6)
    assert (result[3], result[4]) == (counts, labels)
    assert result[5] == pytest.approx(few, rel=1e-6)
    assert taken + other_taken == pytest.approx(taken_alone, rel=0.5)
    assert 0 < taken < 0.7 * taken_alone


_NAN = """
from sctok.kmeans_tools.config import FitContext, KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.sources.vectors import ArraySource
import numpy
vectors = numpy.random.default_rng(0).normal(size=(30_000, 2)).astype("f")
vectors[29_999, 0] = numpy.nan
fit_codebooks(ArraySource(vectors), [4], KMeansConfig(device="cpu", seeding="random"), FitContext(group=group))
"""


def test_a_bad_vector_on_one_rank_stops_all_ranks(tmp_path: Path) -> None:
    first, last = run_ranks(2, _NAN, tmp_path)
    assert last.code == 1
    assert "row 29999 holds NaN or infinity" in last.err
    assert first.code == 1
    assert "another rank of this run stopped" in first.err


@pytest.mark.slow
def test_cluster_under_torchrun(tmp_path: Path) -> None:
    write_shards(tmp_path / "features" / "birds")
    options = ["--domain", "all", "--k", "12", "--device", "cpu", "--root", str(tmp_path), "--json"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "sctok.cli.app", "cluster", *options]
    shared = subprocess.run([*ranks, *command], env=environment, text=True, capture_output=True, timeout=300)
    assert shared.returncode == 0, shared.stderr
    (row,) = json.loads(shared.stdout)["codebooks"]  # one rank prints
    other = subprocess.run(
        [sys.executable, *command, "--output", str(tmp_path / "alone")], env=environment, text=True, capture_output=True
    )
    assert other.returncode == 0, other.stderr
    one = load_codebook(json.loads(other.stdout)["codebooks"][0]["path"])
    np.testing.assert_allclose(load_codebook(row["path"]).centroids, one.centroids, rtol=1e-5, atol=1e-5)
