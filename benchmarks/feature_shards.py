"""What do the checksums of feature shards cost, in CPU seconds per GB and in bytes of the file?

    python benchmarks/feature_shards.py [--rows 163840] [--width 768]

It writes a shard and reads it with its checksums. Then another HDF5 program rewrites it without them, and it is read
again. Each time is the best of five.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from sctok.formats.feature_shards import FeatureShard, FeatureShardWriter

BLOCK_ROWS = 8192
REPEATS = 5
PROVENANCE = {"encoder": "none", "encoder_hash": "0" * 16}


def best_seconds(action: Callable[[], object]) -> float:
    """Return the smallest CPU time of an action in seconds."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return min(seconds)


def write(path: Path, rows: int, width: int) -> None:
    """Write a shard with one clip."""
    block = np.random.default_rng(0).standard_normal((BLOCK_ROWS, width)).astype(np.float16)
    with FeatureShardWriter(path, width=width, provenance=PROVENANCE) as writer:
        writer.begin_clip("clip")
        for _ in range(rows // BLOCK_ROWS):
            writer.append_rows(block)
        writer.finish_clip(rows * 320)


def read(path: Path) -> None:
    """Read a shard in blocks."""
    with FeatureShard(path) as shard:
        for start in range(0, shard.rows, BLOCK_ROWS):
            shard.read(start, min(start + BLOCK_ROWS, shard.rows))


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=163_840)
    parser.add_argument("--width", type=int, default=768)
    arguments = parser.parse_args()
    gigabytes = arguments.rows * arguments.width * 2 / 1e9
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.h5"
        written = best_seconds(lambda: write(path, arguments.rows, arguments.width))
        checked, size = best_seconds(lambda: read(path)), path.stat().st_size
        with h5py.File(path, "r+"):
            pass  # this removes the checksums
        unchecked = best_seconds(lambda: read(path))
        print(f"write: {written / gigabytes:.2f} s/GB")
        print(f"read with checksums: {checked / gigabytes:.2f} s/GB, without: {unchecked / gigabytes:.2f} s/GB")
        print(f"checksums: {size - path.stat().st_size:,} of {size:,} bytes")


if __name__ == "__main__":
    main()
