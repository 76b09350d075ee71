"""`sctok evaluate` as a user meets it."""

import json

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main


@pytest.fixture
def references(tmp_path):
    """A folder with half a second of music and of speech."""
    for seed, name in enumerate(("speech/one", "music/two")):
        path = tmp_path / "set" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(seed).standard_normal(8000) * 0.1, 16_000)
    return tmp_path / "set"


def run(capsys, *arguments):
    code = main(["evaluate", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_table_of_codecs_by_domain(references, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [references, "--codec", "original", "--codec", "lowpass:3500", "--metrics", "mel_db,lsd", "--out", out]
    code, printed, _ = run(capsys, *arguments)
    assert code == 0
    header, _, *rows = printed.splitlines()
    assert header.split()[:3] == ["domain", "codec", "kbit/s"]
    assert [tuple(row.split()[:2]) for row in rows[:6]] == [
        (domain, codec) for domain in ("music", "speech", "all") for codec in ("original", "lowpass-3500")
    ]
    assert rows[-1] == str(out)
    code, again, _ = run(capsys, *arguments, "--json")
    result = json.loads(again)
    assert result["folder"] == str(out)
    assert {entry["codec"] for entry in result["summary"]} == {"original", "lowpass-3500"}


def test_reports_go_to_the_work_directory(references, tmp_path, capsys):
    code, _, _ = run(capsys, references, "--codec", "original", "--metrics", "si_sdr", "--root", tmp_path / "root")
    assert code == 0
    assert (tmp_path / "root" / "reports" / "set" / "scores.csv").is_file()


def test_missing_values_are_reported(references, tmp_path, capsys):
    soundfile.write(references / "speech" / "silence.wav", np.zeros(8000), 16_000)
    out = tmp_path / "run"
    code, _, said = run(capsys, references, "--codec", "original", "--metrics", "si_sdr", "--out", out)
    assert code == 0
    assert "1 values are missing" in said
    assert str(out / "scores.csv") in said


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--metrics", "mos"], 2, "unknown metric 'mos'; choose from mel_dac"),
        (["--metrics", ","], 2, "is empty"),
        (["--metrics", "wer"], 1, "wer needs"),
        (["--transcripts", "nowhere.csv"], 1, "nowhere.csv"),
        (["--codec", "nonsense"], 1, "'nonsense'"),
    ],
)
def test_wrong_usage_is_refused(arguments, code, reason, references, tmp_path, capsys):
    found, _, said = run(capsys, references, "--codec", "original", *arguments, "--out", tmp_path / "run")
    assert found in (code, 2)
    assert reason in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    code, _, said = run(capsys, tmp_path / "none", "--codec", "original", "--out", tmp_path / "run")
    assert code == 1
    assert "no audio in this folder" in said


def test_codecs_that_fail_on_every_file(references, tmp_path, capsys):
    (tmp_path / "decoded").mkdir()
    soundfile.write(tmp_path / "decoded" / "other.wav", np.zeros(8000), 16_000)
    arguments = ["--codec", f"dir:{tmp_path / 'decoded'}", "--metrics", "si_sdr", "--out", tmp_path / "run"]
    code, _, said = run(capsys, references, *arguments)
    assert code == 1
    assert "no codec returned any audio" in said
