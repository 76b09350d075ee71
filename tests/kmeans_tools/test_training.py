"""`sctok cluster` and `sctok merge` on small feature shards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from sctok.cli.cluster import cluster
from sctok.cli.merge import merge
from sctok.formats.codebooks import load_codebook
from sctok.formats.feature_shards import FeatureShardWriter

app = typer.Typer()
app.command()(cluster)
app.command()(merge)


def write_features(folder: Path, seed: int = 0, encoder: str = "mini", columns: int = 40) -> Path:
    generator = np.random.default_rng(seed)
    provenance = {"encoder": encoder, "encoder_hash": encoder[0] * 16}
    for name in ("a.h5", "b.h5"):
        with FeatureShardWriter(folder / name, width=6, provenance=provenance) as writer:
            for index in range(3):
                centers = generator.integers(0, 5, 8 * columns)[:, None]
                rows = centers * 3 + generator.normal(size=(8 * columns, 6))
                writer.add_clip(f"{name}-{index}", rows, columns * 2560)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, domain in enumerate(("general", "speech", "music")):
        write_features(tmp_path / "features" / domain, seed=index)
    return tmp_path


def test_cluster_then_merge(root: Path) -> None:
    for domain, k in (("general", 16), ("speech", 8), ("music", 8)):
        result = run_json("cluster", "--root", root, "--domain", domain, "--k", k, "--device", "cpu")
        (row,) = result["codebooks"]
        assert row["path"] == str(root / "codebooks" / f"{domain}-{k}-r100.safetensors")
        book = load_codebook(row["path"])
        assert (book.metadata.encoder, book.metadata.encoder_hash) == ("mini", "m" * 16)
        assert book.counts.sum() == book.metadata.n_vectors == result["n_vectors"] == 1920
        assert (book.metadata.certificate or {})["inertia"] == row["inertia"] == book.metadata.inertia_history[-1]
    (merged,) = run_json("merge", "--root", root)["codebooks"]
    assert merged["size"] == 32
    assert [segment["domain"] for segment in merged["segments"]] == ["general", "speech", "music"]
    other = run_json("merge", "--root", root, "--ratio", "music=1,speech=1", "--size", 16)
    assert [segment["domain"] for segment in other["codebooks"][0]["segments"]] == ["music", "speech"]
    assert not list((root / "codebooks" / ".checkpoints").iterdir())


def test_comma_lists_stacks_and_the_table(root: Path) -> None:
    result = run(
        "cluster", "--root", root, "--domain", "music", "--k", "4,8", "--k", "6", "--stack", "4", "--device", "cpu"
    )
    assert result.exit_code == 0
    names = [Path(line.split()[-1]).name for line in result.stdout.splitlines()[2:]]
    assert names == [f"music-{k}-r25.safetensors" for k in (4, 8, 6)]
    assert "music r25 k=8: iteration 1/25, inertia" in result.stderr
    assert load_codebook(root / "codebooks" / "music-4-r25.safetensors").centroids.shape == (4, 24)


def test_the_same_again_does_nothing_and_other_settings_need_overwrite(root: Path) -> None:
    command = ("cluster", "--root", root, "--domain", "music", "--k", 4, "--device", "cpu")
    path = Path(run_json(*command)["codebooks"][0]["path"])
    before = path.read_bytes(), path.stat().st_mtime_ns
    again = run(*command)
    assert again.exit_code == 0
    assert "exists already" in again.stderr
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    other = run(*command, "--seed", 1)
    assert "was made from other features or settings; use --overwrite" in str(other.exception)
    assert path.read_bytes() == before[0]
    assert run_json(*command, "--seed", 1, "--overwrite")["codebooks"][0]["trained"]
    assert path.read_bytes() != before[0]


def test_other_features_of_the_same_shape_are_not_taken_for_the_old_ones(root: Path) -> None:
    command = ("cluster", "--root", root, "--domain", "music", "--k", 4, "--device", "cpu")
    path = Path(run_json(*command)["codebooks"][0]["path"])
    before = path.read_bytes()
    write_features(root / "features" / "music", seed=77)
    assert "was made from other features" in str(run(*command).exception)
    assert run_json(*command, "--overwrite")["codebooks"][0]["trained"]
    assert path.read_bytes() != before


def test_overwrite_replaces_a_damaged_codebook(root: Path) -> None:
    command = ("cluster", "--root", root, "--domain", "music", "--k", 4, "--device", "cpu")
    path = Path(run_json(*command)["codebooks"][0]["path"])
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"text"):
        path.write_bytes(broken)
        assert path.name in str(run(*command).exception)
        assert run_json(*command, "--overwrite")["codebooks"][0]["trained"]
        assert path.read_bytes() == whole


def test_what_killed_writers_left_is_removed(root: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    folder = root / "codebooks"
    folder.mkdir()
    dead, living = (folder / f"x-4-r100.safetensors.tmp-{pid}" for pid in (child.pid, os.getpid()))
    living.write_bytes(b"")
    for domain, k in (("speech", 4), ("music", 4), ("general", 8)):
        dead.write_bytes(b"")
        run_json("cluster", "--root", root, "--domain", domain, "--k", k, "--device", "cpu")
        assert not dead.exists()
    dead.write_bytes(b"")
    run_json("merge", "--root", root)
    assert (dead.exists(), living.exists()) == (False, True)


def test_first_centroids_from_a_codebook_or_an_array(root: Path) -> None:
    command = ("cluster", "--root", root, "--domain", "music", "--device", "cpu", "--overwrite")
    path = run_json(*command, "--k", 4)["codebooks"][0]["path"]
    book = load_codebook(path)
    np.save(root / "first.npy", book.centroids)
    for first in (path, root / "first.npy"):
        (row,) = run_json(*command, "--k", 4, "--seeding", first, "--output", root / "other")["codebooks"]
        assert row["inertia"] <= (book.metadata.certificate or {})["inertia"] * (1 + 1e-6)
    assert run(*command, "--k", 5, "--seeding", path).exit_code == 2
    assert run(*command, "--k", 4, "--seeding", "nothing").exit_code == 2
    wrong_stack = run(*command, "--k", 4, "--seeding", path, "--token-rate", 50)
    assert "stack factor 1, the features are of mini" in str(wrong_stack.exception)


@pytest.mark.parametrize(
    "options", [["--k", "x"], ["--k", "0"], ["--k", "4,"], [], ["--k", "4", "--token-rate", "75"],
                ["--k", "4", "--stack", "3"], ["--k", "4", "--stack", "2", "--token-rate", "100"]]
)  # fmt: skip
def test_wrong_usage_of_cluster(root: Path, options: list[str]) -> None:
    assert run("cluster", "--root", root, "--domain", "music", *options).exit_code == 2


@pytest.mark.parametrize(
    "options", [["--size", "x"], ["--ratio", "speech"], ["--ratio", "a=1,a=2"], ["--token-rate", "75"]]
)
def test_wrong_usage_of_merge(root: Path, options: list[str]) -> None:
    assert run("merge", "--root", root, *options).exit_code == 2


def test_one_line_errors_that_name_what_is_wrong(root: Path) -> None:
    def message(*arguments: object) -> str:
        result = run(*arguments)
        assert result.exit_code == 1
        assert isinstance(result.exception, ValueError)
        assert "\n" not in str(result.exception)
        return str(result.exception)

    cluster_music = ("cluster", "--root", root, "--domain", "music")
    assert "sctok extract" in message("cluster", "--root", root, "--domain", "birds", "--k", 4)
    assert "k = 5000 exceeds the 1920 vectors" in message(*cluster_music, "--k", 5000)
    assert "merged" in message(
        *cluster_music[:3], "--features", root / "features/music", "--domain", "merged", "--k", 4
    )
    assert "sctok cluster --domain general" in message("merge", "--root", root)
    write_features(root / "other", encoder="base")
    (root / "other" / "a.h5").rename(root / "features" / "music" / "c.h5")
    assert "c.h5 holds features of encoder base" in message(*cluster_music, "--k", 4)
    (root / "features" / "music" / "c.h5").write_bytes(b"text")
    assert "c.h5" in message(*cluster_music, "--k", 4)
