"""`sctok reconstruct` as a user meets it."""

import json

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main

from .conftest import write_noise

QUICK = ("--steps", "1")


def test_the_result_equals_encode_followed_by_decode(sctok, tmp_path):
    audio = write_noise(tmp_path / "in.wav", 30_000, rate=22_050, channels=2)
    code, printed, _ = sctok("reconstruct", audio, tmp_path / "out.wav", *QUICK, "--json")
    assert code == 0
    assert json.loads(printed)["audio_seconds"] == 21_769 / 16_000
    assert sctok("encode", audio)[0] == 0
    assert sctok("decode", tmp_path / "in.sct", "--out", tmp_path / "two.wav", *QUICK)[0] == 0
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    assert soundfile.info(tmp_path / "out.wav").frames == 21_769


def test_a_folder_keeps_its_structure_and_failures_are_named(sctok, tmp_path):
    write_noise(tmp_path / "in" / "a.wav", 30_000)
    write_noise(tmp_path / "in" / "x" / "b.flac", 180_000)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    code, printed, _ = sctok("reconstruct", tmp_path / "in", tmp_path / "out", "--format", "flac", *QUICK, "--json")
    assert code == 1
    assert [entry["source"].rpartition("/")[2] for entry in json.loads(printed)["failed"]] == ["bad.wav"]
    frames = {path.name: soundfile.info(path).frames for path in (tmp_path / "out").rglob("*.flac")}
    assert frames == {"a.flac": 30_000, "b.flac": 180_000}


def test_the_input_is_never_replaced(sctok, tmp_path):
    audio = write_noise(tmp_path / "in.wav", 8_000)
    before = audio.read_bytes()
    code, printed, _ = sctok("reconstruct", audio, audio, "--json")
    assert code == 1
    assert "its result would replace it" in json.loads(printed)["failed"][0]["reason"]
    assert audio.read_bytes() == before


def test_existing_audio_is_kept_on_request(sctok, tmp_path):
    audio = write_noise(tmp_path / "in.wav", 8_000)
    soundfile.write(tmp_path / "out.wav", np.zeros(10), 16_000)
    code, printed, _ = sctok("reconstruct", audio, tmp_path / "out.wav", "--skip-existing", "--json")
    assert (code, json.loads(printed)["kept"]) == (0, 1)
    assert soundfile.info(tmp_path / "out.wav").frames == 10


@pytest.mark.parametrize("arguments", [["a.wav"], [], ["a.wav", "b.wav", "c.wav"]])
def test_wrong_usage_is_refused(arguments, capsys):
    assert main(["reconstruct", *arguments]) == 2
