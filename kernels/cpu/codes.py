"""Points and centroids as the scan on CPUs reads them: 8-bit codes with what bounds need beside them."""

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
    encode_centred,
    encode_projected,
)
from .frames import ScanFrame
from .scan import Fine, Tiles
from .vnni import ALIGNMENT, LANES, PIECE, QUAD, ROW_BYTES, ROWS

_UP = 1 + 2.0**-20  # makes up for rounding a bound to float32


@dataclass(frozen=True)
class CodedPoints:
    """Rows: codes uint8 (n and width rounded up) and what they lose, stats (n, 6) of `encode_centred`.

    frame: where they hold, and nowhere else. fine: the same in all dimensions, where the frame is refined.
    """

    codes: Bytes
    stats: Doubles
    frame: ScanFrame
    fine: "CodedPoints | None" = None

    def rows(self, start: int, stop: int) -> "CodedPoints":
        """Return the codes of the rows start … stop; start is a multiple of ROWS."""
        stop = min(stop, len(self.stats))
        codes, stats = self.codes[start : start + _rounded(stop - start)], self.stats[start:stop]
        return CodedPoints(codes, stats, self.frame, self.fine and self.fine.rows(start, stop))

    def take(self, places: Longs) -> "CodedPoints":
        """Return a copy of some rows (n,)."""
        codes = np.empty((_rounded(len(places)), self.codes.shape[1]), np.uint8)
        np.take(self.codes, places, axis=0, out=codes[: len(places)])
        codes[len(places) :] = CODE_OFFSET
        return CodedPoints(codes, self.stats[places], self.frame, self.fine and self.fine.take(places))

    def put(self, places: Longs, other: "CodedPoints") -> None:
        """Store all rows of another one at places (n,)."""
        self.codes[places] = other.codes[: len(places)]
        self.stats[places] = other.stats
        if self.fine is not None and other.fine is not None:
            self.fine.put(places, other.fine)

    @property
    def row_bytes(self) -> int:
        """What a row takes."""
        return self.codes.shape[1] + 8 * self.stats.shape[1] + (self.fine.row_bytes if self.fine else 0)


def _rounded(rows: int) -> int:
    return -(-rows // ROWS) * ROWS


def empty_codes(rows: int, like: CodedPoints) -> CodedPoints:
    """Return room for the codes of so many rows in the frame of others; pages that are not written take no memory."""
    codes, stats = np.empty((rows, like.codes.shape[1]), np.uint8), np.empty((rows, like.stats.shape[1]))
    return CodedPoints(codes, stats, like.frame, like.fine and empty_codes(rows, like.fine))


def encode(rows: Tensor, frame: ScanFrame, row_multiple: int) -> tuple[CodedPoints, Floats | None]:
    """Code rows (n, D) float32 or float64, filled up to a multiple of rows; return also their projection (n, d)."""
    if frame.basis is None:
        return _encode_all(rows, frame, row_multiple, ROW_BYTES), None
    leading = np.empty((len(rows), frame.basis.shape[1]), np.float32)
    codes, stats = _room(len(rows), leading.shape[1], row_multiple, ROW_BYTES)
    fine_codes, fine_stats = (
        _room(len(rows), rows.shape[1], row_multiple, PIECE) if frame.refined else _room(0, 1, 1, 1)
    )
    values, center, basis = rows.numpy(), frame.center.numpy(), frame.basis.numpy()
    slack = 2.1 * frame.product_error + 3 * frame.defect

    def work(start: int, stop: int) -> None:
        encode_projected(
            values, center, frame.scale, basis, slack, leading, codes, stats, fine_codes, fine_stats, start, stop
        )

    in_parallel(len(rows), work)
    return CodedPoints(
        codes, stats, frame, CodedPoints(fine_codes, fine_stats, frame) if frame.refined else None
    ), leading


def _encode_all(rows: Tensor, frame: ScanFrame, row_multiple: int, byte_multiple: int) -> CodedPoints:
    """Code all dimensions of rows."""
    codes, stats = _room(len(rows), rows.shape[1], row_multiple, byte_multiple)
    values, center = rows.numpy(), frame.center.numpy()
    in_parallel(len(rows), lambda *part: encode_centred(values, center, frame.scale, codes, stats, *part))
    return CodedPoints(codes, stats, frame)


def _room(rows: int, width: int, row_multiple: int, byte_multiple: int) -> tuple[Bytes, Doubles]:
    codes = np.empty((-(-rows // row_multiple) * row_multiple, -(-width // byte_multiple) * byte_multiple), np.uint8)
    codes[rows:] = CODE_OFFSET
    return codes, np.empty((rows, 6))


def _terms(coded: CodedPoints) -> Floats:
    """Return what bounds need of centroids, float32 (5, k): square, step, and the terms of the reach, rounded up."""
    stats = coded.stats
    columns = (stats[:, NORM], stats[:, STEP], stats[:, RESIDUAL] * _UP, stats[:, INSIDE] * _UP, stats[:, LOST] * _UP)
    with np.errstate(over="ignore"):  # centroids out of range, which are not scanned
        return np.stack(columns).astype(np.float32)


def row_factors(coded: CodedPoints) -> Floats:
    """Return what bounds need of points, float32 (rows, 4); the rows beyond the last point are zero."""
    stats = coded.stats
    factors = np.zeros((len(coded.codes), 4), np.float32)
    with np.errstate(over="ignore"):  # of rows that are out of range, and left to the caller
        factors[: len(stats), 0] = -2 * stats[:, STEP]
        for column, name in ((1, RESIDUAL), (2, LOST), (3, KEPT)):
            factors[: len(stats), column] = (2 * _UP) * stats[:, name]
    return factors


def _offsets(codes: Codes) -> Ints:
    return (-CODE_OFFSET * codes.sum(axis=-1, dtype=np.int32)).astype(np.int32)


def _signed(coded: CodedPoints, order: Longs) -> Codes:
    """Return the codes int8 (places, width) of the centroids in each place, zero where there is none."""
    codes = (coded.codes ^ np.uint8(CODE_OFFSET)).view(np.int8)
    if len(order) == len(codes) and np.array_equal(order, np.arange(len(order))):
        return codes
    placed = codes[order]
    placed[order < 0] = 0
    return placed


def pack_tiles(coded: CodedPoints, order: Longs) -> Tiles:
    tiles, quads = len(order) // LANES, coded.codes.shape[1] // QUAD
    there, codes = order >= 0, _signed(coded, order)
    packed = _aligned((tiles, quads, LANES, QUAD))
    packed.view(np.int32)[..., 0] = codes.view(np.int32).reshape(tiles, LANES, quads).transpose(0, 2, 1)
    flat = np.zeros((5, len(order)), np.float32)
    flat[:, there] = _terms(coded)[:, order[there]]
    widest = np.ascontiguousarray(flat.reshape(5, tiles, LANES).max(axis=2))
    flat[0, ~there] = np.finfo(np.float32).max
    terms = np.ascontiguousarray(flat.reshape(5, tiles, LANES).transpose(1, 0, 2))
    return Tiles(order, packed, _offsets(codes).reshape(tiles, LANES), terms, widest)


def pack_fine(coded: CodedPoints | None, order: Longs) -> Fine:
    if coded is None:
        return Fine(np.empty((0, PIECE), np.int8), np.empty(0, np.int32), np.empty((0, 5), np.float32))
    codes = _signed(coded, order)
    return Fine(codes, _offsets(codes), np.ascontiguousarray(_terms(coded)[:, order].T))


def _aligned(shape: tuple[int, ...]) -> Codes:
    """Return an array of bytes that begins at a cache line."""
    raw = np.empty(math.prod(shape) + ALIGNMENT, np.int8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + math.prod(shape)].reshape(shape)
