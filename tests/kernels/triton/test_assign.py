"""The scan kernels return the smallest low-precision score and its lowest index, whatever the tiles."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sctok.kernels.reference import nearest_centroid_reference
from sctok.kernels.triton.assign import Scores, float32_scores, nearest_scores, tile_of
from sctok.kernels.triton.operands import prepare_operand
from sctok.kernels.triton.tiles import TILES, Tile, family_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERANDS = ["fp16", "tf32", "tf32x3", "int8"] + (["bf16"] if DEVICE == "cuda" else [])


def _small(seed: int, *shape: int) -> Tensor:
    """Return small integers: every operand type holds them and every product sums without rounding."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


def _search(points: Tensor, centroids: Tensor, operand: str, tile: Tile | None = None) -> Scores:
    center = torch.zeros(centroids.shape[1], device=DEVICE)
    tile = tile or tile_of(torch.device(DEVICE), operand)
    prepared = prepare_operand(centroids, center, operand, columns=tile.columns, by_norm=False)
    found = nearest_scores(points, prepared, runner_up=True, tile=tile)
    assert found.second_scores is not None
    unit = float(prepared.scale) ** 2
    return Scores(found.labels, found.scores / unit, found.second_labels, found.second_scores / unit)


def _assert_lexicographic(found: Scores, points: Tensor, centroids: Tensor) -> None:
    distances = torch.cdist(points.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    values, order = distances.round().sort(dim=1, stable=True)
    assert torch.equal(found.labels, order[:, 0])
    assert torch.equal(found.labels, nearest_centroid_reference(points, centroids)[0])
    assert found.second_labels is not None
    assert found.second_scores is not None
    if len(centroids) == 1:
        assert (found.second_labels == -1).all()
        assert (found.second_scores == math.inf).all()
    else:
        assert torch.equal(found.second_labels, order[:, 1])
        gap = (found.second_scores - found.scores).double()
        torch.testing.assert_close(gap, values[:, 1] - values[:, 0])


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("family", ["ampere", "hopper"])
def test_ties_take_the_lowest_index_in_every_tile_shape(operand: str, family: str) -> None:
    points, centroids = _small(0, 150, 6), _small(1, 300, 6)
    if operand == "int8":  # a largest value of 127 makes the step of every row a power of two
        points[:, 0], centroids[:, 0] = 127, 127
    _assert_lexicographic(_search(points, centroids, operand, TILES[family][operand]), points, centroids)


@pytest.mark.parametrize(("rows", "k", "dim"), [(0, 9, 5), (1, 1, 1), (15, 9, 5), (63, 128, 16), (129, 129, 40)])
def test_ragged_sizes(rows: int, k: int, dim: int) -> None:
    points, centroids = _small(0, rows, dim), _small(1, k, dim)
    _assert_lexicographic(_search(points, centroids, "fp16"), points, centroids)


@pytest.mark.parametrize("operand", OPERANDS)
def test_scores_are_close_to_true_scores(operand: str) -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = (torch.randn(shape, generator=generator).to(DEVICE) for shape in ((60, 50), (200, 50)))
    center = centroids.mean(dim=0)
    prepared = prepare_operand(
        centroids, center, operand, columns=tile_of(points.device, operand).columns, by_norm=False
    )
    found = nearest_scores(points, prepared)
    chosen = centroids[found.labels].double() - center
    true = chosen.square().sum(dim=1) - 2 * ((points.double() - center) * chosen).sum(dim=1)
    scale = float(prepared.scale) ** 2
    torch.testing.assert_close(found.scores.double() / scale, true, atol=1.0, rtol=0.02)
    best = torch.cdist(points.double(), centroids.double()).amin(dim=1)
    picked = (points.double() - centroids[found.labels].double()).norm(dim=1)
    assert (picked <= best * 1.02).all()
    assert found.second_labels is None


def test_float32_scores_of_single_pairs_and_strided_groups() -> None:
    points, centroids = _small(0, 20, 33), _small(1, 50, 33)
    prepared = prepare_operand(centroids, torch.zeros(33, device=DEVICE), "fp16", columns=128, by_norm=False)
    rows = torch.tensor([3, 3, 19, 0, 7], device=DEVICE)
    first = torch.tensor([0, 41, 9, 49, 2], device=DEVICE)
    scores = float32_scores(points, rows, first, prepared, width=2, step=8)
    squares, products = centroids.square().sum(dim=1), points @ centroids.T
    expected = torch.full((5, 2), math.inf, device=DEVICE)
    for item in range(5):
        for place in range(2):
            column = int(first[item]) + 8 * place
            if column < 50:
                expected[item, place] = squares[column] - 2 * products[rows[item], column]
    assert torch.equal(scores, expected * float(prepared.scale) ** 2)


def test_cpus_get_the_plain_path() -> None:
    assert family_of(torch.device("cpu")) == "ampere"
    assert not any(tile.descriptors for tile in TILES["ampere"].values())
