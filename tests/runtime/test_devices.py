"""Devices, precisions and the test of low precision in child processes."""

import os
import subprocess
import sys

import pytest
import torch

from sctok.codec.decoding import DECODER
from sctok.features.extractor import ENCODER
from sctok.runtime import devices
from sctok.runtime.devices import Use, low_precision_faults
from sctok.runtime.low_precision import Step, main
from sctok.training.codec import CODEC_TRAINING
from sctok.training.encoder import PRETRAINING

CPU = torch.device("cpu")
FIRST, SECOND = Use("the first", "module:first"), Use("the second", "module:second")


@pytest.fixture(autouse=True)
def no_known_faults(monkeypatch):
    monkeypatch.setattr(devices, "_faults", {})


@pytest.fixture
def children(monkeypatch):
    """Let the next child processes end as listed: printed lines, exit status, standard error."""
    endings, commands = [], []

    def run(command, **_):
        commands.append(command)
        lines, code, errors = endings.pop(0)
        return subprocess.CompletedProcess(command, code, "".join(f"{line}\n" for line in lines), errors)

    monkeypatch.setattr(devices.subprocess, "run", run)
    return endings, commands


def test_a_child_killed_by_a_signal_means_fp32_with_a_warning_that_names_the_operator(children, caplog):
    children[0].append((["started\tmodule:first\tattention"], -4, ""))
    assert devices.resolve_precision("bf16", CPU, [FIRST]) == "fp32"
    assert "the first in bf16 does not work on this CPU (attention: killed by SIGILL)" in caplog.text


def test_another_child_tests_the_uses_after_one_that_killed_its_child(children):
    passed = ["started\tmodule:second\tproducts", "passed\tmodule:second\t"]
    children[0][:] = [(["started\tmodule:first\tattention"], -4, ""), (passed, 0, "")]
    assert low_precision_faults("bf16", [FIRST, SECOND]) == {FIRST: "attention: killed by SIGILL", SECOND: None}
    assert children[1][1][-2:] == ["bf16", "module:second"]


def test_one_use_that_fails_leaves_the_others_their_precision(children, caplog):
    lines = ["started\tmodule:first\tLSTM", "failed\tmodule:first\tmissing", "passed\tmodule:second\t"]
    children[0].append((lines, 0, ""))
    low_precision_faults("bf16", [FIRST, SECOND])
    assert devices.resolve_precision("bf16", CPU, [SECOND]) == "bf16"
    assert devices.resolve_precision("bf16", CPU, [FIRST, SECOND]) == "fp32"
    with pytest.raises(ValueError, match=r"the first in bf16 does not work on this CPU \(LSTM: missing\): use fp32"):
        devices.require_precision("bf16", CPU, FIRST)


def test_a_use_is_tested_once(children):
    children[0].append((["passed\tmodule:first\t"], 0, ""))
    assert low_precision_faults("fp16", [FIRST]) == low_precision_faults("fp16", [FIRST]) == {FIRST: None}


def test_a_child_that_fails_to_start_says_why(children):
    children[0].append(([], 1, "Traceback\nImportError: no torch\n"))
    assert low_precision_faults("bf16", [FIRST]) == {FIRST: "the start of the test: ImportError: no torch"}


def test_a_child_that_hangs_is_a_fault(monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired("python", 1, b"started\tmodule:first\tattention\n")

    monkeypatch.setattr(devices.subprocess, "run", hang)
    assert low_precision_faults("fp16", [FIRST]) == {FIRST: "attention: no result after 120 s"}


def test_full_precision_is_not_tested(children):
    assert devices.resolve_precision("fp32", CPU, [FIRST]) == "fp32"
    devices.require_precision("fp32", CPU, FIRST)
    assert not children[1]


def test_all_steps_run_on_this_cpu():
    assert low_precision_faults("fp32", [ENCODER, DECODER, PRETRAINING, CODEC_TRAINING]) == dict.fromkeys(
        [ENCODER, DECODER, PRETRAINING, CODEC_TRAINING]
    )


_LSTM = """
import torch

lstm = torch.nn.LSTM(8, 16, batch_first=True, bidirectional=True)
with torch.autocast("cpu", torch.bfloat16):
    lstm(torch.randn(2, 5, 8))[0].float().sum().backward()
"""


@pytest.mark.parametrize("widest", ["AVX2", "AVX512_CORE_BF16"])
def test_a_fault_in_training_is_reported_if_and_only_if_the_lstm_of_pytorch_fails(widest, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", widest)
    fault = low_precision_faults("bf16", [CODEC_TRAINING])[CODEC_TRAINING]
    code = subprocess.run([sys.executable, "-c", _LSTM], env=os.environ, capture_output=True, check=False).returncode
    assert (fault is not None and fault.startswith("LSTM, ")) == (code != 0)


def wrong_in_low_precision():
    return [
        Step("right", lambda precision: torch.ones(3)),
        Step("wrong", lambda precision: torch.ones(3) * (1.0 if precision == "fp32" else 1.2)),
    ]


def not_a_number():
    return [Step("lost", lambda precision: torch.full((3,), float("nan")))]


def infinite():
    return [Step("lost", lambda precision: torch.full((3,), float("inf")))]


@pytest.mark.parametrize("steps", [wrong_in_low_precision, not_a_number, infinite])
def test_results_that_are_wrong_or_not_finite_are_a_fault(steps, capsys, monkeypatch):
    use = f"{__name__}:{steps.__name__}"
    monkeypatch.setattr(sys, "argv", ["", "bf16", use])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == f"failed\t{use}\tits results are wrong"


def test_auto_is_full_precision_on_a_cpu():
    assert devices.resolve_precision("auto", CPU, [FIRST]) == "fp32"


@pytest.mark.parametrize("name", [None, "gpu", "cuda:99", "meta"])
def test_unknown_devices(name):
    with pytest.raises(ValueError, match=name):
        devices.resolve_device(name)


def test_unknown_precision():
    with pytest.raises(ValueError, match="int4"):
        devices.resolve_precision("int4", CPU, [])
