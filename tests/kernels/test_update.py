"""Sums and counts of clusters equal the reference."""

import pytest
import torch

from sctok.kernels.reference import segment_sum_reference
from sctok.kernels.update import centroid_sums


@pytest.mark.parametrize(("rows", "dim", "k"), [(0, 3, 2), (1, 1, 1), (15, 2, 40), (63, 17, 5), (500, 32, 9)])
def test_sums_equal_the_reference(rows: int, dim: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(rows, dim, generator=generator)
    labels = torch.randint(0, k, (rows,), generator=generator)
    sums, counts = centroid_sums(points, labels, k)
    expected_sums, expected_counts = segment_sum_reference(points, labels, k)
    torch.testing.assert_close(sums, expected_sums)
    assert sums.dtype == torch.float64
    assert torch.equal(counts, expected_counts)


def test_float16_features_sum_exactly_in_any_order_and_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    points = (torch.randn(1000, 8, generator=generator) * 100).half()
    labels = torch.randint(0, 5, (1000,), generator=generator)
    whole, _ = centroid_sums(points, labels, 5)
    order = torch.randperm(1000, generator=generator)
    out = None
    for part in order.split(77):
        out = centroid_sums(points[part], labels[part], 5, out=out)
    assert out is not None
    assert torch.equal(out[0], whole)


def test_views_with_strides() -> None:
    points = torch.arange(60, dtype=torch.float32).reshape(6, 10).T[::2]
    labels = torch.tensor([1, 0, 1, 0, 1])
    assert torch.equal(centroid_sums(points, labels, 2)[0], segment_sum_reference(points, labels, 2)[0])


def test_invalid_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), found 0 to 2"):
        centroid_sums(torch.zeros(2, 3), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="2 points need as many labels"):
        centroid_sums(torch.zeros(2, 3), torch.tensor([0]), 2)
