import subprocess

import pytest
import torch

from sctok.kernels import devices


@pytest.fixture(autouse=True)
def forget_probes():
    devices.cpu_supports.cache_clear()
    yield
    devices.cpu_supports.cache_clear()


def test_a_child_killed_by_a_signal_means_fp32_with_a_warning(monkeypatch, caplog):
    died = subprocess.CompletedProcess([], returncode=-4)
    monkeypatch.setattr(devices.subprocess, "run", lambda *args, **kwargs: died)
    assert devices.resolve_precision("bf16", torch.device("cpu")) == "fp32"
    assert "bf16" in caplog.text


def test_a_child_that_survives_allows_it(monkeypatch):
    monkeypatch.setattr(
        devices.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess([], returncode=0)
    )
    assert devices.resolve_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_child_that_hangs_counts_as_dead(monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(devices.subprocess, "run", hang)
    assert not devices.cpu_supports("fp16")


def test_the_probe_runs_here():
    assert devices.cpu_supports("fp32")


def test_auto_is_full_precision_on_a_cpu():
    assert devices.resolve_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("name", [None, "gpu", "cuda:99", "meta"])
def test_unknown_devices(name):
    with pytest.raises(ValueError, match=name):
        devices.resolve_device(name)


def test_unknown_precision():
    with pytest.raises(ValueError, match="int4"):
        devices.resolve_precision("int4", torch.device("cpu"))
