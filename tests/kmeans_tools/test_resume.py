"""A fit of several codebooks that is stopped at any write and resumed gives the bytes of an uninterrupted fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sctok.formats import files, tensors
from sctok.formats.feature_shards import FeatureShardWriter
from sctok.kmeans_tools import resume
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.domains import DomainPlan, train_codebooks
from sctok.kmeans_tools.resume import save_state
from sctok.kmeans_tools.sources.vectors import ShardSource

SIZES = [12, 20]
SETTINGS: dict[str, dict[str, Any]] = {
    "lloyd": {"algorithm": "lloyd", "iterations": 7, "tol": 0},
    "minibatch": {"algorithm": "minibatch", "block_rows": 300, "iterations": 2},
    "no room for bounds": {"algorithm": "lloyd", "iterations": 3, "memory": 50_000},
}


class StoppedError(BaseException):
    """Simulates the signal that ends the process."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    path = tmp_path_factory.mktemp("features") / "a.h5"
    generator = np.random.default_rng(0)
    with FeatureShardWriter(path, width=5, provenance={"encoder": "mini", "encoder_hash": "m" * 16}) as writer:
        for clip in range(4):
            rows = generator.integers(0, 9, (400, 1)) * 2 + generator.normal(size=(400, 5))
            writer.add_clip(str(clip), rows, 50 * 2560)
    return ShardSource([path], 1)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip syncing to disk to save time."""
    monkeypatch.setattr(files, "_sync", lambda path: None)
    monkeypatch.setattr(files, "sync_folder", lambda path: None)


def train(source: ShardSource, folder: Path, name: str) -> dict[str, bytes]:
    config = KMeansConfig(device="cpu", **SETTINGS[name])
    train_codebooks("x", source, DomainPlan(1, tuple(SIZES), config, folder))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def stop_at(monkeypatch: pytest.MonkeyPatch, wanted: int, *, before: bool) -> list[int]:
    """Stop at one write, before or after its rename; the length of the returned list is the number of writes."""
    writes: list[int] = []

    @contextmanager
    def counted(path: Any) -> Iterator[Path]:
        writes.append(1)
        if len(writes) == wanted and before:
            raise StoppedError
        with files.atomic_path(path) as temporary:
            yield temporary
        if len(writes) == wanted:
            raise StoppedError

    monkeypatch.setattr(tensors, "atomic_path", counted)
    return writes


@pytest.mark.parametrize("name", SETTINGS)
def test_resuming_after_a_stop_at_any_write(
    name: str, source: ShardSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every_write(name, source, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["lloyd", "minibatch"])
def test_resuming_from_checkpoints_of_several_ranks(
    name: str, source: ShardSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "save_state", lambda path, state, vectors: save_state(path, state, vectors=False))
    check_every_write(name, source, tmp_path, monkeypatch)


def check_every_write(name: str, source: ShardSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = stop_at(monkeypatch, 0, before=True)
    expected = train(source, tmp_path / "clean", name)
    assert len(expected) == len(SIZES)
    assert len(writes) > 8
    for wanted in range(1, len(writes) + 1):
        folder = tmp_path / str(wanted)
        stop_at(monkeypatch, wanted, before=wanted % 2 == 0)
        with pytest.raises(StoppedError):
            train(source, folder, name)
        stop_at(monkeypatch, 0, before=True)
        assert train(source, folder, name) == expected, f"write {wanted} of {len(writes)}"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_codebook_does_not_depend_on_the_others(name: str, source: ShardSource, tmp_path: Path) -> None:
    together = train(source, tmp_path / "together", name)
    for k in SIZES:
        config = KMeansConfig(device="cpu", **SETTINGS[name])
        (book,) = train_codebooks("x", source, DomainPlan(1, (k,), config, tmp_path / "separate"))
        assert book.path.read_bytes() == together[book.path.name]
