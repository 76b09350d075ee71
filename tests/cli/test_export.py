"""`sctok export` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sctok.cli import export as command
from sctok.cli.app import main
from sctok.corpus.exports.formats import FORMATS
from sctok.corpus.runs.run_folder import RunFolder
from sctok.formats.files import write_json
from sctok.formats.layouts import LAYOUTS
from sctok.formats.token_shards import TokenShardWriter

TOKENS = np.array([[1, 5], [1, 5], [2, 6]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A work directory with the tokens `books`, one file of two streams."""
    streams = ["semantic", "acoustic"]
    config = {"format": "sctok-run", "format_version": 1, "kind": "tokens", "codebook_sizes": [16, 8]}
    run = RunFolder(tmp_path / "root" / "tokens" / "books", config, ".tar")
    write_json(run.path / "run.json", config)
    item = {"key": "a", "path": "/a.wav", "offset": None, "size": None, "suffix": ".wav", "metadata": {}}
    (run.path / "manifest.jsonl").write_text(json.dumps({"shard": 0, "item": item}) + "\n")
    with TokenShardWriter(run.shard_path(0), codebook_sizes=(16, 8)) as writer:
        writer.add("a", TOKENS, {"streams": streams, "config_hash": run.config_hash, "samples": 960})
    return tmp_path / "root"


def run(root: Path, *arguments: object) -> int:
    return main(["export", *map(str, arguments), "--root", str(root)])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tokens-00000.jsonl").open()]


def test_help_lists_the_formats_and_layouts_of_the_library() -> None:
    assert tuple(FORMATS) == command.FORMATS
    assert LAYOUTS == command.LAYOUTS


def test_a_run_given_by_name_is_exported_below_the_root(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "books", "--to", "jsonl", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == str(root / "exports" / "books-jsonl")
    assert (result["documents"], result["ids"], result["vocabulary_size"], result["existed"]) == (1, 6, 24, False)
    assert lines(root / "exports" / "books-jsonl")[0]["tokens"] == [1, 1, 2, 21, 21, 22]


def test_a_run_name_takes_precedence_over_a_folder_of_the_same_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(root, "books", "--to", "jsonl", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("place", ["", "shard-00000.tar"])
def test_a_run_or_shard_can_be_given_as_a_path(root: Path, tmp_path: Path, place: str) -> None:
    assert run(root, root / "tokens" / "books" / place, "--to", "jsonl", "--out", tmp_path / "out") == 0
    assert len(lines(tmp_path / "out")) == 1


def test_options_reach_the_export(root: Path, tmp_path: Path) -> None:
    options = ["--layout", "delayed", "--offset", "100", "--pad", "7", "--end-of-document", "99", "--dedup"]
    assert run(root, "books", "--to", "jsonl", "--out", tmp_path / "out", *options) == 0
    (row,) = lines(tmp_path / "out")
    assert row["tokens"] == [[101, 7], [102, 121], [7, 122], [99, 99]]
    assert row["durations"] == [2, 1]


def test_one_stream_is_exported_in_parts(root: Path, tmp_path: Path) -> None:
    options = ["--streams", "acoustic", "--end-of-document", "auto", "--shard-size", "1K"]
    assert run(root, "books", "--to", "km", "--out", tmp_path / "out", *options) == 0
    assert (tmp_path / "out" / "tokens-00000.km").read_text() == "5 5 6 8\n"


def test_a_second_call_reports_that_nothing_is_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "books", "--to", "npy") == 0
    assert run(root, "books", "--to", "npy") == 0
    assert "nothing left to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["books"],
        ["books", "--to", "csv"],
        ["books", "--to", "npy", "--layout", "spiral"],
        ["books", "--to", "megatron", "--layout", "parallel"],
        ["books", "--to", "npy", "--offset", "a,b"],
        ["books", "--to", "npy", "--end-of-document", "last"],
        ["books", "--to", "npy", "--shard-size", "much"],
        ["a.tar", "b.tar", "--to", "npy"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    root: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes((root / "tokens" / "books" / "shard-00000.tar").read_bytes())
    assert run(root, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["music", "--to", "npy"], "books"),
        (["books", "--to", "npy", "--streams", "phonetic"], "phonetic"),
        (["books", "--to", "npy", "--codebook-sizes", "16,9"], "sizes"),
        (["books", "--to", "npy", "--out", "root"], "not an export"),
    ],
)
def test_a_failure_is_reported_in_one_line(
    root: Path, arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root.parent)
    assert run(root, *arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert named in line
