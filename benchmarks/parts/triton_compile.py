"""Compile every shipped kernel configuration ahead of time, without a GPU, and analyse the machine code."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sctok.kernels.triton import operands as triton_operands
from sctok.kernels.triton import pairs as triton_pairs
from sctok.kernels.triton import rescore as triton_rescore
from sctok.kernels.triton import scan as triton_scan
from sctok.kernels.triton import update as triton_update
from sctok.kernels.triton.tiles import TILES, Tile, lighter

FAMILIES = tuple(TILES)
TARGETS = {"ampere": 80, "hopper": 90, "blackwell": 100}  # compute capability that each family is compiled for
SHARED_BYTES = {"ampere": 163 * 1024, "hopper": 227 * 1024, "blackwell": 227 * 1024}

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_TYPES = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp32", "tf32x3": "fp32", "int8": "i8"}
_TENSOR = re.compile(r"(HGMMA|IGMMA|QGMMA|HMMA|IMMA|QMMA|UTC\w*MMA)(\.[\w.]+)?$")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_INTEGERS = {
    "n", "depth", "dim", "tiles", "parts", "capacity", "k", "step", "row_stride", "column_stride",
}  # fmt: skip
_INDICES = {"first_group", "second_group", "count", "pair_rows", "pair_columns", "place"}
_MULTIPLES = {"dim", "depth", "row_stride", "centroid_stride"}  # of 16 in every shape that matters
_LONG = {"rows", "order", "first", "sizes", "ends", "segments"}


@dataclass(frozen=True)
class Variant:
    """One kernel with its types, constants and launch settings, compiled for one target.

    name, operand and family: for reports. signature: type of each argument that is not constant. scores: number in a
    tile of a scan kernel, else 0. target: compute capability times ten.
    """

    name: str
    family: str
    operand: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    target: int
    scores: int = 0
    aligned: tuple[str, ...] = ()
    fused: bool = True


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel.

    registers per thread; stack: bytes per thread; local_loads and local_stores: spill instructions; shared: bytes;
    tensor: tensor-core instructions by name; instructions: all.
    """

    registers: int
    stack: int
    local_loads: int
    local_stores: int
    shared: int
    tensor: Mapping[str, int] = field(default_factory=dict)
    instructions: int = 0

    @property
    def spills(self) -> bool:
        """Whether the kernel touches local memory."""
        return bool(self.stack or self.local_loads or self.local_stores)


def shipped_variants(family: str) -> list[Variant]:
    """Return every configuration that a GPU of the family would launch."""
    scans = [
        _scan_variant(kernel, family, operand, tile)
        for operand, tile in TILES[family].items()
        for kernel in (triton_scan._scan_groups_kernel, triton_scan._emit_candidates_kernel)
    ]
    return scans + _row_variants(family)


def compile_variant(variant: Variant) -> Any:
    """Compile one variant and return Triton's CompiledKernel.

    Raises:
        RuntimeError: this process runs kernels in the interpreter (TRITON_INTERPRET=1) and cannot compile.
    """
    if not isinstance(variant.kernel, JITFunction):
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    names = variant.kernel.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(variant.kernel, signature, dict(variant.constants), attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": variant.fused}
    return triton.compile(source, target=GPUTarget("cuda", variant.target, 32), options=options)


def resources_of(compiled: Any) -> Resources:
    """Read a compiled kernel's resources from its machine code."""
    usage = _tool("cuobjdump", compiled, "--dump-resource-usage")
    code = machine_code(compiled)
    tensor: dict[str, int] = {}
    for _, opcode, _ in code:
        if _TENSOR.match(opcode):
            tensor[opcode] = tensor.get(opcode, 0) + 1
    opcodes = [opcode.split(".")[0] for _, opcode, _ in code]
    return Resources(
        registers=_number(usage, "REG"),
        stack=_number(usage, "STACK"),
        local_loads=opcodes.count("LDL"),
        local_stores=opcodes.count("STL"),
        shared=int(compiled.metadata.shared),
        tensor=tensor,
        instructions=len(code),
    )


def problems_of(variant: Variant, resources: Resources) -> list[str]:
    """Return the reasons not to ship a configuration: use of local memory, or too much shared memory."""
    name = f"{variant.name} ({variant.operand}, sm_{variant.target})"
    problems = []
    if resources.spills:
        problems.append(f"{name} uses local memory: {resources.stack} bytes of stack per thread")
    limit = SHARED_BYTES[variant.family]
    if resources.shared > limit:
        problems.append(f"{name} takes {resources.shared} bytes of shared memory, of {limit}")
    return problems


def machine_code(compiled: Any) -> list[tuple[int, str, str]]:
    """Return (address, opcode, operands) of every instruction."""
    text = _tool("cuobjdump", compiled, "-sass")
    return [(int(address, 16), opcode, rest) for address, opcode, rest in _INSTRUCTION.findall(text)]


def instructions_per_score(compiled: Any, scores: int, warps: int, depth: int, dim: int, terms: int = 1) -> float:
    """Return executed non-tensor instructions per thread and score of the tile loop, counted from the machine code.

    Backward branches give the loops. The inner loop around tensor instructions runs over D, and the outer one over the
    centroids. Instructions of the inner loop count once per step, and the other instructions of the tile loop once per
    tile, whether they are executed or not. A step covers as much of D as its tensor instructions multiply.

    Args:
        scores: number in a tile. warps: of the program. dim: D. depth: D of one step in the source, used if the
            instruction does not state its shape. terms: products for each product, 3 for tf32x3.
    """
    code = machine_code(compiled)
    tensor = [address for address, opcode, _ in code if _TENSOR.match(opcode)]
    loops = sorted(_loops(code), key=lambda loop: loop[1] - loop[0])
    around = [loop for loop in loops if any(loop[0] <= address <= loop[1] for address in tensor)]
    if not around:
        raise ValueError("no loop with tensor instructions")
    inner = around[0]
    outer = next((loop for loop in around if loop[0] <= inner[0] and loop[1] >= inner[1] and loop != inner), None)
    threads = 32 * warps / scores
    if outer is None:
        return _plain(code, inner) * threads
    inside = _covered(code, inner, scores * terms, warps, depth)
    peeled = _covered(code, outer, scores * terms, warps, depth) - inside
    steps = max(0.0, (dim - peeled) / inside)
    return (_plain(code, outer) - _plain(code, inner) + steps * _plain(code, inner)) * threads


def _loops(code: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Return (first, last) addresses of every loop, with the farthest branch back to each head."""
    last: dict[int, int] = {}
    for address, opcode, rest in code:
        target = re.search(r"0x([0-9a-f]+)\s*$", rest.strip())
        if opcode.startswith("BRA") and target and int(target[1], 16) < address:
            last[int(target[1], 16)] = max(address, last.get(int(target[1], 16), 0))
    return list(last.items())


def _plain(code: list[tuple[int, str, str]], loop: tuple[int, int]) -> int:
    """Count the instructions of a loop that are neither tensor instructions nor padding."""
    inside = (opcode for address, opcode, _ in code if loop[0] <= address <= loop[1])
    return sum(not _TENSOR.match(opcode) and not opcode.startswith("NOP") for opcode in inside)


def _covered(code: list[tuple[int, str, str]], loop: tuple[int, int], scores: int, warps: int, depth: int) -> float:
    """Return the part of D that the tensor instructions of a loop multiply for one tile."""
    products, unknown = 0.0, 0
    for address, opcode, _ in code:
        if loop[0] <= address <= loop[1] and _TENSOR.match(opcode):
            products += _products(opcode) * warps
            unknown += opcode.startswith("UTC")
    return float(depth) if unknown else products / scores


def _products(opcode: str) -> float:
    """Return the multiplications of one tensor instruction that one warp accounts for."""
    group = re.search(r"(\d+)x(\d+)x(\d+)", opcode)
    if group:
        return int(group[1]) * int(group[2]) * int(group[3]) / 4
    shape = re.search(r"\.(16|8)8(\d+)", opcode) or re.search(r"\.(16)(8)(\d+)", opcode)
    if shape is None:
        return 0.0
    return int(shape[1]) * 8 * int(shape[shape.lastindex or 2])


def _scan_variant(kernel: Any, family: str, operand: str, tile: Tile) -> Variant:
    groups = kernel is triton_scan._scan_groups_kernel
    tile = tile if groups else lighter(tile)
    constants = {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "SLOTS": tile.slots,
        "INTEGER": operand == "int8",
        "PRECISION": operand if operand.startswith("tf32") else "tf32",
        "DESCRIPTORS": tile.descriptors,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {argument: _type_of(argument) for argument in kernel.arg_names if argument not in constants}
    for argument, rows in (("x", tile.rows), ("c", tile.columns)):
        kind = _TYPES[operand]
        signature[argument] = f"tensordesc<{kind}[{rows}, {tile.depth}]>" if tile.descriptors else f"*{kind}"
    aligned = (*(key for key, value in signature.items() if value.startswith("*")), "depth")
    return Variant(
        name="groups" if groups else "candidates",
        family=family,
        operand=operand,
        kernel=kernel,
        signature=signature,
        constants=constants,
        warps=tile.warps,
        stages=tile.stages,
        target=TARGETS[family],
        scores=tile.rows * tile.columns,
        aligned=aligned,
    )


def _row_variants(family: str) -> list[Variant]:
    """Return the other kernels: rounding of points, float32 scores, and both passes of the update."""
    variants = []
    segments = {"ROWS": triton_update.ROWS_AT_ONCE, "WIDTH": triton_update.BLOCK}
    combine = {"ROWS": triton_update.PARTIALS_AT_ONCE, "WIDTH": triton_update.BLOCK}
    parts = {"parts": "*fp64", "sums": "*fp64"}
    variants.append(_row_variant("segment sums", family, "fp64", triton_update._segment_kernel, segments, parts))
    variants.append(_row_variant("combine sums", family, "fp64", triton_update._combine_kernel, combine, parts))
    for operand, mode in triton_operands.MODES.items():
        rounding = {"MODE": mode, "ROWS": triton_operands.ROWS_AT_ONCE, "BLOCK": 128}
        types = {"matrix": f"*{_TYPES[operand]}"}
        variants.append(_row_variant("round", family, operand, triton_operands._quantise_kernel, rounding, types))
    for width in sorted({tile.columns // tile.slots for tile in TILES[family].values()} | {1}):
        scores = {"ITEMS": triton_rescore.SCORES_AT_ONCE // width, "WIDTH": width, "DEPTH": triton_rescore.DEPTH}
        name = f"float32 scores, {width} wide"
        variants.append(_row_variant(name, family, "fp32", triton_rescore._float32_scores_kernel, scores, {}))
    for tile in sorted({(tile.slots, tile.columns // tile.slots) for tile in TILES[family].values()}):
        best = {"SLOTS": tile[0], "WIDTH": tile[1], "ROWS": triton_rescore.ROWS, "DEPTH": triton_rescore.DEPTH}
        name = f"best of groups, {tile[1]} wide"
        variants.append(_row_variant(name, family, "fp32", triton_rescore._best_kernel, best, {"labels": "*i64"}))
    for dim in (768, 1536, 3072):
        name = f"float64 pairs, D = {dim}"
        pairs = {**(triton_pairs.constants_of(dim) or {}), "ALL": False, "centroid_column_stride": 1}
        types = {"result": "*fp64", "columns": "*i64", "centroid_stride": "i32"}
        variants.append(_row_variant(name, family, "fp64", triton_pairs._pair_kernel, pairs, types))
    return variants


def _row_variant(
    label: str, family: str, operand: str, kernel: Any, constants: dict[str, Any], types: dict[str, str]
) -> Variant:
    names = kernel.arg_names
    constants = {**constants, **({"column_stride": 1} if "column_stride" in names else {})}
    signature = {name: types.get(name, _type_of(name)) for name in names if name not in constants}
    aligned = tuple(key for key, value in signature.items() if value.startswith("*") or key in _MULTIPLES)
    return Variant(
        label,
        family,
        operand,
        kernel,
        signature,
        constants,
        4,
        3,
        TARGETS[family],
        aligned=aligned,
        fused=kernel is not triton_pairs._pair_kernel,
    )


def _type_of(argument: str) -> str:
    """Return the type of a kernel argument by its name, except for operands."""
    if argument in _INTEGERS:
        return "i32"
    if argument in _INDICES:
        return "*i32"
    if argument in _LONG:
        return "*i64"
    return "*fp64" if argument == "scale" else "*fp32"


def _number(usage: str, key: str) -> int:
    found = re.search(rf"{key}:(\d+)", usage)
    if found is None:
        raise ValueError(f"no {key} in the resource usage: {usage.strip()!r}")
    return int(found[1])


def _tool(name: str, compiled: Any, *options: str) -> str:
    """Run a tool of the Triton wheel on a compiled kernel and return its output."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(_TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
