"""`sctok pretrain encoder`, `vae` and `vocoder` with tiny models."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tests.training.trainings import write_audio

from sctok.cli.app import main
from sctok.codec.storage.part_sources import open_vae, open_vocoder
from sctok.codec.storage.parts import load_vae, load_vocoder, module_hash
from sctok.features.checkpoints import load_weights
from sctok.formats.tensors import read_header

TINY = {
    "vae": ["--channels", "4", "--latent-channels", "2", "--patch", "8", "--batch-size", "1"],
    "vocoder": ["--width", "8", "--blocks", "1", "--batch-size", "1", "--adversarial-after", "1"],
}
OPEN = {"vae": open_vae, "vocoder": open_vocoder}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_audio(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(kind: str, *more: object) -> int:
    return main(["pretrain", kind, "a", "b", *TINY[kind], "--device", "cpu", *map(str, more)])


@pytest.mark.parametrize("kind", TINY)
def test_a_run_writes_a_file_and_continues(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kind, "--steps", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[kind], found["steps"]) == (f"sctok-data/pretrain/{kind}/{kind}.safetensors", 2)
    first = OPEN[kind](found[kind]).state_dict()
    assert run(kind, "--steps", 3) == 0
    printed = capsys.readouterr()
    assert f"use it with sctok train --{kind} {found[kind]}" in printed.out
    assert "from step 2" in printed.err
    second = OPEN[kind](found[kind]).state_dict()
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    with Path(found["loss_curve"]).open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "3"]
    assert read_header(found[kind])[0]["trained"]["batch_size"] == 1


def test_an_encoder_is_written_and_its_training_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--width", "16", "--depth", "3", "--heads", "2", "--batch-size", "1", "--workers", "0"]
    command = ["pretrain", "encoder", "a", "b", *sizes, "--device", "cpu", "--name", "tiny"]
    assert main([*command, "--steps", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["encoder"], found["steps"]) == ("sctok-data/pretrain/tiny/encoder-tiny.safetensors", 2)
    first = load_weights(found["encoder"]).hash
    assert main([*command, "--steps", "3"]) == 0
    printed = capsys.readouterr()
    assert f"use it with --encoder {found['encoder']}" in printed.out
    assert "training on 8 clips, 0.00 h, from step 2" in printed.err
    assert load_weights(found["encoder"]).hash != first
    assert main([*command, "--steps", "3", "--learning-rate", "1"]) == 1
    assert "other settings (learning_rate)" in capsys.readouterr().err


def test_saved_vae_and_vocoder_can_be_loaded(folder: Path) -> None:
    assert run("vae", "--steps", 1) == 0
    assert run("vocoder", "--steps", 1) == 0
    vae = load_vae(folder / "sctok-data/pretrain/vae/vae.safetensors")
    vocoder = load_vocoder(folder / "sctok-data/pretrain/vocoder/vocoder.safetensors")
    with torch.no_grad():
        mel = vae.decode(vae.encode(torch.zeros(1, 1, 64, 64))[0])
        assert vocoder(mel[:, 0]).shape == (1, 64 * 160)


def test_a_vocoder_starts_from_another_and_uses_a_vae(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("vae", "--steps", 1) == 0
    assert run("vocoder", "--steps", 1) == 0
    vae, vocoder = (f"sctok-data/pretrain/{kind}/{kind}.safetensors" for kind in TINY)
    more = ("--vae", vae, "--batch-size", 2, "--name", "second", "--steps", 2)
    assert run("vocoder", "--initial", vocoder, "--learning-rate", 0, *more) == 0
    second = "sctok-data/pretrain/second/vocoder.safetensors"
    for name, value in load_vocoder(Path(vocoder)).state_dict().items():
        assert torch.equal(load_vocoder(Path(second)).state_dict()[name], value)
    trained = read_header(second)[0]["trained"]
    assert trained["through"] == module_hash(load_vae(Path(vae)))
    assert trained["initial"] == module_hash(load_vocoder(Path(vocoder)))
    assert run("vocoder", *more, "--learning-rate", 0) == 1
    assert "other settings (initial)" in capsys.readouterr().err
    assert run("vocoder", "--initial", vae) == 1
    assert run("vocoder", "--vae", vae, "--name", "third") == 1
    assert "batch_size 1 has no half" in capsys.readouterr().err
    assert run("vocoder", "--initial", "") == 2


def test_other_sizes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("vae", "--steps", 1) == 0
    assert run("vae", "--steps", 1, "--channels", 8) == 1
    assert "other settings (model.channels): choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "more"), [("vae", ["--steps", "0"]), ("vocoder", ["--name", "../x"])])
def test_wrong_usage_is_refused(kind: str, more: list[str], folder: Path) -> None:
    assert run(kind, *more) == 2
