"""Low-precision operands of the nearest-centroid kernels, with bounds of the rounding error of each row.

Points and centroids are centered and scaled by one power of two, y = (x - center) scale and z = -2 (c - center) scale,
then rounded to the operand type: x̂ and ĉ. The error bounds are measured on the rounded values themselves:

    |s̃_ij - s_ij| <= ||y - x̂|| ||z|| + ||x̂|| (||z - ĉ|| + gamma ||ĉ||) + rounding of the last operations.
"""

# Kernels have no types: an argument may be a pointer or a tensor.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import triton
import triton.language as tl
from sctok.kernels.certify import UNIT, reference_error

from .tiles import Tile, tile_of

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "int8": torch.int8,
}
DEPTH_MULTIPLE = 128  # operand rows are padded with zeros to a multiple of this
LARGEST_INTEGER_DIM = 1 << 17  # sums of int8 products up to 127^2 stay below 2^31

MODES = {"bf16": 0, "fp16": 0, "tf32": 1, "tf32x3": 2, "int8": 3}
_SCALE_LIMIT = 900
ROWS_AT_ONCE = 8  # points that one program rounds
_LARGEST = 2.0**120


@dataclass(frozen=True)
class CentroidOperand:
    """Centroids as the kernels read them, with k padded to whole tiles (K) and dim to a multiple of 128 (D).

    source: (k, dim), the centroids as given.
    operand: name of the type.
    matrix: (K, D), ĉ.
    column_scale: (K,) float32, scale of int8 rows.
    offsets: (K,) float32, ||c||^2 lowered by its own error, infinite in padding.
    ids: (K,) int64, index of the centroid in each column.
    full: (k, dim) float32, z.
    squares, lengths: (k,) float32 and float64, ||c||^2 and ||c||, scaled.
    tile_norms, tile_residuals: (K / tile.columns,) float32, upper bounds of ||z|| and ||z - ĉ|| + gamma ||ĉ||.
    center: (dim,) float32.
    scale, factor: the scale as a (1,) float64 tensor on the device, and as a number.
    tile: launch settings of the scan.
    usable: whether every entry is finite in the operand type.
    """

    source: Tensor
    operand: str
    matrix: Tensor
    column_scale: Tensor
    offsets: Tensor
    ids: Tensor
    full: Tensor
    squares: Tensor
    lengths: Tensor
    tile_norms: Tensor
    tile_residuals: Tensor
    center: Tensor
    scale: Tensor
    factor: float
    k: int
    dim: int
    tile: Tile
    usable: bool


@dataclass(frozen=True)
class PointOperand:
    """Points as the kernels read them.

    matrix: (n, D), x̂.
    row_scale: (n,) float32, scale of int8 rows.
    residuals, norms, lengths: (n,) float32, upper bounds of ||y - x̂||, ||x̂|| and ||y||. They are infinite or NaN for
    points with a value outside the range of the operand type.
    """

    matrix: Tensor
    row_scale: Tensor
    residuals: Tensor
    norms: Tensor
    lengths: Tensor

    def take(self, rows: Tensor | slice) -> "PointOperand":
        """Return some points, by index (r,) or slice."""
        return PointOperand(
            self.matrix[rows], self.row_scale[rows], self.residuals[rows], self.norms[rows], self.lengths[rows]
        )


def product_error(operand: str, depth: int) -> float:
    """Return gamma with |computed (b + x̂·ĉ) - true| <= gamma (|b| + ||x̂|| ||ĉ||), including int8 row scales.

    Tensor cores align the products of one instruction and the running sum to the largest of them, truncate to 24 bits,
    and truncate the result again. The error is at most (n + 2) 2^-23 of the sum of magnitudes for n >= 4 products (Fasi
    et al., "Numerical behavior of NVIDIA tensor cores", 2021). 2^-22 per product covers that and float32 sums in any
    order. tf32x3 adds the low parts that it truncates or omits.
    """
    if operand == "int8":
        return 4 * UNIT
    if operand == "tf32x3":
        return 3 * (depth + 16) * 2.0**-22 + 2.0**-17
    return (depth + 16) * 2.0**-22


def prepare_operand(
    centroids: Tensor, center: Tensor, operand: str = "fp16", tile: Tile | None = None
) -> CentroidOperand:
    """Round centroids (k, D), finite, to an operand type, once for many blocks of points.

    Centroids are ordered by norm, so that those of one tile share tight bounds, and offsets are lowered by their error.
    Centroids that leave the range of the type make the search slower, never wrong.

    Args:
        centroids: (k, D) real.
        center: (D,) float32, near the mean of the centroids. Distances do not depend on it.
        operand: one of `DTYPES`. Rounding in fp16 loses an eighth of what bf16 loses, at the same speed.
        tile: launch settings of the scan; None takes those of the device.

    Raises:
        ValueError: The operand is unknown, or it is int8 and D exceeds 131,072.
    """
    if operand not in DTYPES:
        raise ValueError(f"operand {operand!r} is not one of {', '.join(DTYPES)}")
    k, dim = centroids.shape
    if operand == "int8" and dim > LARGEST_INTEGER_DIM:
        raise ValueError(f"int8 operands take at most {LARGEST_INTEGER_DIM} dimensions, not {dim}")
    wide = centroids.to(torch.float64) - center.to(torch.float64)
    scale = _scale_of(float(wide.abs().amax()))
    wide *= scale
    squares = (wide * wide).sum(dim=1)
    ids = torch.argsort(squares, stable=True)
    wide, squares = wide[ids] * -2, squares[ids]
    matrix, column_scale, rounded = _round_rows(wide, operand)
    depth = -(-dim // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
    lengths = squares.sqrt()
    residual = _norm(wide - rounded) + 2.0**-50 * 2 * lengths
    residual += (product_error(operand, depth) + 4 * UNIT) * _norm(rounded)
    reference = reference_error(dim) * squares + dim * (2.0**-118 + 2.0**-1073 * scale * scale)
    lowered = _below(squares * (1 - product_error(operand, depth) - 8 * UNIT) - reference)
    tile = tile or tile_of(centroids.device, operand)
    padded = -(-k // tile.columns) * tile.columns
    return CentroidOperand(
        source=centroids,
        operand=operand,
        matrix=_padded(matrix, padded, depth),
        column_scale=_padded(column_scale[:, None], padded, 1)[:, 0].contiguous(),
        offsets=_padded(lowered[:, None], padded, 1, math.inf)[:, 0].contiguous(),
        ids=_padded(ids[:, None], padded, 1)[:, 0].contiguous(),
        full=wide.to(torch.float32),
        squares=squares.to(torch.float32),
        lengths=lengths,
        tile_norms=_tile_bounds(2 * lengths, padded, tile.columns),
        tile_residuals=_tile_bounds(residual, padded, tile.columns),
        center=center.to(torch.float32).contiguous(),
        scale=torch.tensor([scale], dtype=torch.float64, device=centroids.device),
        factor=scale,
        k=k,
        dim=dim,
        tile=tile,
        usable=bool(torch.isfinite(rounded).all())
        and -_LARGEST < float(lowered.min()) <= float(lowered.max()) < _LARGEST,
    )


def quantise_points(points: Tensor, centroids: CentroidOperand) -> PointOperand:
    """Center, scale and round points (n, dim), floating, any strides, to the operand type of the centroids."""
    n, dim = points.shape
    depth = centroids.matrix.shape[1]
    matrix = torch.empty((n, depth), dtype=DTYPES[centroids.operand], device=points.device)
    results = torch.empty((4, n), dtype=torch.float32, device=points.device)
    if n:
        _quantise_kernel[(triton.cdiv(n, ROWS_AT_ONCE),)](
            points, centroids.center, centroids.scale, matrix, *results, n, dim, depth, *points.stride(),
            MODE=MODES[centroids.operand], ROWS=ROWS_AT_ONCE, BLOCK=128,
        )  # fmt: skip
    row_scale, residuals, norms, lengths = results
    # Cover float32 sums of squares, squares that underflow, and the rounding of y itself.
    growth, floor = 1 + 2 * (depth + 16) * UNIT, math.sqrt(dim) * 2.0**-62
    lengths.mul_(growth).add_(floor)
    norms.mul_(growth).add_(floor)
    lost = floor + math.sqrt(dim) * 2.0**-126 * max(1.0, centroids.factor)
    residuals.mul_(growth).add_(lengths, alpha=2 * UNIT).add_(lost)
    return PointOperand(matrix, row_scale, residuals, norms, lengths)


@triton.jit
def _centred(points, center, factor, rows, columns, n, dim, row_stride, column_stride):
    """Return y, float32, of a block of rows and columns; zero outside the matrix."""
    inside = (rows < n)[:, None] & (columns < dim)[None, :]
    places = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    value = tl.load(points + places, inside, other=0)
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    value = value - tl.load(center + columns, columns < dim, other=0)[None, :].to(value.dtype)
    return tl.where(inside, (value.to(tl.float64) * factor).to(tl.float32), 0.0)


@triton.jit
def _quantise_kernel(
    points, center, scale, matrix, row_scale, residuals, norms, lengths, n, dim, depth, row_stride, column_stride,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write x̂ and the norms of y - x̂, x̂ and y. MODE: 0 casts, 1 rounds to 10 mantissa bits, 2 keeps, 3 is int8."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    factor = tl.load(scale)
    step = tl.full((ROWS,), 1.0, tl.float32)
    if MODE == 3:
        largest = tl.zeros((ROWS,), tl.float32)
        for start in range(0, depth, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            value = _centred(points, center, factor, rows, columns, n, dim, row_stride, column_stride)
            largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
        # Rounded up to eight mantissa bits, so that q * step is exact in float32.
        bits = (tl.maximum(largest / 127.0, 1e-30).to(tl.int32, bitcast=True) + 0xFFFF) & -65536
        step = bits.to(tl.float32, bitcast=True)
    lost, kept, whole = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, depth, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = _centred(points, center, factor, rows, columns, n, dim, row_stride, column_stride)
        if MODE == 0:
            stored = value.to(matrix.dtype.element_ty)
            rounded = stored.to(tl.float32)
        elif MODE == 1:
            bits = value.to(tl.int32, bitcast=True)
            rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & -8192).to(tl.float32, bitcast=True)
            stored = rounded
        elif MODE == 2:
            rounded = value
            stored = value
        else:
            quotient = tl.minimum(tl.maximum(tl.floor(value / step[:, None] + 0.5), -127.0), 127.0)
            stored = quotient.to(tl.int8)
            rounded = quotient * step[:, None]
        difference = value - rounded
        lost += tl.sum(difference * difference, axis=1)
        kept += tl.sum(rounded * rounded, axis=1)
        whole += tl.sum(value * value, axis=1)
        places = rows.to(tl.int64)[:, None] * depth + columns[None, :]
        tl.store(matrix + places, stored, (rows < n)[:, None] & (columns < depth)[None, :])
    tl.store(row_scale + rows, step, rows < n)
    tl.store(residuals + rows, tl.sqrt(lost), rows < n)
    tl.store(norms + rows, tl.sqrt(kept), rows < n)
    tl.store(lengths + rows, tl.sqrt(whole), rows < n)


def _scale_of(largest: float) -> float:
    """Return the power of two that brings `largest` into [2, 4), within limits; 1 for 0."""
    if largest == 0 or not math.isfinite(largest):
        return 1.0 if largest == 0 else 2.0**-_SCALE_LIMIT
    return 2.0 ** max(-_SCALE_LIMIT, min(_SCALE_LIMIT, 2 - math.frexp(largest)[1]))


def _round_rows(wide: Tensor, operand: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 rows in the operand type, their float32 scales, and the rounded values in float64."""
    ones = torch.ones(len(wide), dtype=torch.float32, device=wide.device)
    narrow = wide.to(torch.float32)
    if operand in ("bf16", "fp16", "tf32x3"):
        matrix = narrow.to(DTYPES[operand])
        return matrix, ones, matrix.to(torch.float64)
    if operand == "tf32":
        bits = narrow.view(torch.int32)
        matrix = ((bits + 0xFFF + ((bits >> 13) & 1)) & -8192).view(torch.float32)
        return matrix, ones, matrix.to(torch.float64)
    scale = (narrow.abs().amax(dim=1) / 127).clamp(min=1e-30)
    scale = ((scale.view(torch.int32) + 0xFFFF) & -65536).view(torch.float32)
    steps = scale.to(torch.float64)[:, None]
    matrix = (wide / steps).round().clamp(-127, 127)
    return matrix.to(torch.int8), scale, matrix * steps


def _norm(rows: Tensor) -> Tensor:
    """Return the norms of float64 rows, rounded up."""
    return torch.linalg.vector_norm(rows, dim=1) * (1 + 2.0**-40)


def _below(values: Tensor) -> Tensor:
    """Return float64 values as float32, rounded down."""
    narrow = values.to(torch.float32)
    return torch.nextafter(narrow, torch.full_like(narrow, -math.inf))


def _tile_bounds(values: Tensor, padded: int, columns: int) -> Tensor:
    """Return the largest value of each tile as float32, enlarged to cover the last roundings of the kernel."""
    largest = _padded(values[:, None], padded, 1).view(-1, columns).amax(dim=1)
    return (largest * (1 + 2.0**-18)).to(torch.float32)


def _padded(matrix: Tensor, rows: int, columns: int, value: float = 0) -> Tensor:
    """Return a contiguous copy of a matrix, grown to (rows, columns)."""
    result = matrix.new_full((rows, columns), value)
    result[: matrix.shape[0], : matrix.shape[1]] = matrix
    return result
