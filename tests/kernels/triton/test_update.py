"""Segmented sums on GPUs equal the reference, with the same bits in every run."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sctok.kernels.reference import segment_sum_reference
from sctok.kernels.triton import update as triton_update
from sctok.kernels.triton.update import add_segmented_sums
from sctok.kernels.update import centroid_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _data(rows: int, dim: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(rows, dim, generator=generator) * 3 + 1
    return points.to(DEVICE), torch.randint(0, k, (rows,), generator=generator).to(DEVICE)


def _zeros(dim: int, k: int) -> tuple[Tensor, Tensor]:
    sums = torch.zeros((k, dim), dtype=torch.float64, device=DEVICE)
    return sums, torch.zeros(k, dtype=torch.int64, device=DEVICE)


def _sums(points: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    out = _zeros(points.shape[1], k)
    add_segmented_sums(points, labels, *out)
    return out


def _assert_reference(sums: Tensor, points: Tensor, labels: Tensor, k: int) -> None:
    expected, _ = segment_sum_reference(points, labels, k)
    magnitude, _ = segment_sum_reference(points.abs(), labels, k)
    assert ((sums - expected).abs() <= len(points) * 2.0**-52 * magnitude).all()


@pytest.mark.parametrize(("rows", "dim", "k"), [(0, 3, 2), (1, 1, 1), (15, 2, 40), (63, 17, 5), (500, 130, 3)])
def test_sums_equal_the_reference(rows: int, dim: int, k: int) -> None:
    points, labels = _data(rows, dim, k)
    sums, counts = _sums(points, labels, k)
    _assert_reference(sums, points, labels, k)
    assert torch.equal(counts, torch.bincount(labels, minlength=k))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 500, 1100])
def test_every_length_of_a_cluster(size: int) -> None:
    points, _ = _data(size, 5, 1)
    labels = torch.full((size,), 1, device=DEVICE)
    sums, _ = _sums(points, labels, 3)
    _assert_reference(sums, points, labels, 3)
    assert (sums[[0, 2]] == 0).all()


def test_scratch_memory_is_written_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = _data(300, 140, 4)
    plain, _ = _sums(points, labels, 4)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert torch.equal(_sums(points, labels, 4)[0], plain)


def test_runs_repeat_bit_for_bit_and_rows_of_other_clusters_do_not_matter() -> None:
    points, labels = _data(400, 20, 6)
    sums, _ = _sums(points, labels, 6)
    assert torch.equal(_sums(points, labels, 6)[0], sums)
    members = labels == 4
    assert torch.equal(_sums(points[members], labels[members], 6)[0][4], sums[4])


def test_float16_points_give_the_bits_of_the_cpu() -> None:
    points, labels = _data(700, 9, 4)
    points = (points * 50).half()
    sums, counts = _sums(points, labels, 4)
    expected, expected_counts = centroid_sums(points.cpu(), labels.cpu(), 4)
    assert torch.equal(sums.cpu(), expected)
    assert torch.equal(counts.cpu(), expected_counts)


def test_float64_points_keep_their_precision() -> None:
    points, labels = _data(300, 4, 3)
    wide = points.double() + 1e-9
    torch.testing.assert_close(_sums(wide, labels, 3)[0], segment_sum_reference(wide, labels, 3)[0])


def test_blocks_add_up() -> None:
    points, labels = _data(300, 4, 3)
    out = _zeros(4, 3)
    for part in range(0, 300, 77):
        add_segmented_sums(points[part : part + 77], labels[part : part + 77], *out)
    _assert_reference(out[0], points, labels, 3)
    assert int(out[1].sum()) == 300


def test_strided_points() -> None:
    points, labels = _data(40, 90, 3)
    view = points.T[::2, ::3]
    labels = torch.arange(len(view), device=DEVICE) % 3
    _assert_reference(_sums(view, labels, 3)[0], view, labels, 3)


def test_tiles_do_not_depend_on_the_dimension() -> None:
    assert triton_update.BLOCK == 128
    points, labels = _data(70, 770, 2)
    _assert_reference(_sums(points, labels, 2)[0], points, labels, 2)
