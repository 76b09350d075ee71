"""Fixtures of several test folders: the reference signal and weights, a small encoder, the bundled clips."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sctok.audio.windows import WINDOW_SAMPLES, WINDOW_SPAN, window_count
from sctok.features.checkpoints import EncoderWeights
from sctok.features.encoder import AudioMAE, EncoderConfig
from sctok.training.masked_autoencoder import MaskedAutoencoder

from .skips import SkipReport

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when a test first imports it

REFERENCE = Path(__file__).parent / "reference"


def pytest_configure(config: pytest.Config) -> None:
    """Register the report of skips. If the PATH has no ffmpeg, add the one of imageio-ffmpeg."""
    config.pluginmanager.register(SkipReport(config))
    if shutil.which("ffmpeg") is None:
        import imageio_ffmpeg

        folder = config.cache.mkdir("ffmpeg") if config.cache else Path(config.rootpath)
        link = folder / "ffmpeg"
        link.unlink(missing_ok=True)
        link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        os.environ["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])


def cut_windows(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a signal's windows (n, 164,080), and a mask (n,) of the last one."""
    count = window_count(len(samples))
    padded = np.zeros(count * WINDOW_SAMPLES + WINDOW_SPAN - WINDOW_SAMPLES, np.float32)
    padded[: len(samples)] = samples
    waves = np.stack([padded[i * WINDOW_SAMPLES : i * WINDOW_SAMPLES + WINDOW_SPAN] for i in range(count)])
    return waves, np.arange(count) == count - 1


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> Iterator[None]:
    """Let Ctrl-C interrupt this process and those that tests start, even in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module that regenerates the stand-in checkpoints and the test signal."""
    spec = importlib.util.spec_from_file_location("reference_weights", REFERENCE / "reference_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> dict[int, dict[str, NDArray[np.float32]]]:
    """The results of the published code with the stand-in weights, by token rate."""
    return {rate: dict(np.load(REFERENCE / f"golden_{rate}.npz")) for rate in (25, 50, 100)}


@pytest.fixture(scope="session")
def signal_windows(reference: ModuleType) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Windows of the reference signal."""
    return cut_windows(reference.waveform())


@pytest.fixture(scope="session")
def small_weights() -> EncoderWeights:
    """An untrained encoder of width 32 with three blocks."""
    torch.manual_seed(0)
    encoder = MaskedAutoencoder(AudioMAE(EncoderConfig(32, 3, 2)), 16, 1, 1).encoder
    return EncoderWeights("small", encoder.config, {k: v.detach() for k, v in encoder.state_dict().items()}, {})


@pytest.fixture(scope="session")
def samples_folder() -> Path:
    """The bundled clips: speech, music and general."""
    return Path(str(files("sctok.samples")))
