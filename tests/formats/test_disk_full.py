"""Every writer on a disk that fills up: one clear error, no partial file, earlier files unchanged."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sctok.formats import files
from sctok.formats.codebooks import Codebook, CodebookInfo, export_npy, save_codebook
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.formats.files import DiskFullError, write_json
from sctok.formats.token_shards import TokenShardWriter

SIZES = {"small": 8, "large": 80_000}


def write_features(path: Path, rows: int) -> None:
    with FeatureShardWriter(path, width=16, provenance={"encoder": "e", "encoder_hash": "h"}) as writer:
        writer.add_clip("a", np.zeros((rows, 16), np.float32), 1)


def write_tokens(path: Path, rows: int) -> None:
    with TokenShardWriter(path, codebook_sizes=(8, 8)) as writer:
        for key in "abc":
            writer.add(key, np.zeros((rows, 2), np.int64), {})


def write_codebook(path: Path, rows: int) -> None:
    info = CodebookInfo("a", (), 1, "e", "h")
    save_codebook(path, Codebook(np.zeros((rows, 16), np.float32), np.zeros(rows), info))


def write_npy(path: Path, rows: int) -> None:
    info = CodebookInfo("a", (), 1, "e", "h")
    export_npy(Codebook(np.zeros((rows, 16), np.float32), np.zeros(rows), info), path.with_suffix(".npy"))


def write_list(path: Path, rows: int) -> None:
    write_json(path, ["text"] * rows)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "features": write_features,
    "tokens": write_tokens,
    "codebook": write_codebook,
    "npy": write_npy,
    "json": write_list,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_at_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    WRITERS[name](tmp_path / "early.x", SIZES["small"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"late\.\w+: the disk is full"):
        WRITERS[name](tmp_path / "late.x", SIZES["small"])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


LIMITED = """
import importlib.util, resource, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("writers", sys.argv[1])
writers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writers)
for name, write in writers.WRITERS.items():
    write(Path(name + ".early"), writers.SIZES["small"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, write in writers.WRITERS.items():
    try:
        write(Path(name + ".late"), writers.SIZES["large"])
    except OSError as error:
        print(name, type(error).__name__, str(error).count("\\n"), error)
"""


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    # The limit on a file's size fails a write as a full disk does, in every library's own way of writing.
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""}
    command = [sys.executable, "-c", LIMITED, __file__]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [[name, "DiskFullError", "0"] for name in WRITERS]
    assert all(f"{name}." in line for name, line in zip(WRITERS, done.stdout.splitlines(), strict=True))
    names = {"npy.npy" if name == "npy" else f"{name}.early" for name in WRITERS}
    assert {path.name for path in tmp_path.iterdir()} == names
