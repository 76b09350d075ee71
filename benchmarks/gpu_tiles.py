"""Which tile is the fastest on this GPU? Tries launch settings of the nearest-centroid scan and prints a table.

    python benchmarks/gpu_tiles.py [--points 262144] [--k 16384] [--dims 768,3072] [--operands fp16,int8] [--json FILE]

The settings in `kernels/triton/tiles.py` come from such a table. Every setting is compiled in worker processes and then
timed for the group scan, which exact labels use. The bounds of its groups are compared with those of the shipped
setting, to find settings that compute something else.
"""

import argparse
import itertools
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from gpu import median_ms
from parts.triton_compile import SHARED_BYTES

from sctok.kernels.assign import prepare_centroids
from sctok.kernels.triton.operands import CentroidOperand, prepare_operand, quantise_points
from sctok.kernels.triton.scan import scan_groups
from sctok.kernels.triton.tiles import Tile, family_of, tile_of

BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "tf32x3": 4, "int8": 1}
SHAPES = [(64, 128), (64, 256), (128, 128), (128, 256), (256, 128), (256, 256), (192, 128)]
WORKERS = 8


def main() -> int:
    """Compile, time and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=262_144)
    parser.add_argument("--k", type=int, default=16_384)
    parser.add_argument("--dims", default="768")
    parser.add_argument("--operands", default="fp16,int8,tf32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_tiles.py: no CUDA device here, nothing was measured", file=sys.stderr)
        return 1
    operands = args.operands.split(",")
    jobs = [(operand, tile) for operand in operands for tile in candidates(operand)]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        works = list(pool.map(compiles, jobs))
    usable = [job for job, fits in zip(jobs, works, strict=True) if fits]
    rows = [row for dim in map(int, args.dims.split(",")) for row in measure(args.points, args.k, dim, usable)]
    for row in sorted(rows, key=lambda row: (row["dim"], row["operand"], row["ms"])):
        print(f"D {row['dim']:5} {row['operand']:6} {row['ms']:9.3f} ms {row['tflops']:7.1f} TFLOP/s  {row['tile']}")
    if args.json:
        args.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n")
    return 0


def candidates(operand: str) -> list[Tile]:
    """Return the settings whose operand tiles may fit in shared memory. The compiler decides."""
    device = torch.device("cuda")
    shared = SHARED_BYTES[family_of(device)]
    found = [tile_of(device, operand)]
    for (rows, columns), depth, warps, stages, slots in itertools.product(
        SHAPES, (64, 128, 256), (4, 8), (2, 3, 4), (8,)
    ):
        held = (rows + columns) * depth * BYTES[operand] * stages
        enough = rows * columns // (32 * warps) <= 128 and rows >= 16 * warps // 2
        inner = depth * BYTES[operand]
        if rows & (rows - 1) == 0 and shared // 3 < held <= shared and enough and inner in (128, 256):
            found.append(Tile(rows, columns, depth, warps, stages, slots, found[0].descriptors))
    return list(dict.fromkeys(found))


def compiles(job: tuple[str, Tile]) -> bool:
    """Compile one setting into the shared cache and return whether it can run."""
    operand, tile = job
    try:
        search(operand, tile, torch.randn(256, 768, device="cuda"), torch.randn(512, 768, device="cuda"))
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{operand} {tile}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
        return False
    return True


def search(operand: str, tile: Tile, points: torch.Tensor, centroids: torch.Tensor) -> Any:
    """Run one group scan."""
    prepared = rounded_centroids(centroids, operand, tile)
    return scan_groups(quantise_points(points, prepared), prepared)


def rounded_centroids(centroids: torch.Tensor, operand: str, tile: Tile) -> CentroidOperand:
    """Round centroids for one setting."""
    prepared = prepare_centroids(centroids)
    return prepare_operand(prepared.centroids, prepared.center, operand, tile)


def measure(n: int, k: int, dim: int, jobs: list[tuple[str, Tile]]) -> list[dict[str, Any]]:
    """Return one row per setting."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    centroids = torch.randn(k, dim, generator=generator, device="cuda")
    points = torch.randn(n, dim, generator=generator, device="cuda").half()
    best: dict[str, torch.Tensor] = {}
    rows = []
    for operand, tile in jobs:
        columns = rounded_centroids(centroids, operand, tile)
        rounded = quantise_points(points, columns)
        groups = scan_groups(rounded, columns)
        lowest = torch.minimum(groups.second_bound, groups.third_bound)
        expected = best.setdefault(operand, lowest)
        # Groups differ between tiles, so only the order of magnitude of the bounds can be compared.
        same = bool(torch.isfinite(lowest).all()) and float((lowest - expected).abs().mean()) < 0.1 * float(
            expected.abs().mean()
        )
        ms = median_ms(lambda r=rounded, c=columns: scan_groups(r, c))
        rows.append(
            {
                "dim": dim,
                "operand": operand,
                "ms": ms,
                "tflops": 2e-9 * n * k * dim / ms if same else 0.0,
                "tile": asdict(tile),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
