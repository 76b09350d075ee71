"""The command line as a user meets it: help, exit codes, one-line errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from sctok.cli.app import main


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "sctok.cli.app", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def one_line(capsys, *arguments):
    """Run a command that fails and return its only line on stderr."""
    code = main([str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 1, error
    return error[-1]


@pytest.mark.parametrize(
    "command", ["demo", "doctor", "inspect", "extract", "cluster", "merge", "tokenize", "pretrain", "pretrain encoder"]
)
def test_every_command_explains_itself(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert "--help" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["extract"],
        ["extract", "x", "--domain", "d", "--device", "zz"],
        ["extract", "x", "--domain", "d", "--precision", "fp8"],
        ["extract", "x", "--domain", "d", "--seed", "-1"],
        ["cluster", "--domain", "x"],
        ["cluster", "--domain", "x", "--k", "many"],
        ["cluster", "--domain", "x", "--k", "4", "--algorithm", "magic"],
        ["cluster", "--domain", "x", "--k", "4", "--backend", "magic"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("sink", ["closed", "/dev/full"])
def test_a_closed_or_full_stdout_gives_no_traceback(sink, tmp_path):
    start = "; from sctok.cli.app import run; run()"
    code = "import os, sys; os.close(1); os.open(sys.argv.pop(1), os.O_WRONLY)" + start
    if sink == "closed":
        code = "import os, sys; sys.argv.pop(1); r, w = os.pipe(); os.close(r); os.dup2(w, 1)" + start
    (tmp_path / "run.json").write_text('{"format": "sctok-run"}')
    command = [sys.executable, "-c", code, sink, "inspect", str(tmp_path / "run.json")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sctok ")


def test_doctor_reports_what_auto_selects(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        "python",
        "torch",
        "triton",
        "faiss-cpu",
        "cuda",
        "ffmpeg",
        "cpu bf16, the encoder",
        "cpu fp16, training a codec",
        "cpu nearest centroids",
        "auto device",
        "auto precision",
    } <= found.keys()


def test_inspect_refuses_foreign_files(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt is not a file that sctok writes" in one_line(capsys, "inspect", tmp_path / "notes.txt")


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert "nowhere" in one_line(capsys, "inspect", tmp_path / "nowhere")


def test_debug_shows_the_traceback(tmp_path):
    done = run("inspect", tmp_path / "nowhere", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", [["extract", "--domain", "x"], ["tokenize"]])
def test_an_empty_folder_is_named(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = one_line(capsys, command[0], tmp_path / "empty", *command[1:], "--root", tmp_path / "root")
    assert "empty" in line


def test_cluster_without_features_names_the_command_to_run(tmp_path, capsys):
    line = one_line(capsys, "cluster", "--domain", "speech", "--k", "4", "--root", tmp_path)
    assert "sctok extract" in line


def test_merge_lists_the_missing_codebooks(tmp_path, capsys):
    line = one_line(capsys, "merge", "--size", "4096", "--root", tmp_path)
    assert all(domain in line for domain in ("general", "speech", "music"))


def test_tokenize_without_codebooks_names_the_command_to_run(samples_folder, tmp_path, capsys):
    line = one_line(capsys, "tokenize", samples_folder / "general", "--root", tmp_path, "--codebook", 8192)
    assert "sctok cluster" in line


@pytest.fixture(scope="module")
def features_root(tmp_path_factory):
    """A work directory with the features of two short tones."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "audio").mkdir()
    for name, pitch in (("low", 200), ("high", 900)):
        soundfile.write(folder / "audio" / f"{name}.wav", np.sin(np.arange(24_000) * pitch / 2500) * 0.2, 16_000)
    assert main(["extract", str(folder / "audio"), "--domain", "tones", "--root", str(folder), "--workers", "0"]) == 0
    return folder


def test_more_centroids_than_vectors_are_refused(features_root, capsys):
    line = one_line(capsys, "cluster", "--domain", "tones", "--k", "100000", "--root", features_root)
    assert "100000" in line
    assert "160" in line  # two clips of 1.5 s: 20 columns of 8 patches


def test_features_of_another_encoder_are_refused(features_root, tmp_path, small_weights, capsys):
    from sctok.features.checkpoints import save_weights

    save_weights(tmp_path / "other.safetensors", small_weights.build(), {})
    audio = features_root / "audio"
    line = one_line(
        capsys,
        "extract",
        audio,
        "--domain",
        "tones",
        "--root",
        features_root,
        "--encoder",
        tmp_path / "other.safetensors",
    )
    assert "encoder" in line


def test_a_codebook_of_another_encoder_is_refused(features_root, tmp_path, small_weights, capsys):
    from sctok.features.checkpoints import save_weights

    save_weights(tmp_path / "other.safetensors", small_weights.build(), {})
    assert main(["cluster", "--domain", "tones", "--k", "4", "--root", str(features_root)]) == 0
    codebook = features_root / "codebooks" / "tones-4-r100.safetensors"
    encoder = tmp_path / "other.safetensors"
    line = one_line(
        capsys, "tokenize", features_root / "audio", "--root", tmp_path, "--codebook", codebook, "--encoder", encoder
    )
    assert "encoder" in line


def test_a_second_run_on_the_same_output_does_nothing(features_root, capsys):
    before = {path: path.read_bytes() for path in sorted((features_root / "features").rglob("*")) if path.is_file()}
    arguments = [
        "extract",
        str(features_root / "audio"),
        "--domain",
        "tones",
        "--root",
        str(features_root),
        "--workers",
        "0",
    ]
    assert main(arguments) == 0
    assert {
        path: path.read_bytes() for path in sorted((features_root / "features").rglob("*")) if path.is_file()
    } == before
