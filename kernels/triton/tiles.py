"""Launch settings of the nearest-centroid kernels: one small table by GPU family and operand type."""

from dataclasses import dataclass, replace

import torch

FAMILIES = ("ampere", "hopper", "blackwell")


@dataclass(frozen=True)
class Tile:
    """A tile of `rows` points by `columns` centroids, `depth` dimensions at a time.

    slots: groups of columns in a tile. descriptors: whether tiles come through tensor descriptors (TMA).
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    slots: int
    descriptors: bool


# Hopper's were the fastest of some eighty on an H100 (benchmarks/gpu_tiles.py); the others were never run.
_AMPERE = {
    "bf16": Tile(128, 128, 32, 8, 3, 16, False),
    "fp16": Tile(128, 128, 32, 8, 3, 16, False),
    "tf32": Tile(128, 128, 32, 8, 2, 16, False),
    "tf32x3": Tile(64, 128, 16, 8, 3, 16, False),
    "int8": Tile(128, 128, 64, 8, 3, 16, False),
}
_HOPPER = {
    "bf16": Tile(128, 256, 64, 8, 3, 8, True),
    "fp16": Tile(128, 256, 64, 8, 3, 8, True),
    "tf32": Tile(64, 128, 64, 4, 4, 8, True),
    "tf32x3": Tile(64, 128, 32, 4, 3, 8, True),
    "int8": Tile(128, 128, 128, 4, 3, 8, True),
}
_BLACKWELL = {
    "bf16": Tile(128, 256, 128, 8, 2, 8, True),
    "fp16": Tile(128, 256, 128, 8, 2, 8, True),
    "tf32": Tile(128, 256, 64, 8, 2, 8, True),
    "tf32x3": Tile(64, 128, 32, 8, 3, 8, True),
    "int8": Tile(128, 128, 128, 8, 3, 8, True),
}
TILES = {"ampere": _AMPERE, "hopper": _HOPPER, "blackwell": _BLACKWELL}
TARGETS = {"ampere": 80, "hopper": 90, "blackwell": 100}  # compute capability that each family is compiled for
SHARED_BYTES = {"ampere": 163 * 1024, "hopper": 227 * 1024, "blackwell": 227 * 1024}

_SCORES_PER_THREAD = 64


def lighter(tile: Tile) -> Tile:
    """Return the tile for kernels that hold more beside the scores: half the rows where a thread has many scores."""
    if tile.rows * tile.columns // (32 * tile.warps) <= _SCORES_PER_THREAD:
        return tile
    return replace(tile, rows=tile.rows // 2)


def family_of(device: torch.device) -> str:
    """Return the family whose settings fit a device: by compute capability, "ampere" for CPUs and older GPUs.

    GPUs of compute capability 12 have the instructions of Ampere's family and little shared memory.
    """
    if device.type != "cuda":
        return "ampere"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "hopper", 10: "blackwell", 11: "blackwell"}.get(major, "ampere")
