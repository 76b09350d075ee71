"""What do the GPU kernels compile to? Registers, spills, shared memory and instructions per score, without a GPU.

    python benchmarks/kernel_report.py [--family hopper] [--operands fp16,int8] [--dims 768,1536,3072] [--json FILE]

It compiles every shipped configuration ahead of time, and the kernels of flash-kmeans if it is installed. The same code
counts both. The loop over centroids is found in the machine code by its backward branches. Instructions of the
loop over D inside it count once per step, all others once per tile. Tensor instructions and NOPs do not count. The
total of a program is divided by the number of scores of its tile.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parts.triton_compile import (
    FAMILIES,
    TARGETS,
    Variant,
    compile_variant,
    instructions_per_score,
    problems_of,
    resources_of,
    shipped_variants,
)

POINTS, CENTROIDS = 1 << 20, 16_384  # shape for which the kernels of flash-kmeans are compiled
FLASH_TYPES = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp32"}
COLUMNS = ("target", "kernel", "operand", "D", "registers", "stack", "LDL", "STL", "shared", "tensor", "per score")


def main() -> int:
    """Compile, print a table, and return 1 if a shipped configuration has a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: all")
    parser.add_argument("--operands", default="bf16,fp16,tf32,tf32x3,int8")
    parser.add_argument("--dims", default="768,1536,3072")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dims = [int(dim) for dim in args.dims.split(",")]
    operands = args.operands.split(",")
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    print(line(COLUMNS))
    for family in args.family or FAMILIES:
        for variant, variant_dims in selected(family, operands, dims):
            entries, found = measure(variant, variant_dims)
            problems += [] if variant.name.startswith("flash-kmeans") else found
            rows += entries
            for entry in entries:
                print(line([entry[column] for column in COLUMNS]), flush=True)
    if importlib.util.find_spec("flash_kmeans") is None:
        print("flash-kmeans: not installed")
    if args.json:
        args.json.write_text(json.dumps({"kernels": rows, "problems": problems}, indent=1))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def selected(family: str, operands: list[str], dims: list[int]) -> Iterator[tuple[Variant, list[int]]]:
    """Yield the variants of sctok and flash-kmeans, each with the dimensions to report."""
    for variant in shipped_variants(family):
        if variant.operand in operands or not variant.scores:
            yield variant, dims if variant.scores else []
    if importlib.util.find_spec("flash_kmeans") is not None:
        for dim in dims:
            for operand in operands:
                if operand in FLASH_TYPES:
                    yield flash_assign(family, operand, dim), [dim]
            yield flash_update(family, dim), [dim]


def measure(variant: Variant, dims: list[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Compile a variant and return one row per dimension (one row if it has none) and its problems."""
    compiled = compile_variant(variant)
    used = resources_of(compiled)
    rows = []
    for dim in dims or [0]:
        count = None
        if variant.scores and dim:
            terms = 3 if variant.operand == "tf32x3" else 1
            count = instructions_per_score(compiled, variant.scores, variant.warps, step_of(variant), dim, terms)
        rows.append(
            {
                "target": f"sm_{variant.target}",
                "kernel": variant.name,
                "operand": variant.operand,
                "D": dim or "any",
                "registers": used.registers,
                "stack": used.stack,
                "LDL": used.local_loads,
                "STL": used.local_stores,
                "shared": used.shared,
                "tensor": " ".join(f"{number}x{name}" for name, number in used.tensor.items()) or "-",
                "per score": "-" if count is None else round(count, 2),
            }
        )
    return rows, problems_of(variant, used)


def step_of(variant: Variant) -> int:
    """Return the part of D that one step of a kernel's inner loop covers."""
    return int(variant.constants.get("DEPTH", variant.constants.get("BLOCK_D", 0)))


def line(cells: Any) -> str:
    """Return one row of the table."""
    widths = (7, 26, 7, 5, 9, 6, 5, 5, 7, 32, 9)
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def flash_assign(family: str, operand: str, dim: int) -> Variant:
    """Return the assignment kernel of flash-kmeans for long rows, with its own settings."""
    import torch
    from flash_kmeans import assign_euclid_triton as flash

    pick = getattr(flash, f"_heuristic_euclid_config_{'a100' if family == 'ampere' else 'h100'}_largeD")
    dtype = torch.float32 if operand == "tf32" else torch.float16
    picked = pick(POINTS, CENTROIDS, dim, dtype)
    sizes = {"B": 1, "N": POINTS, "K": CENTROIDS, "D": dim}
    strides = {
        "stride_x_b": POINTS * dim, "stride_x_n": dim, "stride_x_d": 1,
        "stride_c_b": CENTROIDS * dim, "stride_c_k": dim, "stride_c_d": 1,
        "stride_xsq_b": POINTS, "stride_xsq_n": 1, "stride_csq_b": CENTROIDS, "stride_csq_k": 1,
        "stride_out_b": POINTS, "stride_out_n": 1,
    }  # fmt: skip
    blocks = {name: picked[name] for name in ("BLOCK_N", "BLOCK_K", "BLOCK_D")}
    kind = FLASH_TYPES[operand]
    types = {"x_ptr": f"*{kind}", "c_ptr": f"*{kind}", "x_sq_ptr": "*fp32", "c_sq_ptr": "*fp32", "out_ptr": "*i32"}
    return Variant(
        name="flash-kmeans assign",
        family=family,
        operand=operand,
        kernel=flash._euclid_assign_kernel_split_d,
        signature=types,
        constants={**sizes, **strides, **blocks},
        warps=picked["num_warps"],
        stages=picked["num_stages"],
        target=TARGETS[family],
        scores=picked["BLOCK_N"] * picked["BLOCK_K"],
        aligned=tuple(types),
    )


def flash_update(family: str, dim: int) -> Variant:
    """Return the update kernel of flash-kmeans with its default launch settings."""
    from flash_kmeans import centroid_update_triton as flash

    kernel = flash._centroid_update_chunk_kernel
    types = {
        "x_ptr": "*fp16", "sorted_idx_ptr": "*i32", "sorted_cluster_ptr": "*i32", "sum_ptr": "*fp32",
        "count_ptr": "*i32",
    }  # fmt: skip
    ones = {"stride_x_d": 1, "stride_idx_n": 1, "stride_cluster_n": 1, "stride_sum_d": 1, "stride_count_k": 1}
    strides = [name for name in kernel.arg_names if name.startswith("stride") and name not in ones]
    sizes = {"B": 1, "N": POINTS, "K": CENTROIDS, "D": dim, "BLOCK_N": 256, "D_PAD": flash._pad_d(dim)}
    return Variant(
        name="flash-kmeans update",
        family=family,
        operand="fp16",
        kernel=kernel,
        signature={**types, **dict.fromkeys(strides, "i32")},
        constants={**sizes, **ones},
        warps=4,
        stages=3,
        target=TARGETS[family],
        aligned=(*types, *strides),
    )


if __name__ == "__main__":
    sys.exit(main())
