"""8-bit codes of points and centroids, laid out for the scan on CPUs together with the terms of its bounds."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sctok.runtime.threads import in_parallel

from .encode import (
    CODE_OFFSET,
    INSIDE,
    KEPT,
    LOST,
    NORM,
    RESIDUAL,
    STEP,
    Bytes,
    Codes,
    Doubles,
    Floats,
    Ints,
    Longs,
    encode_centered,
    encode_projected,
)
from .frames import ScanFrame
from .scan import Fine, Tiles
from .vnni import ALIGNMENT, LANES, PIECE, QUAD, ROW_BYTES, ROWS

_UP = 1 + 2.0**-20  # covers the rounding of a bound to float32


@dataclass(frozen=True)
class CodedPoints:
    """Codes of n rows.

    codes: uint8 (n, width), both rounded up.
    stats: (n, 6), norms and losses of each row from `encode_centered`.
    frame: the only frame in which the codes hold.
    fine: codes in all dimensions if the frame is refined.
    """

    codes: Bytes
    stats: Doubles
    frame: ScanFrame
    fine: "CodedPoints | None" = None

    def rows(self, start: int, stop: int) -> "CodedPoints":
        """Return the codes of the rows start … stop. start: a multiple of ROWS."""
        stop = min(stop, len(self.stats))
        codes, stats = self.codes[start : start + _rounded(stop - start)], self.stats[start:stop]
        return CodedPoints(codes, stats, self.frame, self.fine and self.fine.rows(start, stop))

    def take(self, places: Longs) -> "CodedPoints":
        """Return a copy of the rows at places (n,)."""
        codes = np.empty((_rounded(len(places)), self.codes.shape[1]), np.uint8)
        np.take(self.codes, places, axis=0, out=codes[: len(places)])
        codes[len(places) :] = CODE_OFFSET
        return CodedPoints(codes, self.stats[places], self.frame, self.fine and self.fine.take(places))

    def put(self, places: Longs, other: "CodedPoints") -> None:
        """Store all rows of other codes at places (n,)."""
        self.codes[places] = other.codes[: len(places)]
        self.stats[places] = other.stats
        if self.fine is not None and other.fine is not None:
            self.fine.put(places, other.fine)

    @property
    def row_bytes(self) -> int:
        """Memory of one row in bytes."""
        return self.codes.shape[1] + 8 * self.stats.shape[1] + (self.fine.row_bytes if self.fine else 0)


def _rounded(rows: int) -> int:
    return -(-rows // ROWS) * ROWS


def empty_codes(rows: int, like: CodedPoints) -> CodedPoints:
    """Allocate codes for a number of rows in the frame of `like`. Pages take no memory before they are written."""
    codes, stats = np.empty((rows, like.codes.shape[1]), np.uint8), np.empty((rows, like.stats.shape[1]))
    return CodedPoints(codes, stats, like.frame, like.fine and empty_codes(rows, like.fine))


def code_rows(rows: Tensor, frame: ScanFrame, row_multiple: int) -> tuple[CodedPoints, Floats | None]:
    """Code rows (n, D) float32 or float64, padded to a multiple; also return their projection (n, d), if any."""
    values, center = rows.numpy(), frame.center.numpy()
    if frame.basis is None:
        codes, stats = _room(len(rows), rows.shape[1], row_multiple, ROW_BYTES)
        in_parallel(len(rows), lambda *part: encode_centered(values, center, frame.scale, codes, stats, *part))
        return CodedPoints(codes, stats, frame), None
    leading = np.empty((len(rows), frame.basis.shape[1]), np.float32)
    codes, stats = _room(len(rows), leading.shape[1], row_multiple, ROW_BYTES)
    fine = _room(len(rows), rows.shape[1], row_multiple, PIECE) if frame.refined else _room(0, 1, 1, 1)
    basis, slack = frame.basis.numpy(), 2.1 * frame.product_error + 3 * frame.defect

    def work(start: int, stop: int) -> None:
        encode_projected(values, center, frame.scale, basis, slack, leading, codes, stats, *fine, start, stop)

    in_parallel(len(rows), work)
    return CodedPoints(codes, stats, frame, CodedPoints(*fine, frame) if frame.refined else None), leading


def _room(rows: int, width: int, row_multiple: int, byte_multiple: int) -> tuple[Bytes, Doubles]:
    codes = np.empty((-(-rows // row_multiple) * row_multiple, -(-width // byte_multiple) * byte_multiple), np.uint8)
    codes[rows:] = CODE_OFFSET
    return codes, np.empty((rows, 6))


def _terms(coded: CodedPoints) -> Floats:
    """Return the terms of centroids in the bounds, float32 (5, k): square, step, three for the reach, rounded up."""
    stats = coded.stats
    columns = (stats[:, NORM], stats[:, STEP], stats[:, RESIDUAL] * _UP, stats[:, INSIDE] * _UP, stats[:, LOST] * _UP)
    with np.errstate(over="ignore"):  # centroids out of range, which are not scanned
        return np.stack(columns).astype(np.float32)


def row_factors(coded: CodedPoints) -> Floats:
    """Return the factors of points in the bounds, float32 (rows, 4). Rows after the last point are zero."""
    stats = coded.stats
    factors = np.zeros((len(coded.codes), 4), np.float32)
    with np.errstate(over="ignore"):  # for rows out of range, which the scan does not decide
        factors[: len(stats), 0] = -2 * stats[:, STEP]
        for column, name in ((1, RESIDUAL), (2, LOST), (3, KEPT)):
            factors[: len(stats), column] = (2 * _UP) * stats[:, name]
    return factors


def _offsets(codes: Codes) -> Ints:
    return (-CODE_OFFSET * codes.sum(axis=-1, dtype=np.int32)).astype(np.int32)


def _signed(coded: CodedPoints, order: Longs) -> Codes:
    """Return the codes int8 (places, width) of the centroid in each place, zero if a place is empty."""
    codes = (coded.codes ^ np.uint8(CODE_OFFSET)).view(np.int8)
    if len(order) == len(codes) and np.array_equal(order, np.arange(len(order))):
        return codes
    placed = codes[order]
    placed[order < 0] = 0
    return placed


def pack_tiles(coded: CodedPoints, order: Longs) -> Tiles:
    """Lay coded centroids out in tiles. order: int64, the centroid in each place, -1 for none."""
    tiles, quads = len(order) // LANES, coded.codes.shape[1] // QUAD
    filled, codes = order >= 0, _signed(coded, order)
    packed = _aligned((tiles, quads, LANES, QUAD))
    packed.view(np.int32)[..., 0] = codes.view(np.int32).reshape(tiles, LANES, quads).transpose(0, 2, 1)
    flat = np.zeros((5, len(order)), np.float32)
    flat[:, filled] = _terms(coded)[:, order[filled]]
    widest = np.ascontiguousarray(flat.reshape(5, tiles, LANES).max(axis=2))
    flat[0, ~filled] = np.finfo(np.float32).max
    terms = np.ascontiguousarray(flat.reshape(5, tiles, LANES).transpose(1, 0, 2))
    return Tiles(order, packed, _offsets(codes).reshape(tiles, LANES), terms, widest)


def pack_fine(coded: CodedPoints | None, order: Longs) -> Fine:
    """Lay centroids coded in all dimensions out place by place; None gives an empty result."""
    if coded is None:
        return Fine(np.empty((0, PIECE), np.int8), np.empty(0, np.int32), np.empty((0, 5), np.float32))
    codes = _signed(coded, order)
    return Fine(codes, _offsets(codes), np.ascontiguousarray(_terms(coded)[:, order].T))


def _aligned(shape: tuple[int, ...]) -> Codes:
    """Return an array of bytes that begins at a cache line boundary."""
    raw = np.empty(math.prod(shape) + ALIGNMENT, np.int8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + math.prod(shape)].reshape(shape)
