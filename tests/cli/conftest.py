"""What the tests of commands share: a small codec on disk and audio to give it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.codec.tiny import tiny_parts

from sctok.cli.app import main
from sctok.codec.codec import Codec
from sctok.codec.storage.codec_folder import load_codec, save_codec


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory):
    """The folder of an untrained codec of 25 tokens per second."""
    folder = tmp_path_factory.mktemp("codecs") / "tiny"
    save_codec(folder, tiny_parts())
    return folder


@pytest.fixture(scope="session")
def small_codec(codec_folder):
    """The same codec, loaded."""
    return Codec(load_codec(codec_folder), torch.device("cpu"), "fp32")


@pytest.fixture
def sctok(codec_folder, capsys):
    """Run a codec command; return its exit code, what it printed and what it said."""

    def run(command: str, *arguments: object) -> tuple[int, str, str]:
        code = main([command, *map(str, arguments), "--codec", str(codec_folder), "--device", "cpu"])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def write_noise(path: Path, samples: int, rate: int = 16_000, channels: int = 1) -> Path:
    """Write a file of noise, seeded by its length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(samples).standard_normal((samples, channels)) * 0.1
    soundfile.write(path, noise, rate, subtype="PCM_16")
    return path
