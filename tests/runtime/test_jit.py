"""Compiled code on CPUs with fewer features, without a cache folder and without a compiler, in child processes."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from tests.masked_cpu import MASK

_NARROW = """
import torch
from sctok.kernels import assign
from sctok.kernels.cpu import ordered_gemm, vnni
from sctok.kernels.assign import nearest_centroid
from sctok.kernels.reference import nearest_centroid_reference

assert (vnni.vnni_bits(), vnni.BITS) == ({bits}, 256)
assign.scan_pays = lambda *_: True
for rows, k, dim, rank in ((700, 150, 40, 40), (1500, 130, 96, 8)):
    values = torch.randn(rows + k, rank) @ torch.randn(rank, dim) + 3
    found = nearest_centroid(values[:rows].repeat(30, 1), values[rows:], runner_up=True)
    assert torch.equal(found.labels[:rows], nearest_centroid_reference(values[:rows], values[rows:])[0])
    assert torch.equal(found.labels[:rows], found.labels[-rows:])
assert ordered_gemm.WIDTH == 8
"""


@pytest.mark.parametrize(("name", "products", "bits"), [("alderlake", "avxvnni", 256), ("haswell", "", 0)])
def test_cpus_without_avx512_use_registers_of_256_bits(name: str, products: str, bits: int, tmp_path: Path) -> None:
    if products and not llvm.get_host_cpu_features().get(products):
        pytest.skip("this CPU has no AVX-VNNI")
    features = f"+avx,+avx2,+fma,+bmi,+bmi2,+popcnt{',+' + products if products else ''}"
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    environment = {**os.environ, **settings, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = _NARROW.replace("{bits}", str(bits))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_COMPILED = """
import numpy as np
import torch
from numba.core import caching

caching.CacheImpl._locator_classes = {locators}
from sctok.kernels.cpu import scan
from sctok.kernels.assign import nearest_centroid
from sctok.kernels.reference import nearest_centroid_reference

values = torch.randn({rows} + 400, 64)
found = nearest_centroid(values[400:], values[:400])
assert torch.equal(found.labels, nearest_centroid_reference(values[400:], values[:400])[0])
assert scan.exact_distance(np.ones(3), np.zeros(3), np.zeros(3)) == 3
"""


@pytest.mark.parametrize("kind", ["no folder for the cache", "no compiler"])
def test_without_a_cache_folder_or_a_compiler(kind: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = _COMPILED.format(rows=60, locators="[]")
    if kind == "no compiler":
        environment["NUMBA_DISABLE_JIT"] = "1"
        code = _COMPILED.format(rows=700, locators="caching.CacheImpl._locator_classes")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("set NUMBA_CACHE_DIR" in done.stderr) == (kind == "no folder for the cache")


_FEATURES = """
import torch
from sctok.kernels.cpu import ordered_gemm, vnni
from sctok.runtime.jit import compiled_features

features = compiled_features()
print(torch.backends.cpu.get_cpu_capability(), vnni.vnni_bits(), ordered_gemm.WIDTH)
print(any("avx512" in name or "vnni" in name for name in features), "avx2" in features)
"""


def seen(**settings: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _FEATURES], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_masked_cpu_has_avx2() -> None:
    assert seen(**MASK) == ["AVX2", "0", "8", "False", "True"]


@pytest.mark.parametrize(
    "setting", [{"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}]
)
def test_without_a_compiler_or_for_a_generic_cpu_there_are_no_features(setting: dict[str, str]) -> None:
    assert seen(**setting)[1:] == ["0", "8", "False", "False"]
