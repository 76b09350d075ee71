"""Segmented sums agree with the reference within the bound of their reduction depth, bit for bit at every run."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sctok.kernels.reference import segment_sum_reference
from sctok.kernels.triton import update as triton_update
from sctok.kernels.triton.update import SEGMENT, move_sums, segmented_sums
from sctok.kernels.update import centroid_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _data(rows: int, dim: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(rows, dim, generator=generator) * 3 + 1
    return points.to(DEVICE), torch.randint(0, k, (rows,), generator=generator).to(DEVICE)


def _assert_within_bound(sums: Tensor, points: Tensor, labels: Tensor, k: int) -> None:
    expected, _ = segment_sum_reference(points, labels, k)
    magnitude, _ = segment_sum_reference(points.abs(), labels, k)
    terms = (SEGMENT + 1) * 2.0**-24
    assert ((sums - expected).abs() <= terms / (1 - terms) * magnitude).all()


@pytest.mark.parametrize(("rows", "dim", "k"), [(0, 3, 2), (1, 1, 1), (15, 2, 40), (63, 17, 5), (500, 130, 3)])
def test_sums_stay_within_the_bound(rows: int, dim: int, k: int) -> None:
    points, labels = _data(rows, dim, k)
    sums, counts = segmented_sums(points, labels, k)
    _assert_within_bound(sums, points, labels, k)
    assert torch.equal(counts, torch.bincount(labels, minlength=k))
    assert sums.dtype == torch.float64


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 500, 1100])
def test_every_length_of_a_cluster(size: int) -> None:
    points, _ = _data(size, 5, 1)
    labels = torch.full((size,), 1, device=DEVICE)
    sums, _ = segmented_sums(points, labels, 3)
    _assert_within_bound(sums, points, labels, 3)
    assert (sums[[0, 2]] == 0).all()


def test_scratch_memory_is_written_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = _data(300, 140, 4)
    plain, _ = segmented_sums(points, labels, 4)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert torch.equal(segmented_sums(points, labels, 4)[0], plain)


def test_runs_repeat_bit_for_bit_and_rows_of_other_clusters_do_not_matter() -> None:
    points, labels = _data(400, 20, 6)
    sums, _ = segmented_sums(points, labels, 6)
    assert torch.equal(segmented_sums(points, labels, 6)[0], sums)
    alone = labels == 4
    assert torch.equal(segmented_sums(points[alone], labels[alone], 6)[0][4], sums[4])


def test_float64_partials_of_float16_points_give_the_bits_of_the_cpu() -> None:
    points, labels = _data(700, 9, 4)
    points = (points * 50).half()
    sums, counts = segmented_sums(points, labels, 4, partials=torch.float64)
    expected, expected_counts = centroid_sums(points.cpu(), labels.cpu(), 4)
    assert torch.equal(sums.cpu(), expected)
    assert torch.equal(counts.cpu(), expected_counts)


def test_float64_points_keep_their_precision() -> None:
    points, labels = _data(300, 4, 3)
    wide = points.double() + 1e-9
    torch.testing.assert_close(segmented_sums(wide, labels, 3)[0], segment_sum_reference(wide, labels, 3)[0])


def test_blocks_add_up() -> None:
    points, labels = _data(300, 4, 3)
    out = None
    for part in range(0, 300, 77):
        out = segmented_sums(points[part : part + 77], labels[part : part + 77], 3, out=out)
    assert out is not None
    _assert_within_bound(out[0], points, labels, 3)
    assert int(out[1].sum()) == 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights(dtype: torch.dtype) -> None:
    points, labels = _data(300, 7, 5)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=dtype).to(DEVICE)
    sums, counts = segmented_sums(points, labels, 5, weights=weights, partials=torch.float64)
    expected, _ = segment_sum_reference(points.double() * weights.double()[:, None], labels, 5)
    torch.testing.assert_close(sums, expected)
    expected_counts = torch.zeros(5, dtype=torch.float64, device=DEVICE).index_add_(0, labels, weights.double())
    torch.testing.assert_close(counts, expected_counts)


@pytest.mark.parametrize("weighted", [False, True])
def test_moving_points_gives_the_sums_of_the_new_labels(weighted: bool) -> None:
    points, old = _data(500, 12, 6)
    points = points.half()
    new = old.clone()
    new[::7] = (new[::7] + 2) % 6
    weights = torch.arange(500, device=DEVICE).float() % 4 if weighted else None
    out = segmented_sums(points, old, 6, weights=weights, partials=torch.float64)
    assert move_sums(points, old, new, out, weights=weights, partials=torch.float64) == 72
    expected = segmented_sums(points, new, 6, weights=weights, partials=torch.float64)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])
    assert move_sums(points, new, new, out, weights=weights) == 0
    assert torch.equal(out[0], expected[0])


def test_strided_points() -> None:
    points, labels = _data(40, 90, 3)
    view = points.T[::2, ::3]
    labels = torch.arange(len(view), device=DEVICE) % 3
    _assert_within_bound(segmented_sums(view, labels, 3)[0], view, labels, 3)


def test_tiles_do_not_depend_on_the_dimension() -> None:
    assert triton_update.BLOCK == 128
    points, labels = _data(70, 770, 2)
    _assert_within_bound(segmented_sums(points, labels, 2)[0], points, labels, 2)


def test_labels_that_do_not_fit_are_refused() -> None:
    points = torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), found 0 to 2"):
        segmented_sums(points, torch.tensor([0, 2], device=DEVICE), 2)
    with pytest.raises(ValueError, match="2 points need as many labels"):
        segmented_sums(points, torch.tensor([0], device=DEVICE), 2)
    with pytest.raises(ValueError, match="float32 or float64"):
        segmented_sums(points, torch.tensor([0, 1], device=DEVICE), 2, partials=torch.float16)
