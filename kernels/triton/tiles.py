"""Launch settings of the nearest-centroid kernels: one table by GPU family (Ampere, Hopper, Blackwell) and operand."""

from dataclasses import dataclass, replace

import torch

_SCORES_PER_THREAD = 64


@dataclass(frozen=True)
class Tile:
    """A tile of `rows` points by `columns` centroids, read `depth` dimensions at a time.

    slots: groups of columns in a tile. descriptors: whether the kernel reads tiles by tensor descriptors (TMA).
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    slots: int
    descriptors: bool


# Hopper: the fastest of about eighty settings on an H100 (benchmarks/gpu_tiles.py). The others were never run.
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


def tile_of(device: torch.device, operand: str) -> Tile:
    """Return the launch settings of a device for an operand type."""
    return TILES[family_of(device)][operand]


def lighter(tile: Tile) -> Tile:
    """Return a tile with half the rows if a thread has many scores, for kernels that hold more than the scores."""
    if tile.rows * tile.columns // (32 * tile.warps) <= _SCORES_PER_THREAD:
        return tile
    return replace(tile, rows=tile.rows // 2)


def family_of(device: torch.device) -> str:
    """Return the family whose settings fit a device by its compute capability.

    CPUs and older GPUs get "ampere". So do GPUs of compute capability 12, which have its instructions and little shared
    memory.
    """
    if device.type != "cuda":
        return "ampere"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "hopper", 10: "blackwell", 11: "blackwell"}.get(major, "ampere")
