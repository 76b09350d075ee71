"""`sctok probe` as a user meets it."""

import json

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main
from sctok.formats.codebooks import Codebook, CodebookInfo, save_codebook

FAST = ("--hidden", 16, "--grid-points", 1, "--epochs", 3, "--device", "cpu", "--stability-clips", 2, "--json")
CLASSES = {"high": 0.9, "low": 0.1}


def write_tone(path, frequency, seed, samples=6_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(samples) * 0.01
    soundfile.write(path, 0.2 * np.sin(frequency * np.arange(samples)) + noise, 16_000)


@pytest.fixture
def classes(tmp_path):
    """A folder of two classes of tones with six clips each."""
    for name, frequency in CLASSES.items():
        for i in range(6):
            write_tone(tmp_path / "pitch" / name / f"{i}.wav", frequency, i)
    return tmp_path / "pitch"


@pytest.fixture
def probe(codec_folder, tmp_path, capsys):
    """Run sctok probe with the small codec; return its exit code, what it printed and what it said."""

    def run(*arguments, fast=FAST):
        every = [*arguments, "--codec", codec_folder, "--out", tmp_path / "out", *fast]
        code = main(["probe", *map(str, every)])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if "--json" in fast and printed.out else printed.out, printed.err

    return run


def test_a_folder_of_classes_is_probed(probe, classes, tmp_path):
    code, found, _ = probe(classes)
    assert code == 0
    assert found == json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (found["format"], found["format_version"], found["name"]) == ("sctok-probe", 1, "out")
    rows = {row["representation"]: row for row in found["tasks"]}
    assert set(rows) == {"log-mel", "log-mel with deviation"} | {
        f"codec tiny/{name}" for name in ("features", "semantic", "acoustic", "semantic+acoustic")
    }
    row = rows["log-mel"]
    assert (row["task"], row["clips"], row["classes"], row["folds"], row["majority"]) == ("pitch", 12, 2, 5, 0.5)
    assert 0 <= row["accuracy"] <= 1
    semantic, acoustic = found["tokens"]
    assert (semantic["stream"], semantic["size"], acoustic["size"]) == ("codec tiny/semantic", 64, 48)
    assert semantic["tokens"] == 12 * 2 * 4
    assert semantic["bits_per_second"] == pytest.approx(semantic["entropy"] * 12.5)
    assert {"purity", "nmi", "run_length", "perplexity"} < semantic.keys()
    assert {"shift", "gain", "noise"} <= semantic["stability"].keys()
    assert all(0 <= each["unchanged"] <= 1 for each in semantic["stability"].values())


def test_tones_are_classified_by_their_spectra(probe, classes):
    strong = ("--hidden", 64, "--grid-points", 2, "--epochs", 60, "--device", "cpu", "--json", "--measure", "probe")
    code, found, _ = probe(classes, "--representation", "log-mel", fast=strong)
    assert code == 0
    (row,) = found["tasks"]
    assert row["accuracy"] == 1.0
    assert found["tokens"] == []


def test_results_are_printed_as_tables(probe, classes):
    fast = tuple(each for each in FAST if each != "--json")
    code, printed, _ = probe(classes, "--representation", "log*", fast=fast)
    assert code == 0
    assert all(title in printed for title in ("accuracy", "± groups", "perplexity", "NMI", "shift", "probe.json"))


def test_faulty_rows_of_a_table_are_skipped(probe, classes, tmp_path):
    (classes / "low" / "5.wav").write_text("this is no audio")
    rows = [f"{name}/{i}.wav,{name},{i}" for name in CLASSES for i in range(6)]
    (tmp_path / "task.csv").write_text("\n".join(["path,label,group", *rows, "low/5.wav,low,5", "low/9.wav,low,9"]))
    code, found, said = probe(
        tmp_path / "task.csv", "--audio", classes, "--representation", "log-mel", "--measure", "probe"
    )
    assert code == 0
    assert found["tasks"][0]["clips"] == 11
    assert [row["source"] for row in found["failed"]] == ["low/5.wav", "low/9.wav", "low/5.wav"]
    assert "3 clips are missing from the results" in said


def test_a_failed_task_does_not_stop_the_others(probe, classes, tmp_path):
    (tmp_path / "one.csv").write_text("\n".join(["path,label", *(f"pitch/low/{i}.wav,low" for i in range(6))]))
    code, found, said = probe(tmp_path / "one.csv", classes, "--representation", "log-mel", "--measure", "probe")
    assert code == 1
    assert [row["task"] for row in found["tasks"]] == ["pitch"]
    assert found["errors"][0]["task"] == "one"
    assert "error: one: all 6 clips are of the class 'low'" in said


def test_finished_tasks_are_not_repeated(probe, classes, monkeypatch):
    fast = ("--representation", "log-mel", "--measure", "probe")
    first = probe(classes, *fast)[1]
    with monkeypatch.context() as patch:
        patch.setattr("sctok.evaluation.probe.measures.embed_clips", None)
        assert probe(classes, *fast)[1]["tasks"] == first["tasks"]
    write_tone(classes / "low" / "6.wav", CLASSES["low"], 6)
    again = probe(classes, *fast)[1]
    assert [row["clips"] for row in again["tasks"]] == [13]
    assert len(probe(classes, *fast, "--seed", 1)[1]["tasks"]) == 1


def test_the_same_command_gives_the_same_result(probe, classes, tmp_path):
    first = probe(classes)[1]
    (tmp_path / "out" / "probe.json").unlink()
    second = probe(classes)[1]
    assert {**first, "created": None} == {**second, "created": None}


def test_items_are_compared_with_abx(probe, classes, tmp_path):
    rows = [f"pitch/{name}/{i}.wav,{name},{'ab'[i % 2]},0,0.3" for name in CLASSES for i in range(4)]
    (tmp_path / "items.csv").write_text(
        "\n".join(["path,label,speaker,start,end", *rows, "pitch/low/0.wav,low,a,9,10"])
    )
    code, found, _ = probe("--abx", tmp_path / "items.csv", "--representation", "log-mel")
    assert code == 0
    assert [(row["task"], row["mode"], row["error"], row["items"]) for row in found["abx"]] == [
        ("items (ABX)", "within", 0.0, 8),
        ("items (ABX)", "across", 0.0, 8),
    ]
    assert "starts at 9 s" in found["failed"][0]["reason"]


def test_the_codebook_of_an_encoder_is_probed(classes, tmp_path, capsys, monkeypatch, small_weights):
    monkeypatch.setattr("sctok.features.extractor.load_weights", lambda name: small_weights)
    centroids = np.random.default_rng(0).standard_normal((9, 32)).astype(np.float32)
    info = CodebookInfo("merged", (), 1, "small", small_weights.hash)
    save_codebook(tmp_path / "book.safetensors", Codebook(centroids, np.ones(9, np.int64), info))
    arguments = [classes, "--codebook", tmp_path / "book.safetensors", "--out", tmp_path / "out", *FAST]
    assert main(["probe", *map(str, arguments)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["representation"] for row in found["tasks"]][2:] == [
        "small/features-r100",
        "small/merged-9-r100",
        "small/merged-9-r100/embedding",
    ]
    assert [row["stream"] for row in found["tokens"]] == ["small/merged-9-r100"]
    assert found["tokens"][0]["per_second"] == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a task"),
        (["LABELS", "--measure", "purity"], "'purity' is not one of probe, tokens, stability"),
        (["LABELS", "--name", "a/b", "--root", "."], "--name"),
        (["LABELS", "LABELS"], "two tasks are called pitch"),
        (["LABELS", "--pooling", "max"], "'max' is not one of 'mean', 'rows'"),
    ],
)
def test_wrong_usage_is_refused(classes, codec_folder, capsys, arguments, message):
    given = [str(classes) if each == "LABELS" else each for each in arguments]
    assert main(["probe", *given, "--codec", str(codec_folder), "--device", "cpu"]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_patterns_without_a_match_are_an_error(probe, classes):
    code, _, said = probe(classes, "--representation", "nothing", "--measure", "probe")
    assert code == 1
    assert "no representation matches nothing" in said


def test_another_file_is_not_replaced(probe, classes, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "probe.json").write_text('{"format": "something"}')
    code, _, said = probe(classes)
    assert code == 1
    assert "is not a file of sctok probe" in said
