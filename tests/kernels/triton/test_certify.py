"""Certified search returns the float64 argmin and runner-up on easy, ragged and adversarial input."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from sctok.kernels.assign import prepare_centroids
from sctok.kernels.reference import nearest_centroid_reference, squared_distances
from sctok.kernels.triton import certify as triton_certify
from sctok.kernels.triton import operands as triton_operands
from sctok.kernels.triton import pairs as triton_pairs
from sctok.kernels.triton import rescore as triton_rescore
from sctok.kernels.triton.certify import Certified, certified_labels
from sctok.kernels.triton.operands import CentroidOperand, prepare_operand, quantise_points
from sctok.kernels.triton.tiles import TILES, Tile, family_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 products are wrong in the interpreter of Triton.
OPERANDS = ["fp16", "tf32", "tf32x3", "int8"] + (["bf16"] if DEVICE == "cuda" else [])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each program do more, because the interpreter has a cost per program."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_rescore, "SCORES_AT_ONCE", 1 << 13)
        monkeypatch.setattr(triton_operands, "ROWS_AT_ONCE", 1 << 10)
        monkeypatch.setattr(triton_pairs, "VALUES_AT_ONCE", 1 << 16)


def _normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(DEVICE)


def _prepare(centroids: Tensor, operand: str = "fp16", tile: Tile | None = None) -> CentroidOperand:
    prepared = prepare_centroids(centroids)
    return prepare_operand(prepared.centroids, prepared.center, operand, tile)


def _two_nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    order = squared_distances(points[:, None], centroids[None]).sort(dim=1, stable=True).indices
    assert torch.equal(order[:, 0], nearest_centroid_reference(points, centroids)[0])
    return order[:, 0], order[:, min(1, len(centroids) - 1)]


def _assert_exact(points: Tensor, centroids: Tensor, operand: str = "fp16", tile: Tile | None = None) -> Certified:
    found = certified_labels(points, _prepare(centroids, operand, tile), runner_up=True)
    first, second = _two_nearest(points, centroids)
    assert torch.equal(found.labels, first), f"{int((found.labels != first).sum())} labels differ"
    assert found.second_labels is not None
    expected = second if len(centroids) > 1 else torch.full_like(first, -1)
    assert torch.equal(found.second_labels, expected), f"{int((found.second_labels != expected).sum())} runners-up"
    nearest = certified_labels(points, _prepare(centroids, operand, tile))
    assert torch.equal(nearest.labels, first)
    assert nearest.second_labels is None
    return nearest


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("family", ["ampere", "hopper"])
def test_every_operand_and_family(operand: str, family: str) -> None:
    _assert_exact(_normal(0, 70, 70), _normal(1, 300, 70), operand, TILES[family][operand])


@pytest.mark.parametrize(
    ("rows", "k", "dim"), [(0, 9, 5), (1, 1, 1), (15, 2, 1), (63, 129, 33), (500, 9, 5), (129, 257, 7)]
)
def test_ragged_sizes(rows: int, k: int, dim: int) -> None:
    _assert_exact(_normal(0, rows, dim), _normal(1, k, dim))


@pytest.mark.slow
def test_more_rows_than_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = _normal(0, 65_537, 3), _normal(1, 19, 3)
    tile = None
    if DEVICE == "cpu":
        tile = replace(TILES["ampere"]["fp16"], rows=2048)
        monkeypatch.setattr(triton_rescore, "ROWS", 1024)
    found = certified_labels(points, _prepare(centroids, tile=tile))
    assert torch.equal(found.labels, nearest_centroid_reference(points, centroids)[0])


def test_most_rows_of_easy_data_need_one_scan_and_no_float64() -> None:
    found = _assert_exact(_normal(0, 500, 64), _normal(1, 200, 64))
    assert found.reopened < 10
    assert found.rescored < 10


def test_centering_removes_a_large_common_offset() -> None:
    found = _assert_exact(_normal(0, 200, 40) + 1000, _normal(1, 200, 40) + 1000)
    assert found.reopened < 10


@pytest.mark.parametrize("operand", OPERANDS)
def test_duplicates_take_the_lowest_index(operand: str) -> None:
    base = _normal(0, 30, 12)
    found = _assert_exact(base.repeat(4, 1), base.repeat(9, 1), operand)
    assert found.rescored == 120


def test_identical_centroids_take_the_lowest_index() -> None:
    _assert_exact(_normal(0, 40, 8), _normal(1, 1, 8).expand(300, 8))


@pytest.mark.parametrize("operand", OPERANDS)
def test_near_ties_one_ulp_apart(operand: str) -> None:
    centroids = _normal(1, 60, 24).repeat(3, 1)
    centroids[60:120, 0] += 2.0**-22
    _assert_exact(_normal(0, 60, 24), centroids, operand)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("where", ["coordinate", "centroid", "point"])
def test_dominating_values(operand: str, where: str) -> None:
    points, centroids = _normal(0, 60, 20), _normal(1, 150, 20)
    if where == "coordinate":
        points[:, 3] *= 1e6
        centroids[:, 3] *= 1e6
    elif where == "centroid":
        centroids[7] *= 1e8
    else:
        points[3] *= 1e12
        points[4] *= 1e30
    _assert_exact(points, centroids, operand)


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-120, 1e37, 3e38])
def test_subnormals_and_values_near_the_largest(scale: float) -> None:
    levels = torch.arange(-1, 2, dtype=torch.float32, device=DEVICE)
    centroids = torch.cartesian_prod(levels, levels, levels) * scale
    _assert_exact(_normal(0, 30, 3).round().clamp(-1, 1) * scale, centroids)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200])
def test_float64_beyond_the_range_of_float32(scale: float) -> None:
    _assert_exact(_normal(0, 20, 5, dtype=torch.float64) * scale, _normal(1, 9, 5, dtype=torch.float64) * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.uint8])
def test_other_types(dtype: torch.dtype) -> None:
    points, centroids = _normal(0, 40, 7) * 10, _normal(1, 11, 7) * 10
    _assert_exact(points.abs().to(dtype), centroids.abs().to(dtype))


def test_float64_points_closer_than_float32_resolves() -> None:
    centroids = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64, device=DEVICE)
    points = torch.tensor([[1.0 + 0.4e-12], [1.0 + 0.6e-12]], dtype=torch.float64, device=DEVICE)
    assert _assert_exact(points, centroids).labels.tolist() == [0, 1]


def test_strided_points() -> None:
    wide = _normal(0, 90, 120)
    _assert_exact(wide.T[::2, ::3], wide.T[1:41, ::3])


def test_small_blocks_and_a_short_candidate_list_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = _normal(0, 100, 6).round(decimals=1), _normal(1, 300, 6).round(decimals=1)
    monkeypatch.setattr(triton_certify, "_BLOCK_ROWS", 33)
    monkeypatch.setattr(triton_certify, "_CAPACITY", 1)
    assert _assert_exact(points, centroids, "int8").reopened > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_by_row(value: float) -> None:
    points, centroids = _normal(0, 30, 4), _prepare(_normal(1, 8, 4))
    points[17, 2] = value
    with pytest.raises(ValueError, match="point 117 holds NaN or infinity"):
        certified_labels(points, centroids, first_row=100)


def test_unknown_operands_are_refused() -> None:
    with pytest.raises(ValueError, match="operand 'fp8'"):
        _prepare(_normal(0, 3, 2), "fp8")
    with pytest.raises(ValueError, match="at most 131072 dimensions"):
        prepare_operand(torch.zeros(1, 131_073), torch.zeros(131_073), "int8")


@pytest.mark.parametrize("operand", ["bf16", "fp16", "tf32", "tf32x3", "int8"])
def test_bounds_hold_for_the_rounded_operands(operand: str) -> None:
    """|x̂·ĉ - y·z| stays within the bound of residuals and norms, and the bounds are close to the true norms."""
    points, centroids = _normal(0, 50, 37) * 3 + 1, _normal(1, 140, 37)
    center = centroids.mean(dim=0)
    c = prepare_operand(centroids, center, operand, TILES["ampere"][operand])
    p = quantise_points(points, c)
    factor = float(c.scale)
    y = (points.double() - center.double()) * factor
    z = (centroids.double() - center.double())[c.ids[: c.k]] * (-2 * factor)
    rounded_y = p.matrix.double()[:, :37] * (p.row_scale.double()[:, None] if operand == "int8" else 1)
    rounded_z = c.matrix.double()[: c.k, :37] * c.column_scale.double()[: c.k, None]
    assert (p.matrix.double()[:, 37:] == 0).all()
    for bound, rows in ((p.residuals, y - rounded_y), (p.norms, rounded_y), (p.lengths, y)):
        norm = rows.norm(dim=1)
        assert (bound.double() >= norm).all()
        assert (bound.double() <= norm * 1.01 + y.norm(dim=1) * 1e-6).all()
    tiles = torch.arange(c.k, device=DEVICE) // 128
    bound = p.residuals.double()[:, None] * c.tile_norms.double()[tiles]
    bound += p.norms.double()[:, None] * c.tile_residuals.double()[tiles]
    error = (rounded_y @ rounded_z.T - y @ z.T).abs()
    assert (error <= bound).all()
    assert (c.offsets[: c.k].double() <= z.square().sum(dim=1) / 4).all()
    assert c.offsets[c.k :].isinf().all()


def test_cpus_use_no_descriptors() -> None:
    assert family_of(torch.device("cpu")) == "ampere"
    assert not any(tile.descriptors for tile in TILES["ampere"].values())


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-60, 60), offset=st.floats(-1e4, 1e4), bits=st.integers(0, 16))
def test_offsets_scales_and_quantisation(seed: int, exponent: int, offset: float, bits: int) -> None:
    values = (_normal(seed, 40, 6) * 2.0**bits).round() * 2.0**-bits + offset
    values *= 2.0**exponent
    _assert_exact(values[:25], values[25:])
