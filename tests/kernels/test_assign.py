"""The exact assignment equals the float64 argmin on easy, ragged and adversarial input."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sctok.kernels import assign, certify
from sctok.kernels.assign import code_points, nearest_centroid, prepare_centroids
from sctok.kernels.cpu import codes as cpu_codes
from sctok.kernels.cpu import frames as cpu_frames
from sctok.kernels.cpu.encode import RESIDUAL
from sctok.kernels.reference import nearest_centroid_reference, squared_distances
from sctok.runtime import threads
from sctok.runtime.devices import full_float32


@pytest.fixture(autouse=True, scope="module", params=["float", "scan"])
def search(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test with both searches for CPUs, for any problem size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assign, "scan_pays", lambda rows, k, dim: request.param == "scan")
        yield request.param


def _normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _assert_exact(points: Tensor, centroids: Tensor) -> assign.Assignment:
    found = nearest_centroid(points, centroids)
    labels, distances = nearest_centroid_reference(points, centroids)
    wrong = (found.labels != labels).nonzero()
    assert len(wrong) == 0, f"{len(wrong)} of {len(points)} labels differ, first in row {int(wrong[0])}"
    assert torch.equal(found.distances, distances.to(torch.float32))
    _assert_runner_up(points, centroids, labels)
    return found


def _assert_runner_up(points: Tensor, centroids: Tensor, labels: Tensor) -> None:
    found = nearest_centroid(points, centroids, runner_up=True)
    assert found.second_labels is not None
    assert found.second_distances is not None
    assert torch.equal(found.labels, labels)
    k = len(centroids)
    if k == 1:
        assert found.second_labels.eq(-1).all()
        assert found.second_distances.eq(math.inf).all()
        return
    for start in range(0, len(points), 4096):
        part = slice(start, start + 4096)
        every = squared_distances(points[part, None], centroids[None])
        every.scatter_(1, labels[part, None], math.nan)
        best = every.nan_to_num(nan=math.inf, posinf=math.inf).amin(dim=1)
        second = torch.where(every == best[:, None], torch.arange(k), k).amin(dim=1)
        assert torch.equal(found.second_labels[part], second)
        assert torch.equal(found.second_distances[part], best.to(torch.float32))


@pytest.mark.parametrize("rows", [0, 1, 15, 63, 500])
@pytest.mark.parametrize(("k", "dim"), [(1, 1), (3, 1), (7, 5), (64, 33), (257, 96)])
def test_ragged_sizes(rows: int, k: int, dim: int) -> None:
    _assert_exact(_normal(0, rows, dim), _normal(1, k, dim))


def test_more_rows_than_sixteen_bits() -> None:
    _assert_exact(_normal(0, 65_537, 6), _normal(1, 19, 6))


def test_most_rows_of_easy_data_are_certified(search: str) -> None:
    found = _assert_exact(_normal(0, 2000, 64), _normal(1, 100, 64))
    assert found.rescored < {"float": 20, "scan": 800}[search]


def test_centering_keeps_the_bound_tight_under_a_large_offset(search: str) -> None:
    points, centroids = _normal(0, 1000, 64) + 100, _normal(1, 100, 64) + 100
    assert _assert_exact(points, centroids).rescored < {"float": 20, "scan": 400}[search]


def test_scaling_keeps_huge_and_tiny_values_certified(search: str) -> None:
    for scale in (1e30, 1e-30):
        found = _assert_exact(_normal(0, 300, 16) * scale, _normal(1, 20, 16) * scale)
        assert found.rescored < {"float": 10, "scan": 60}[search]


def test_ties_take_the_lowest_index() -> None:
    centroids = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [1, 0]])
    points = torch.tensor([[0.0, 0], [1, 0], [0, 0.5], [-3, 0]])
    assert nearest_centroid(points, centroids).labels.tolist() == [0, 0, 2, 1]


def test_identical_centroids_take_the_lowest_index() -> None:
    found = _assert_exact(_normal(0, 50, 8), _normal(1, 1, 8).expand(40, 8))
    assert found.labels.eq(0).all()
    assert found.rescored == 50


def test_points_that_are_centroids_and_their_duplicates() -> None:
    base = _normal(0, 30, 12)
    _assert_exact(base.repeat(4, 1), base.repeat(3, 1))


def test_near_ties_one_ulp_apart() -> None:
    points = _normal(0, 200, 24)
    centroids = _normal(1, 60, 24).repeat(2, 1)
    centroids[60:, 0] += 2.0**-22
    assert _assert_exact(points, centroids).rescored == 200


def test_one_dominating_coordinate() -> None:
    points, centroids = _normal(0, 300, 20), _normal(1, 50, 20)
    points[:, 3] *= 1e6
    centroids[:, 3] *= 1e6
    _assert_exact(points, centroids)


def test_one_dominating_centroid() -> None:
    points, centroids = _normal(0, 300, 20), _normal(1, 50, 20)
    centroids[7] *= 1e8
    _assert_exact(points, centroids)


def test_one_point_far_from_everything() -> None:
    points, centroids = _normal(0, 40, 20), _normal(1, 50, 20)
    points[3] *= 1e12
    _assert_exact(points, centroids)


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-140, 2.0**-120, 1e37, 3e38])
def test_subnormals_and_values_near_the_largest(scale: float) -> None:
    levels = torch.arange(-1, 2, dtype=torch.float32)
    centroids = torch.cartesian_prod(levels, levels, levels) * scale
    _assert_exact(_normal(0, 60, 3).round().clamp(-1, 1) * scale, centroids)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_beyond_the_range_of_float32(scale: float) -> None:
    _assert_exact(_normal(0, 40, 5, dtype=torch.float64) * scale, _normal(1, 9, 5, dtype=torch.float64) * scale)


def test_subnormal_centroids_among_ordinary_points() -> None:
    _assert_exact(_normal(0, 40, 5), _normal(1, 9, 5) * 1e-42)


def test_zero_variance() -> None:
    found = _assert_exact(torch.full((20, 4), 3.25), torch.full((6, 4), 3.25))
    assert found.distances.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.uint8])
def test_other_types(dtype: torch.dtype) -> None:
    points, centroids = _normal(0, 60, 7) * 10, _normal(1, 11, 7) * 10
    _assert_exact(points.abs().to(dtype), centroids.abs().to(dtype))


def test_float64_points_closer_than_float32_resolves() -> None:
    centroids = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    points = torch.tensor([[1.0 + 0.4e-12], [1.0 + 0.6e-12]], dtype=torch.float64)
    assert _assert_exact(points, centroids).labels.tolist() == [0, 1]


def test_views_and_read_only_memory() -> None:
    array = np.arange(600, dtype=np.float32).reshape(20, 30) % 17
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once that the array is not writable
        points = torch.from_numpy(array)
    found = nearest_centroid(points.T[::2, ::3], points.T[:5, ::3])
    labels, _ = nearest_centroid_reference(points.T[::2, ::3], points.T[:5, ::3])
    assert torch.equal(found.labels, labels)


def test_labels_do_not_depend_on_blocks_or_on_other_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = _normal(0, 300, 16).round(decimals=1), _normal(1, 40, 16).round(decimals=1)
    whole = nearest_centroid(points, centroids)
    single = [nearest_centroid(points[i : i + 1], centroids) for i in range(0, 300, 37)]
    monkeypatch.setattr(assign, "_SCORES", {"cpu": 40 * 7})
    monkeypatch.setattr(assign, "_SCAN_ELEMENTS", 16 * 7)
    monkeypatch.setattr(certify, "_PAIR_ELEMENTS", 48)
    monkeypatch.setattr(threads, "_TASK_ROWS", 20)
    small = nearest_centroid(points, centroids)
    assert torch.equal(whole.labels, small.labels)
    assert torch.equal(whole.distances, small.distances)
    assert [int(found.labels) for found in single] == whole.labels[::37].tolist()


def test_scores_wrong_by_up_to_their_bound_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = _normal(0, 200, 32), _normal(1, 60, 32)
    prepared = prepare_centroids(centroids)
    exact_mm = torch.mm

    def noisy_mm(left: Tensor, right: Tensor) -> Tensor:
        # The largest error of float32 additions in any order, with random signs.
        worst = left.shape[1] * 2.0**-24 * torch.outer(left.norm(dim=1), right.norm(dim=0))
        return exact_mm(left, right) + worst * torch.sign(_normal(2, *worst.shape))

    monkeypatch.setattr(torch, "mm", noisy_mm)
    found = nearest_centroid(points, prepared)
    monkeypatch.undo()
    assert torch.equal(found.labels, nearest_centroid_reference(points, centroids)[0])


def test_autocast_does_not_affect_the_search() -> None:
    points, centroids = _normal(0, 300, 8), _normal(1, 64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_centroid(points, centroids).labels
    assert torch.equal(found, nearest_centroid_reference(points, centroids)[0])


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"), reason="before PyTorch 2.9")
@pytest.mark.parametrize("mode", ["medium", "high"])
def test_low_precision_settings_are_disabled_and_restored(mode: str) -> None:
    modules: Any = torch.backends
    backends = [modules.cuda.matmul, modules.mkldnn.matmul]
    torch.set_float32_matmul_precision(mode)
    try:
        before = [backend.fp32_precision for backend in backends]
        assert "ieee" not in before
        with full_float32():
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == before
        assert torch.get_float32_matmul_precision() == mode
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn.matmul, "fp32_precision"), reason="before PyTorch 2.9")
def test_low_precision_stays_disabled_until_the_last_thread_is_done() -> None:
    backend: Any = torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision("high")
    try:
        before = backend.fp32_precision
        first, second = full_float32(), full_float32()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert backend.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert backend.fp32_precision == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_in_a_single_backend_changes_nothing() -> None:
    backend: Any = torch.backends.cuda.matmul
    before = getattr(backend, "fp32_precision", None)
    try:
        backend.allow_tf32 = True
        if before is not None:
            backend.fp32_precision = "tf32"
        _assert_exact(_normal(0, 20, 4), _normal(1, 5, 4))
    finally:
        backend.allow_tf32 = False
        if before is not None:
            backend.fp32_precision = before


def test_fp32_is_the_argmin_up_to_rounding() -> None:
    points, centroids = _normal(0, 500, 64), _normal(1, 100, 64)
    found = nearest_centroid(points, centroids, precision="fp32")
    _, distances = nearest_centroid_reference(points, centroids)
    assert found.rescored == 0
    torch.testing.assert_close(found.distances, distances.to(torch.float32), rtol=1e-4, atol=0)


def test_fp32_takes_the_lowest_index_of_equal_scores() -> None:
    centroids = torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    assert nearest_centroid(torch.tensor([[1.0, 0]]), centroids, precision="fp32").labels.tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_by_row(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign, "_SCORES", {"cpu": 64})
    points, centroids = _normal(0, 30, 4), _normal(1, 8, 4)
    points[17, 2] = value
    for precision in ("exact", "fp32"):
        with pytest.raises(ValueError, match="point 17 holds NaN or infinity"):
            nearest_centroid(points, centroids, precision=precision)
    with pytest.raises(ValueError, match="centroid 17 holds NaN or infinity"):
        nearest_centroid(centroids, points)


@pytest.mark.parametrize("name", ["points", "centroids"])
def test_arrays_are_refused_by_name(name: str) -> None:
    arguments: Any = {"points": torch.zeros(3, 4), "centroids": torch.zeros(2, 4)}
    arguments[name] = arguments[name].numpy()
    with pytest.raises(ValueError, match=f"{name} must be a tensor, not ndarray"):
        nearest_centroid(**arguments)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points must be a matrix \(n, 4\)"):
        nearest_centroid(torch.zeros(3, 5), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="centroids must be a matrix"):
        nearest_centroid(torch.zeros(3, 5), torch.zeros(0, 5))
    with pytest.raises(ValueError, match="precision 'fp8'"):
        prepare_centroids(torch.zeros(2, 4), precision="fp8")
    with pytest.raises(ValueError, match="prepared for precision 'exact'"):
        nearest_centroid(torch.zeros(3, 4), prepare_centroids(torch.zeros(2, 4)), precision="fp32")


def test_the_distance_of_a_pair_does_not_depend_on_the_batch_shape() -> None:
    points, centroids = _normal(0, 40, 37), _normal(1, 9, 37)
    whole = squared_distances(points[:, None], centroids[None])
    for row, column in ((0, 0), (17, 5), (39, 8)):
        assert squared_distances(points[row], centroids[column]) == whole[row, column]
    torch.testing.assert_close(whole, torch.cdist(points.double(), centroids.double()).square())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_finite_floats(data: st.DataObject) -> None:
    rows, k, dim = (data.draw(st.integers(1, limit)) for limit in (5, 6, 5))
    # Few distinct values make exact ties and near ties common.
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    palette = data.draw(st.lists(value, min_size=1, max_size=4))
    palette += [float(np.nextafter(np.float32(palette[0]), np.float32(0)))]
    entries = data.draw(
        st.lists(st.sampled_from(palette), min_size=(rows + k) * dim, max_size=(rows + k) * dim), label="entries"
    )
    values = torch.tensor(entries, dtype=torch.float32).reshape(rows + k, dim)
    _assert_exact(values[:rows], values[rows:])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(-60, 60), st.floats(-1e5, 1e5), st.integers(0, 20))
def test_offsets_scales_and_quantisation(seed: int, exponent: int, offset: float, bits: int) -> None:
    values = (_normal(seed, 40, 6) * 2.0**bits).round() * 2.0**-bits + offset
    values *= 2.0**exponent
    _assert_exact(values[:25], values[25:])


@pytest.mark.parametrize(("k", "dim", "rank"), [(200, 256, 12), (1000, 96, 96), (333, 131, 5)])
def test_structured_vectors_in_any_frame(k: int, dim: int, rank: int) -> None:
    loading = _normal(0, rank, dim) * torch.linspace(4, 0.5, rank)[:, None]
    values = _normal(1, 700 + k, rank) @ loading + 0.05 * _normal(2, 700 + k, dim) + 7
    _assert_exact(values[:700], values[700:])


def test_codes_work_for_other_centroids_in_the_same_frame(search: str) -> None:
    points = _normal(0, 500, 64) @ _normal(1, 64, 128)
    coded = code_points(points, prepare_centroids(points[:100]))
    assert (coded is None) == (search == "float")
    later = prepare_centroids(points[100:250] * 1.01, frame=coded and coded.frame)
    found = nearest_centroid(points, later, coded=coded)
    assert torch.equal(found.labels, nearest_centroid_reference(points, later.centroids)[0])
    if coded is not None:
        with pytest.raises(ValueError, match="another frame"):
            nearest_centroid(points, points[:100], coded=coded)


def test_codes_of_another_number_of_points_are_refused(search: str) -> None:
    points, prepared = _normal(0, 60, 64), prepare_centroids(_normal(1, 80, 64))
    for rows in (40, 59):
        coded = code_points(points[:rows], prepared)
        if search == "float":
            assert coded is None
            continue
        with pytest.raises(ValueError, match=f"60 points came with the codes of {rows}"):
            nearest_centroid(points, prepared, coded=coded)


def test_few_distinct_sparse_centroids_have_principal_directions() -> None:
    for seed in range(60):
        values = _normal(seed, 2, 127) * (torch.rand(2, 127, generator=torch.Generator().manual_seed(seed)) < 0.02)
        centroids = values[torch.arange(64) % 2]
        rows = centroids - centroids.mean(dim=0)
        directions = cpu_frames._leading_directions(rows, cpu_frames._leading_space(rows, 64))
        torch.testing.assert_close(directions.T @ directions, torch.eye(directions.shape[1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "dim", "width", "scale"), [(1, 65, 32, 1.0), (500, 768, 64, 1.0), (15, 130, 64, 0.25)]
)
def test_projections_are_within_their_bounds(rows: int, dim: int, width: int, scale: float) -> None:
    points, center = _normal(0, rows, dim).double() * 5 + 30, _normal(1, dim) + 30
    basis = torch.linalg.qr(_normal(2, dim, width))[0].contiguous()
    frame = cpu_frames.ScanFrame(center, scale, basis, defect=1e-5)
    coded, found = cpu_codes.code_rows(points, frame, 6)
    shifted = ((points - center) * scale).float().double()
    exact = shifted @ basis.double()
    norms = torch.linalg.vector_norm(shifted, dim=1)
    assert found is not None
    error = torch.linalg.vector_norm(torch.from_numpy(found) - exact, dim=1)
    assert bool((error <= frame.product_error * norms).all())
    left = torch.linalg.vector_norm(shifted - torch.from_numpy(found).double() @ basis.double().T, dim=1)
    assert bool((left <= torch.from_numpy(coded.stats[:, RESIDUAL])).all())


def test_many_points_get_a_better_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.linalg.qr(_normal(0, 256, 64))[0] * torch.logspace(0, -1, 64)
    vectors = _normal(1, 6_000, 64) * 3 @ latent.T + 0.3 * _normal(2, 6_000, 256)
    points, centroids = vectors[:4_000], vectors[4_000:]
    center = centroids.mean(dim=0)
    monkeypatch.setattr(cpu_frames, "_projected_costs", lambda *_: {(64, True): 1_700.0})
    left = []
    for count in (16, 4_000):
        frame = cpu_frames.choose_frame(points[:count], centroids, center, 1.0)
        assert frame.basis is not None
        left.append(float((points - center).square().sum() - ((points - center) @ frame.basis).square().sum()))
    assert left[1] < 0.98 * left[0]


@pytest.mark.filterwarnings("error")
def test_centroids_of_very_different_scales_raise_no_warnings() -> None:
    centroids = _normal(1, 200, 64) * 10 ** torch.linspace(-20, 20, 200)[:, None]
    frame = cpu_frames.ScanFrame(torch.zeros(64), 1.0, torch.eye(64)[:, :32].contiguous())
    found = nearest_centroid(centroids[:50], prepare_centroids(centroids, frame=frame))
    assert torch.equal(found.labels, nearest_centroid_reference(centroids[:50], centroids)[0])


def test_tensors_with_gradients() -> None:
    points, centroids = _normal(0, 50, 12).requires_grad_(), torch.nn.Parameter(_normal(1, 70, 12))
    found = nearest_centroid(points, centroids, runner_up=True)
    assert torch.equal(found.labels, nearest_centroid_reference(points.detach(), centroids.detach())[0])
    assert not found.distances.requires_grad


def test_the_runner_up_may_be_in_another_tile(search: str) -> None:
    points, centroids = _normal(0, 300, 24), _normal(1, 193, 24)
    points[:100] = centroids[192] + 0.01 * _normal(2, 100, 24)
    _assert_exact(points, centroids)
    if search == "scan":
        prepared = prepare_centroids(centroids)
        scan = prepared.scan(points)
        assert (scan.search(points, scan.code(points), pair=True)[0][:, 0] >= 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_threads_changes_nothing(count: int) -> None:
    points, centroids = _normal(0, 4000, 40), _normal(1, 130, 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        found = nearest_centroid(points, centroids)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.labels, nearest_centroid_reference(points, centroids)[0])


def test_points_with_too_many_candidates_are_still_decided() -> None:
    points = _normal(0, 30, 16) * 1e4
    centroids = _normal(1, 1500, 16) * 1e-3
    _assert_exact(points, centroids)


def test_centroids_of_similar_norm_share_tiles_without_a_projection() -> None:
    points, centroids = _normal(0, 200, 48), _normal(1, 500, 48)
    centroids[::2] *= 8
    found = nearest_centroid(points, centroids)
    assert torch.equal(found.labels, nearest_centroid_reference(points, centroids)[0])
