"""The scripts in examples/ run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from sctok.cli.app import main

ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "src" / "sctok" / "samples" / "speech"


def run_example(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_encode_and_decode(tmp_path):
    clip = min(SPEECH.glob("*.flac"), key=lambda path: path.stat().st_size)
    assert "pairs of a semantic and an acoustic token" in run_example("encode_and_decode", clip, tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").frames == soundfile.info(clip).frames


def test_cluster_vectors():
    assert "the same from ten blocks: True" in run_example("cluster_vectors")


def test_read_tokens(tmp_path):
    assert main(["tokenize", str(SPEECH), "--root", str(tmp_path), "--name", "speech", "--workers", "0"]) == 0
    clips = list(SPEECH.glob("*.flac"))
    assert run_example("read_tokens", tmp_path / "tokens" / "speech").count(" streams, ") == len(clips)
