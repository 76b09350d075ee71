"""Codes that are kept never show in a result."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from sctok.kernels import assign
from sctok.kernels.assign import nearest_centroid
from sctok.kernels.cpu.certify import SMALLEST_K
from sctok.kernels.reference import nearest_centroid_reference
from sctok.kmeans_tools.config import KMeansConfig
from sctok.kmeans_tools.fit import fit_codebooks
from sctok.kmeans_tools.passes.code_cache import CodeCache
from sctok.kmeans_tools.sources.vectors import ArraySource


@pytest.fixture(autouse=True)
def scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CPUs without byte products scan, too, at the sizes at which others do."""
    monkeypatch.setattr(assign, "scan_pays", lambda rows, k, dim: k >= SMALLEST_K and rows * k * dim >= 1 << 24)


def structured(rows: int, dim: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, dim, generator=generator)


@pytest.mark.parametrize("memory", [None, 4096])
def test_places_in_any_order_and_pieces(memory: int | None) -> None:
    points = structured(6000, 512, 8)
    cache = CodeCache(len(points), memory)
    for first in (0, 300):
        prepared = cache.prepare(points[first : first + 1000] + 0.01, "exact")
        expected, _ = nearest_centroid_reference(points[:900], prepared.centroids)
        for places in (torch.arange(0, 900, 2), torch.arange(899, -1, -1), torch.arange(6000)):
            coded = cache.coded(points[places], places, prepared)
            labels = nearest_centroid(points[places], prepared, coded=coded).labels
            known = places < 900
            assert torch.equal(labels[known], expected[places[known]])
    assert (cache._held is not None) == (memory is None)


def test_a_fit_gives_the_same_bits_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = structured(5000, 512, 8).half().numpy()
    config = KMeansConfig(device="cpu", iterations=4, seeding="random", tol=0)
    kept = fit_codebooks(ArraySource(vectors), [900, 1000], config)
    monkeypatch.setattr(CodeCache, "coded", lambda *_: None)
    for k, result in fit_codebooks(ArraySource(vectors), [900, 1000], config).items():
        assert np.array_equal(result.centroids, kept[k].centroids)
        assert np.array_equal(result.counts, kept[k].counts)


def test_a_fit_that_goes_on_certifies_as_many_rows_as_one_that_never_stopped(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    scales = torch.linspace(3, 0.2, 64)[:, None]
    latent = torch.randn(5000, 64, generator=generator) @ (scales * torch.randn(64, 192, generator=generator))
    source = ArraySource((latent + 0.3 * torch.randn(5000, 192, generator=generator)).numpy())
    config = KMeansConfig(device="cpu", iterations=4, seeding="random", tol=0)
    whole = fit_codebooks(source, [900], config, checkpoint_dir=tmp_path)[900]
    passes = 0

    def stop(event: Mapping[str, object]) -> None:
        nonlocal passes
        passes += event["event"] == "pass"
        if passes == 2:
            raise KeyboardInterrupt

    for _ in range(3):
        passes = 0
        with pytest.raises(KeyboardInterrupt):
            fit_codebooks(source, [900], config, checkpoint_dir=tmp_path, progress=stop)
    again = fit_codebooks(source, [900], config, checkpoint_dir=tmp_path)[900]
    assert np.array_equal(again.centroids, whole.centroids)
    assert again.certificate == whole.certificate
