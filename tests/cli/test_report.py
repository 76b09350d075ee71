"""`sctok report`."""

import json

import pytest
from tests.evaluation.report.example_runs import ratings, write_run

from sctok.cli.app import main


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "reports" / "first", files=(("one", "speech"),), seconds=0.2)
    return tmp_path


def test_a_run_is_found_by_name_and_the_page_is_written_into_its_folder(root, capsys):
    assert main(["report", "first", "--root", str(root), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    page = root / "reports" / "first" / "report.html"
    assert (facts["path"], facts["bytes"], facts["clips"]) == (str(page), page.stat().st_size, 1)


def test_ratings_without_a_run_are_scored(tmp_path, capsys):
    for name, score in (("Ana", 100), ("Cleo", 10)):
        (tmp_path / f"{name}.json").write_text(json.dumps(ratings(name, {"reference": [score], "opus-6": [55]})))
    assert main(["report", "--ratings", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    assert "all opus-6 55.0" in " ".join(printed.out.split())
    assert "left out: Cleo rated the hidden reference below 90 in 1 of 1 clips" in printed.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give a run folder"),
        (["missing"], 1, "neither run.json nor probe.json"),
        (["first", "--out", "{root}"], 2, "is a folder"),
        (["first", "--clips", "-1"], 2, "clips"),
        (["first", "--seconds", "nan"], 1, "seconds=nan"),
        (["first", "--codebook", "{root}/none.safetensors"], 1, "none.safetensors"),
        (["first", "--ratings", "{root}/none.json"], 1, "none.json"),
        (["first", "--ratings", "{root}/reports/first/run.json"], 1, "expected: sctok-ratings"),
    ],
)
def test_wrong_usage_and_bad_files_are_named(root, capsys, arguments, code, message):
    given = [argument.format(root=root) for argument in arguments]
    assert main(["report", *given, "--root", str(root)]) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
