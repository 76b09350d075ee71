"""`sctok cluster` on several domains: their names and order, the paper's sizes, and domains that fail."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from sctok.cli.cluster import cluster
from sctok.formats.codebooks import load_codebook
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kmeans_tools import domains
from sctok.kmeans_tools.domains import find_domains

app = typer.Typer()
app.command()(cluster)


def write_features(folder: Path, seed: int = 0, columns: int = 40, kinds: int | None = None) -> Path:
    """Write a shard of 8 · columns patches with `kinds` distinct ones, by default all distinct."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(8 * columns, 4))
    if kinds is not None:
        rows = rows[generator.integers(kinds, size=len(rows))]
    with FeatureShardWriter(
        folder / "a.h5", width=4, provenance={"encoder": "mini", "encoder_hash": "m" * 16}
    ) as shard:
        shard.add_clip("a", rows, columns * 2560)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, domain in enumerate(("birds", "music", "speech", "general")):
        write_features(tmp_path / "features" / domain, seed=index)
    (tmp_path / "features" / "empty").mkdir()
    return tmp_path


def test_the_domains_of_the_paper_come_first(root: Path) -> None:
    assert find_domains(root / "features") == ["general", "speech", "music", "birds"]
    with pytest.raises(ValueError, match="sctok extract"):
        find_domains(root / "nowhere")


def test_all_domains_in_the_sizes_of_the_paper(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "PAPER_CODEBOOKS", (4, 8, 16))
    result = run("--root", root, "--domain", "all", "--k", "paper", "--iterations", 2, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    order = ["general", "speech", "music", "birds"]
    assert [fact["domain"] for fact in shown["domains"]] == order
    assert [(row["domain"], row["k"]) for row in shown["codebooks"]] == [(d, k) for d in order for k in (4, 8, 16)]
    for row in shown["codebooks"]:
        assert load_codebook(row["path"]).k == row["k"]
        assert row["certified_rows"] == 320
        assert 0 < row["min_centroid_distance"] <= row["median_centroid_distance"]


def test_a_domain_trained_with_others_equals_a_separate_run(root: Path) -> None:
    run("--root", root, "--domain", "speech,music", "--domain", "birds", "--k", "4,8")
    separate = run("--root", root, "--domain", "music", "--k", 8, "--output", root / "separate")
    assert separate.exit_code == 0
    name = "music-8-r100.safetensors"
    assert (root / "codebooks" / name).read_bytes() == (root / "separate" / name).read_bytes()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (None, "k = 50 exceeds the 16 vectors of .*; of the sizes requested for few these are possible: 4, 12"),
        (9, r"k = 12 exceeds the \d+ distinct vectors .*; of the sizes requested for few these are possible: 4"),
    ],
)
def test_one_domain_with_too_few_vectors_does_not_stop_the_others(root: Path, kinds: int | None, message: str) -> None:
    write_features(root / "features" / "few", columns=2, kinds=kinds)
    sizes = "4,12,50" if kinds is None else "4,12"
    result = run("--root", root, "--domain", "few,music", "--k", sizes)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: few:")]
    assert re.search(message, line), line
    assert [row.split()[:2] for row in result.stdout.splitlines()[2:]] == [["music", k] for k in sizes.split(",")]


def test_a_damaged_shard_is_reported_in_json_and_others_finish(root: Path) -> None:
    (root / "features" / "speech" / "b.h5").write_bytes(b"text")
    result = run("--root", root, "--domain", "all", "--k", 4, "--json")
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert [row["domain"] for row in shown["codebooks"]] == ["general", "music", "birds"]
    assert ["b.h5" in fact.get("error", "") for fact in shown["domains"]] == [False, True, False, False]


def test_a_single_domain_raises_its_error(root: Path) -> None:
    result = run("--root", root, "--domain", "music", "--k", 400)
    assert isinstance(result.exception, ValueError)
    assert "of the sizes requested for music these are possible: none" in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [
        ["--domain", "all,music", "--k", "4"],
        ["--domain", "music,", "--k", "4"],
        ["--domain", "all", "--features", "x", "--k", "4"],
        ["--domain", "a,b", "--features", "x", "--k", "4"],
        ["--domain", "music", "--k", "papers"],
        ["--domain", "music", "--k", "4", "--memory", "lots"],
        ["--domain", "music", "--k", "4", "--memory", "1"],
    ],
)
def test_wrong_usage(root: Path, options: list[Any]) -> None:
    assert run("--root", root, *options).exit_code == 2


def test_sizes_in_addition_to_those_of_the_paper(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "PAPER_CODEBOOKS", (4, 8))
    result = run("--root", root, "--domain", "music", "--k", "paper,6,8", "--iterations", 1)
    assert [row.split()[1] for row in result.stdout.splitlines()[2:]] == ["4", "8", "6"]


def test_more_memory_than_needed_does_not_change_the_codebook_and_little_is_enough(root: Path) -> None:
    options = ("--root", root, "--domain", "music", "--k", 8)
    contents = []
    for memory in (["--memory", "1M"], ["--memory", "1G"], []):
        output = root / "".join(memory)
        assert run(*options, *memory, "--output", output).exit_code == 0
        contents.append((output / "music-8-r100.safetensors").read_bytes())
    assert contents == contents[:1] * 3
    assert run(*options, "--memory", "1K", "--output", root / "tiny").exit_code == 0
