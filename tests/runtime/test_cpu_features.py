"""The features that our kernels see are those that Numba compiles for, also when they are masked."""

import os
import subprocess
import sys

import pytest
from tests.masked_cpu import MASK

_SEEN = """
import torch
from sctok.kernels.cpu import ordered_gemm, vnni
from sctok.runtime import cpu_features

features = cpu_features.compiled_features()
print(torch.backends.cpu.get_cpu_capability(), vnni.vnni_bits(), ordered_gemm.WIDTH)
print(any("avx512" in name or "vnni" in name for name in features), "avx2" in features)
"""


def seen(**settings: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _SEEN], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_mask_of_the_second_run_leaves_avx2() -> None:
    assert seen(**MASK) == ["AVX2", "0", "8", "False", "True"]


@pytest.mark.parametrize(
    "setting", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}]
)
def test_without_a_compiler_or_for_any_cpu_there_are_none(setting: dict[str, str]) -> None:
    assert seen(**setting)[1:] == ["0", "8", "False", "False"]
