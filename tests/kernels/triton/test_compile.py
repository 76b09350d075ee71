"""Compiled kernels do not spill and fit in the shared memory of their GPU, in every shipped configuration."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from benchmarks.parts.triton_compile import FAMILIES, Resources, Variant, problems_of

# A process that runs the interpreter cannot compile kernels, so another process does.
COMPILE = """
import json, sys
from benchmarks.parts.triton_compile import compile_variant, machine_code, problems_of, resources_of, shipped_variants
families, wanted = json.loads(sys.argv[1]), [tuple(entry) for entry in json.loads(sys.argv[2])]
found = {family: [] for family in families}
for family in families:
    for variant in shipped_variants(family):
        if (variant.name, variant.operand) in wanted:
            compiled = compile_variant(variant)
            resources = resources_of(compiled)
            fused = sum(opcode.startswith("DFMA") for _, opcode, _ in machine_code(compiled))
            tensor, problems = sum(resources.tensor.values()), problems_of(variant, resources)
            found[family].append([variant.name, variant.operand, tensor, fused, problems])
print(json.dumps(found))
"""
SCANS = [("groups", "fp16"), ("groups", "int8"), ("candidates", "fp16")]
PAIRS = ("float64 pairs, D = 768", "fp64")
OTHERS = [("segment sums", "fp64"), ("combine sums", "fp64"), ("round", "fp16"), PAIRS]


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[tuple[str, str, int, int, list[str]]]]:
    """Return, by family, the name, operand, tensor instructions, fused float64 products and problems of each kernel."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, json.dumps(FAMILIES), json.dumps(SCANS + OTHERS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernel_spills_or_exceeds_shared_memory(
    family: str, compiled: dict[str, list[tuple[str, str, int, int, list[str]]]]
) -> None:
    assert {(name, operand) for name, operand, *_ in compiled[family]} == set(SCANS + OTHERS)
    for name, operand, tensor_instructions, fused, problems in compiled[family]:
        assert problems == []
        assert (tensor_instructions > 0) == ((name, operand) in SCANS)
        assert fused == 0 or (name, operand) != PAIRS, "a fused product changes the last bit of a distance"


def test_spills_and_too_much_shared_memory_are_problems() -> None:
    variant = Variant("groups", "ampere", "fp16", None, {}, {}, 8, 3, 80)
    fine = Resources(registers=255, stack=0, local_loads=0, local_stores=0, shared=163 * 1024)
    assert problems_of(variant, fine) == []
    spilled = Resources(registers=255, stack=8, local_loads=1, local_stores=1, shared=163 * 1024 + 1)
    assert problems_of(variant, spilled) == [
        "groups (fp16, sm_80) uses local memory: 8 bytes of stack per thread",
        "groups (fp16, sm_80) takes 166913 bytes of shared memory, of 166912",
    ]
