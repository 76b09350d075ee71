"""Run the numeric tests without instructions newer than AVX2: `python -m tests.masked_cpu [options of pytest]`.

Environment variables limit PyTorch, oneDNN and our compiled code. MKL and FAISS have none that works on all CPUs.
"""

import os
import sys

import llvmlite.binding as llvm

MASK = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt",
}
# Tests whose results depend on the CPU's instructions. Tests that mask their own child processes are not repeated.
NUMERIC = (
    "tests/kernels/test_assign.py",
    "tests/kernels/cpu/test_ordered_gemm.py",
    "tests/kernels/cpu/test_lstm.py",
    "tests/kmeans_tools/passes/test_bounds.py",
    "tests/kmeans_tools/passes/test_code_cache.py",
    "tests/kmeans_tools/test_cluster_command.py",
    "tests/features/test_extractor.py",
    "tests/features/test_encoder.py",
    "tests/features/test_goldens.py",
    "tests/codec/models/test_acoustic.py",
    "tests/codec/test_encoding.py",
    "tests/training/test_codec.py::test_a_step_does_not_depend_on_the_steps_before",
    "tests/training/test_codec.py::test_bf16_learns_as_well_as_fp32",
    "tests/training/test_codec.py::test_a_grid_learns_to_estimate_the_latent",
    "tests/codec/test_goldens.py::test_semantic_tokens",
    "tests/codec/test_goldens.py::test_acoustic_tokens_of_another_cpu",
    "tests/codec/test_goldens.py::test_published_operators_on_this_cpu",
)


def main() -> None:
    """Replace this process by pytest, or return if there is nothing to mask."""
    if not llvm.get_host_cpu_features().get("avx512f"):
        print("this CPU has no AVX-512: the tests above ran without it, and are not repeated with its features masked")
        return
    print("the numeric tests again, with the CPU's features masked down to AVX2", flush=True)
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], *NUMERIC]
    os.execve(sys.executable, command, {**os.environ, **MASK})


if __name__ == "__main__":
    main()
