"""Encode vectors in 8 bits and measure the loss: Numba functions for ranges of rows."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.runtime.jit import compiled

from .vnni import COLUMNS, ROWS, column_products

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

CODE_LIMIT = 127
CODE_OFFSET = 128  # makes the codes of points unsigned, as the product of bytes requires
NORM, RESIDUAL, STEP, LOST, KEPT, INSIDE = range(6)  # columns of the statistics of a row


@compiled()
def encode_centered(
    points: Any, center: Floats, scale: float, codes: Bytes, stats: Doubles, start: int, stop: int
) -> None:
    """Encode y = (points - center) scale for the rows start … stop, in all dimensions.

    points: (n, D) float32 or float64. y is rounded to float32.
    codes: (n, >= D) uint8, filled with q + 128, and with 128 after column D.
    stats: (n, 6), filled with |y|^2, 0, the step s, |y - s q|, |s q| and |y|. NaN and infinity show in |y|^2.
    """
    y = np.empty(points.shape[1], np.float32)
    for i in range(start, stop):
        _center(points[i], center, scale, y)
        _encode(y, _square(y), codes[i], stats[i])


@compiled()
def encode_projected(
    points: Any, center: Floats, scale: float, basis: Floats, slack: float, z: Floats, codes: Bytes, stats: Doubles,
    fine_codes: Bytes, fine_stats: Doubles, start: int, stop: int,
) -> None:  # fmt: skip
    """Write and encode the coordinates z (n, d) of centered points in a basis (D, d), for the rows start … stop.

    d: a multiple of COLUMNS.
    slack: the square of the residual |y - P z| is at most |y|^2 - |z|^2 + slack |y|^2.
    codes, stats: as for `encode_centered`, but the second number is the residual, and later ones are of z, not y.
    fine_codes, fine_stats: filled as by `encode_centered` for all dimensions, unless their length is 0.
    """
    dim, width = basis.shape
    y, projected = np.zeros((ROWS, dim), np.float32), np.empty((ROWS, width), np.float32)
    for first in range(start, stop, ROWS):
        count = min(ROWS, stop - first)
        for m in range(count):
            _center(points[first + m], center, scale, y[m])
        for column in range(0, width, COLUMNS):
            column_products(
                y.ctypes.data,
                np.int64(dim),
                basis.ctypes.data + 4 * column,
                np.int64(width),
                projected.ctypes.data + 4 * column,
            )
        z[first : first + count] = projected[:count]
        for m in range(count):
            i = first + m
            inside, norm = _square(z[i]), _square(y[m])
            _encode(z[i], inside, codes[i], stats[i])
            stats[i, NORM] = norm if inside < np.inf else np.inf
            stats[i, RESIDUAL] = math.sqrt(max(0.0, norm - inside + slack * norm))
            if len(fine_codes):
                _encode(y[m], norm, fine_codes[i], fine_stats[i])


@compiled()
def _center(point: Any, center: Floats, scale: float, y: Floats) -> None:
    """Write y = (point - center) scale, rounded to float32."""
    if scale == 1:
        for j in range(len(y)):
            y[j] = point[j] - center[j]
    else:
        for j in range(len(y)):
            y[j] = np.float32(np.float64(point[j] - center[j]) * scale)


@compiled()
def _encode(z: Floats, square: float, codes: Bytes, stats: Doubles) -> None:
    step = _largest(z) / np.float32(CODE_LIMIT)
    if not (square < np.inf) or step < np.float32(1e-30):
        step = np.float32(0)
    lost, kept = _encode_row(z, step, codes)
    codes[len(z) :] = CODE_OFFSET
    stats[NORM], stats[RESIDUAL], stats[STEP] = square, 0.0, np.float64(step)
    stats[LOST], stats[KEPT], stats[INSIDE] = math.sqrt(lost), math.sqrt(kept), math.sqrt(square)


@compiled(any_order=True)
def _square(row: Floats) -> float:
    total = 0.0
    for j in range(len(row)):
        total += np.float64(row[j]) * np.float64(row[j])
    return total


@compiled()
def _largest(row: Floats) -> np.float32:
    """Return the largest magnitude. The bits of floats without the sign have the same order as integers."""
    bits = row.view(np.int32)
    largest = np.int32(0)
    for j in range(len(bits)):
        largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
    found = np.empty(1, np.int32)
    found[0] = largest
    return found.view(np.float32)[0]


@compiled(any_order=True)
def _encode_row(z: Floats, step: np.float32, codes: Bytes) -> tuple[float, float]:
    """Write the codes of a row and return the squared norms of the loss and of the coded row."""
    inverse = np.float32(0) if step == 0 else np.float32(1) / step
    half = np.float32(CODE_OFFSET + 0.5)
    lost, kept = 0.0, 0.0
    for j in range(len(z)):
        code = np.int32(z[j] * inverse + half)  # positive, so truncation rounds; always in [1, 255]
        codes[j] = np.uint8(code)
        near = np.float64(code - CODE_OFFSET) * np.float64(step)
        lost += (np.float64(z[j]) - near) * (np.float64(z[j]) - near)
        kept += near * near
    return lost, kept
