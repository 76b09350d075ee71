"""`sctok train` as a user types it, with parts that are tiny."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.trainings import CONFIG, VAE, codebook, encoder, write_audio

from sctok.cli.app import main
from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.codec.storage.codec_folder import load_codec
from sctok.codec.storage.parts import arrays_of, save_part
from sctok.features.checkpoints import load_weights, save_weights
from sctok.formats.codebooks import codebook_path, save_codebook
from sctok.formats.files import DiskFullError
from sctok.runtime import devices
from sctok.training import loop as training_run
from sctok.training.codec import CODEC_TRAINING

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with audio, a configuration, and all parts."""
    write_audio(tmp_path)
    (tmp_path / "tiny.toml").write_text(CONFIG)
    save_weights(tmp_path / "encoder.safetensors", encoder(), {})
    known = load_weights(tmp_path / "encoder.safetensors").hash
    for k in (8, 12):
        save_codebook(codebook_path(tmp_path / "sctok-data" / "codebooks", "merged", k, 25), codebook(k, k, known))
    torch.manual_seed(0)
    vae, vocoder = AutoencoderKL(VAE), IstftVocoder(VocoderConfig(8, 1, 2))
    save_part(tmp_path / "vae.safetensors", "vae", arrays_of(vae), vae.config)
    save_part(tmp_path / "vocoder.safetensors", "istft", arrays_of(vocoder), vocoder.config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(*more: object) -> list[str]:
    parts = ["--vae", "vae.safetensors", "--vocoder", "vocoder.safetensors", "--device", "cpu"]
    return ["train", "a", "b", "--config", "tiny.toml", *parts, *map(str, more)]


def test_a_codec_is_written_and_its_run_resumes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("--json")) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["codec"] == "sctok-data/codecs/my-tiny"
    assert (found["token_rate"], found["step"]) == (25, 4)
    assert found["validation_mel_distance"] > 0
    assert "training on 8 clips, 0.00 h (cpu, fp32), from step 0 to 4" in printed.err
    assert "step 4/4" in printed.err
    assert list((folder / "sctok-data/train/my-tiny/tensorboard").iterdir())
    before = load_codec("sctok-data/codecs/my-tiny")
    assert main(arguments("--json", "--steps", 6)) == 0
    printed = capsys.readouterr()
    assert "from step 4 to 6" in printed.err
    assert json.loads(printed.out)["step"] == 6
    assert load_codec("sctok-data/codecs/my-tiny").info.token_hash != before.info.token_hash


def test_a_training_can_start_from_a_codec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments()) == 0
    further = ["train", "a", "b", "--config", "tiny.toml", "--initial", "my-tiny", "--name", "second"]
    for part in ("vae.safetensors", "vocoder.safetensors", "encoder.safetensors"):
        (folder / part).unlink()  # the codec has its own
    assert main([*further, "--device", "cpu"]) == 0
    first, second = (load_codec(f"sctok-data/codecs/{name}") for name in ("my-tiny", "second"))
    assert sorted(book.k for book in second.tokens.codebooks) == [8, 12]
    assert second.tokens.encoder.hash == first.tokens.encoder.hash
    assert second.info.token_hash != first.info.token_hash
    assert "initial" in second.info.provenance["trained"]["parts"]
    capsys.readouterr()
    assert main([*further, "--encoder", "mini"]) == 2
    assert "its own encoder" in capsys.readouterr().err
    assert main([*further, "--initial", "nowhere"]) == 1
    assert "nowhere is neither a bundled codec" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config", "nothing"], "nothing is neither a file nor one of mini, paper-100"),
        (["--config", "bad.toml"], "unknown stepps"),
        (["--steps", "0"], "--steps"),
        (["--precision", "fp8"], "fp8"),
        (["--name", "../x"], "--name"),
        (["--name", "mini"], "--name"),
        (["--vae", ""], "--vae"),
    ],
)
def test_wrong_usage_is_refused(
    more: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.toml").write_text(CONFIG.replace("steps", "stepps"))
    assert main(arguments(*more)) == 2
    assert message in "".join(capsys.readouterr().err.replace("│", "").split("\n"))


def failure(capsys: pytest.CaptureFixture[str], *more: object) -> str:
    assert main(arguments(*more)) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoder", "mini"], "for the encoder mini; it has merged-8 at 25 of another encoder"),
        (["--codebooks", "8,99"], "no merged codebook of 99 centroids at 25 tokens per second"),
        (["--codebooks", "other.safetensors"], "for 50 tokens per second, the codec for 25"),
        (["--codebooks", "cut.safetensors"], "extracted with this one and the same --padding"),
        (["--vae", "vocoder.safetensors"], "vocoder.safetensors is a part of kind 'istft', not vae"),
        (["--vocoder", "nowhere"], "nowhere"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    more: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = load_weights(folder / "encoder.safetensors").hash
    save_codebook(folder / "other.safetensors", codebook(8, 0, known, 2))
    save_codebook(folder / "cut.safetensors", codebook(8, 0, f"{known}-cut"))
    assert message in failure(capsys, *more)


def test_a_precision_that_the_cpu_cannot_train_in_becomes_fp32(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(devices._faults, ("bf16", CODEC_TRAINING), "LSTM, forward pass: not there")
    assert main(arguments("--steps", 1, "--precision", "bf16")) == 0
    said = capsys.readouterr().err
    assert "training a codec in bf16 does not work on this CPU (LSTM, forward pass: not there)" in said
    assert "(cpu, fp32), from step 0 to 1" in said


def test_broken_files_are_reported_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a" / "broken.wav").write_text("not audio")
    assert main(arguments("--steps", 1)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert len(lines) == 1
    assert "broken.wav: " in lines[0]


def test_only_broken_files_are_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (*(folder / "a").iterdir(), *(folder / "b").iterdir()):
        path.write_text("not audio")
    assert failure(capsys) == "error: no readable audio in a, b"


def test_a_full_disk_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise DiskFullError(f"{path}: the disk is full; make room and run the same command again")

    assert main(arguments("--steps", 2)) == 0
    monkeypatch.setattr(training_run, "save_tensors", full)
    line = failure(capsys, "--steps", 3)
    assert "the checkpoint of step 3 could not be saved, the checkpoint of step 2 is kept" in line
    assert "the disk is full" in line


def test_a_stopped_training_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = training_run.TrainingRun._count

    def stop_in_the_first_step(run: Any, losses: Any) -> None:
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        count(run, losses)

    monkeypatch.setattr(training_run.TrainingRun, "_count", stop_in_the_first_step)
    assert main(arguments()) == 128 + signal.SIGTERM
    assert "stopped: the checkpoint of step 2 is saved" in capsys.readouterr().err
    assert not (folder / "sctok-data/codecs").exists()


def test_a_codec_of_another_training_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sctok-data/codecs/my-tiny").mkdir(parents=True)
    assert "exists and was not made by this training" in failure(capsys)


def test_a_training_continues_without_tensorboard(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(arguments("--steps", 1)) == 0
    assert "install sctok[train] to follow a training in TensorBoard; training continues" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_under_torchrun_train_as_one_with_a_doubled_batch(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*ranks, "-m", "sctok.cli.app", *arguments("--name", "two", "--json")]
    shared = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
    assert shared.returncode == 0, shared.stderr
    assert json.loads(shared.stdout)["codec"] == "sctok-data/codecs/two"  # one rank prints
    assert main(arguments("--name", "one", "--batch-size", "4")) == 0
    one, two = (load_codec(f"sctok-data/codecs/{name}") for name in ("one", "two"))
    for ours, theirs in ((one.decoder.unet, two.decoder.unet), (one.tokens.acoustic, two.tokens.acoustic)):
        for name, value in ours.state_dict().items():
            np.testing.assert_allclose(theirs.state_dict()[name], value, rtol=0, atol=1e-4, err_msg=name)
