"""Distances of pairs have the bits of the reference for every row width."""

import pytest
import torch

pytest.importorskip("triton")

from sctok.kernels.reference import squared_distances
from sctok.kernels.triton.pairs import constants_of, exact_pair_distances

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7, 12, 14, 15, 30, 37, 768, 1536, 3072])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_width_gives_the_bits_of_the_reference(dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dim)
    points = torch.randn(40, dim, generator=generator).to(DEVICE, dtype)
    centroids = torch.randn(9, dim, generator=generator, dtype=torch.float64).to(DEVICE)
    labels = torch.randint(0, 9, (40,), generator=generator).to(DEVICE)
    expected = squared_distances(points, centroids[labels])
    assert torch.equal(exact_pair_distances(points, centroids, None, labels), expected)
    rows = torch.tensor([7, 7, 0, 39], device=DEVICE)
    some = exact_pair_distances(points, centroids, rows, labels[rows])
    assert torch.equal(some, expected[rows])


def test_rows_with_strides_and_no_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(24, 60, generator=generator).to(DEVICE).T[::2]
    centroids = torch.randn(24, 18, generator=generator).to(DEVICE).T[::3]
    labels = torch.arange(len(points), device=DEVICE) % len(centroids)
    expected = squared_distances(points, centroids[labels])
    assert torch.equal(exact_pair_distances(points, centroids, None, labels), expected)
    repeated = exact_pair_distances(points, centroids, labels[3].expand(6), labels[:12:2])
    assert torch.equal(repeated, squared_distances(points[labels[3]], centroids[labels[:12:2]]))
    assert len(exact_pair_distances(points[:0], centroids, None, labels[:0])) == 0


def test_widths_that_the_kernel_supports() -> None:
    assert all(constants_of(dim) is not None for dim in (1, 30, 768, 1536, 3072))
    assert constants_of(37) is None
    assert constants_of(1 << 14) is None
