"""Float32 scores of chosen pairs and groups equal the true scores of small integers."""

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sctok.kernels.triton.operands import prepare_operand
from sctok.kernels.triton.rescore import best_of_groups, float32_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _small(seed: int, *shape: int) -> Tensor:
    """Return small integers, whose products sum without rounding."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


def test_float32_scores_of_single_pairs_and_strided_groups() -> None:
    points, centroids = _small(0, 20, 33), _small(1, 50, 33)
    prepared = prepare_operand(centroids, torch.zeros(33, device=DEVICE))
    ordered = centroids[prepared.ids[:50]]
    rows = torch.tensor([3, 3, 19, 0, 7], device=DEVICE)
    first = torch.tensor([0, 41, 9, 49, 2], device=DEVICE)
    scores = float32_scores(points, rows, first, prepared, width=2, step=8)
    squares, products = ordered.square().sum(dim=1), points @ ordered.T
    expected = torch.full((5, 2), math.inf, device=DEVICE)
    for item in range(5):
        for place in range(2):
            column = int(first[item]) + 8 * place
            if column < 50:
                expected[item, place] = squares[column] - 2 * products[rows[item], column]
    assert torch.equal(scores, expected * float(prepared.scale) ** 2)


def test_the_best_column_of_a_group_is_the_first_of_equals() -> None:
    points, centroids = _small(2, 70, 5), _small(3, 200, 5)
    prepared = prepare_operand(centroids, torch.zeros(5, device=DEVICE))
    slots, columns = prepared.tile.slots, prepared.tile.columns
    groups = torch.arange(70, device=DEVICE) % (2 * slots)
    found = best_of_groups(points, groups, prepared)
    ordered = centroids[prepared.ids[:200]]
    scores = ordered.square().sum(dim=1) - 2 * points @ ordered.T
    for row, group in enumerate(groups.tolist()):
        first = group // slots * columns + group % slots
        values, order = scores[row, first : min(200, first // columns * columns + columns) : slots].sort(stable=True)
        assert int(found.place[row]) == int(order[0])
        expected = torch.stack([values[0], values[1]]) * float(prepared.scale) ** 2
        assert torch.equal(torch.stack([found.score[row], found.next_score[row]]), expected)
