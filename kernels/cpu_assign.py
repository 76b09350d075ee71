"""Nearest centroids on CPUs by an 8-bit scan with certificates; see `cpu_scan` for the loops.

Points and centroids are centred and scaled to y and w. Where a few directions P (D, d) hold most of the centroids,
both are projected: y = P z + r, w = P e + t. With 8-bit codes s q near z and s' q' near e, Cauchy and Schwarz give

    |2 y.w - 2 s s' q.q'| <= 2 (|r| |t| + |z - s q| |e| + |s q| |e - s' q'|) + rounding,

and q.q' is exact in integers. Without a projection z = y and r = 0.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .certify import UNIT, gamma
from .cpu_scan import (
    CODE_LIMIT,
    CODE_OFFSET,
    INSIDE,
    KEPT,
    LOST,
    MOST_DISTANCES,
    NORM,
    RESIDUAL,
    STEP,
    Bytes,
    Codes,
    Doubles,
    Fine,
    Floats,
    Found,
    Ints,
    Longs,
    Rows,
    Tiles,
    encode_centred,
    encode_projected,
    exact_distances,
    nearest_of_all,
    scan_rows,
)
from .cpu_vnni import ALIGNMENT, LANES, LARGEST_DIM, PIECE, QUAD, ROW_BYTES, ROWS, vnni_bits
from .threads import in_parallel

WIDTHS = (32, 64)  # of the projections that are tried
SMALLEST_K = 64

_UP = 1 + 2.0**-20  # makes up for rounding a bound to float32
_LARGEST_NORM = 2.0**60  # of scaled vectors; beyond it a row is left to the caller
_GROUP_BYTES = 1 << 19  # of centroid codes that stay in cache while rows pass by
_CHUNK_BYTES = 3 << 18  # of the rows' codes and minima beside them
_SAMPLE_ROWS, _SAMPLE_CENTROIDS = 16, 512
_BASIS_ROUNDS, _BASIS_SPARE = 2, 8
_NEAR = 2.0  # norms of centroids within which a center is near
_ORDERED = 16  # leading directions that decide which centroids share a tile
# Nanoseconds on one thread, measured: a byte product in the scan, a score's share of the rest of the scan, an exact
# distance and a refined bound per dimension, a multiplication of the projection.
_PRODUCT, _SCORE, _EXACT, _REFINED, _PROJECTED = 0.003, 0.06, 0.4, 0.02, 0.009


_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Frame:
    """Where points and centroids are compared. Any frame gives the same labels; a fitting one gives them fast.

    center (D,) float32 and scale, a power of two: y = (x - center) scale. basis (D, d) float32 with nearly orthonormal
    columns, or None for all dimensions. refined: whether codes in all dimensions judge what the projection leaves.
    defect: how far the basis is from orthonormal. offset: norm of a center so near that float32 points are projected
    before they are centred, which saves a copy; infinite where that would blur the result.
    """

    center: Tensor
    scale: float
    basis: Tensor | None = None
    refined: bool = False
    defect: float = 0.0
    offset: float = math.inf

    @property
    def product_error(self) -> float:
        """How far a float32 product with the basis may lie from the true one, per norm of the vector."""
        if self.basis is None:
            return 0.0
        dim, width = self.basis.shape
        return gamma(dim) * math.sqrt(width) * (1 + self.defect)

    @property
    def blur(self) -> float:
        """What projecting before centring adds to the error of a product, in norms of vectors."""
        return 2 * self.product_error * self.offset if self.offset < math.inf else 0.0

    def center_rows(self, rows: Tensor) -> Tensor:
        """Return y (n, D) float32 of float32 or float64 rows."""
        shifted = rows - self.center
        return (shifted if self.scale == 1 else shifted.to(torch.float64).mul_(self.scale)).to(torch.float32)

    def project(self, rows: Tensor) -> Tensor:
        """Return the coordinates (n, d) float32 of rows in the basis."""
        assert self.basis is not None
        if self.offset < math.inf and rows.dtype == torch.float32:
            return (rows @ self.basis).sub_(self.center @ self.basis)
        return self.center_rows(rows) @ self.basis


@dataclass(frozen=True)
class Coded:
    """Rows: codes uint8 (n and width rounded up) and what they lose, stats (n, 6) of `encode_centred`.

    frame: where they hold, and nowhere else. fine: the same in all dimensions, where the frame is refined.
    """

    codes: Bytes
    stats: Doubles
    frame: Frame
    fine: "Coded | None" = None

    def rows(self, start: int, stop: int) -> "Coded":
        """Return the codes of the rows start … stop; start is a multiple of ROWS."""
        stop = min(stop, len(self.stats))
        codes, stats = self.codes[start : start + _rounded(stop - start)], self.stats[start:stop]
        return Coded(codes, stats, self.frame, self.fine and self.fine.rows(start, stop))

    def take(self, places: Longs) -> "Coded":
        """Return a copy of some rows (n,)."""
        codes = np.empty((_rounded(len(places)), self.codes.shape[1]), np.uint8)
        np.take(self.codes, places, axis=0, out=codes[: len(places)])
        codes[len(places) :] = CODE_OFFSET
        return Coded(codes, self.stats[places], self.frame, self.fine and self.fine.take(places))

    def put(self, places: Longs, other: "Coded") -> None:
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


def empty_codes(rows: int, like: Coded) -> Coded:
    """Return room for the codes of so many rows in the frame of others; pages that are not written take no memory."""
    codes, stats = np.empty((rows, like.codes.shape[1]), np.uint8), np.empty((rows, like.stats.shape[1]))
    return Coded(codes, stats, like.frame, like.fine and empty_codes(rows, like.fine))


def _encode(rows: Tensor, frame: Frame, row_multiple: int) -> tuple[Coded, Tensor | None]:
    """Code rows (n, D) float32 or float64, filled up to a multiple of rows; return also their projection (n, d)."""
    if frame.basis is None:
        return _encode_all(rows, frame, row_multiple, ROW_BYTES), None
    leading = frame.project(rows)
    codes, stats = _room(len(rows), leading.shape[1], row_multiple, ROW_BYTES)
    fine_codes, fine_stats = (
        _room(len(rows), rows.shape[1], row_multiple, PIECE) if frame.refined else _room(0, 1, 1, 1)
    )
    values, center, coordinates = rows.numpy(), frame.center.numpy(), leading.numpy()
    slack, blur = 2.1 * frame.product_error + 3 * frame.defect, 2.1 * frame.blur

    def encode(start: int, stop: int) -> None:
        encode_projected(
            values, center, frame.scale, coordinates, slack, blur, codes, stats, fine_codes, fine_stats, start, stop
        )

    in_parallel(len(rows), encode)
    return Coded(codes, stats, frame, Coded(fine_codes, fine_stats, frame) if frame.refined else None), leading


def _encode_all(rows: Tensor, frame: Frame, row_multiple: int, byte_multiple: int) -> Coded:
    """Code all dimensions of rows."""
    codes, stats = _room(len(rows), rows.shape[1], row_multiple, byte_multiple)
    values, center = rows.numpy(), frame.center.numpy()
    in_parallel(len(rows), lambda *part: encode_centred(values, center, frame.scale, codes, stats, *part))
    return Coded(codes, stats, frame)


def _room(rows: int, width: int, row_multiple: int, byte_multiple: int) -> tuple[Bytes, Doubles]:
    codes = np.empty((-(-rows // row_multiple) * row_multiple, -(-width // byte_multiple) * byte_multiple), np.uint8)
    codes[rows:] = CODE_OFFSET
    return codes, np.empty((rows, 6))


def _terms(coded: Coded) -> Floats:
    """Return what bounds need of centroids, float32 (5, k): square, step, and the terms of the reach, rounded up."""
    stats = coded.stats
    columns = (stats[:, NORM], stats[:, STEP], stats[:, RESIDUAL] * _UP, stats[:, INSIDE] * _UP, stats[:, LOST] * _UP)
    with np.errstate(over="ignore"):  # centroids out of range, which are not scanned
        return np.stack(columns).astype(np.float32)


def _factors(coded: Coded) -> Floats:
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


def _signed(coded: Coded, order: Longs) -> Codes:
    """Return the codes int8 (places, width) of the centroids in each place, zero where there is none."""
    codes = (coded.codes ^ np.uint8(CODE_OFFSET)).view(np.int8)
    if len(order) == len(codes) and np.array_equal(order, np.arange(len(order))):
        return codes
    placed = codes[order]
    placed[order < 0] = 0
    return placed


def _pack(coded: Coded, order: Longs) -> Tiles:
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


def _pack_fine(coded: Coded | None, order: Longs) -> Fine:
    if coded is None:
        return Fine(np.empty((0, PIECE), np.int8), np.empty(0, np.int32), np.empty((0, 5), np.float32))
    codes = _signed(coded, order)
    return Fine(codes, _offsets(codes), np.ascontiguousarray(_terms(coded)[:, order].T))


def _aligned(shape: tuple[int, ...]) -> Codes:
    """Return an array of bytes that begins at a cache line."""
    raw = np.empty(math.prod(shape) + ALIGNMENT, np.int8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + math.prod(shape)].reshape(shape)


def _order_in_tiles(coordinates: Floats) -> Longs:
    """Return the rows (k, d) in an order in which each LANES of them lie near each other, filled up with -1.

    Halves are split again and again at the median of their widest coordinate.
    """
    full = []
    stack = [np.arange(len(coordinates), dtype=np.int64)]
    while stack:
        part = stack.pop()
        if len(part) <= LANES:
            full.append(part)
            continue
        column = coordinates[part, int(coordinates[part].var(axis=0).argmax())]
        half = -(-len(part) // 2 // LANES) * LANES
        split = np.argpartition(column, half - 1)
        stack += [part[split[half:]], part[split[:half]]]
    return np.concatenate(full)


class CentroidScan:
    """Centroids in a frame, ready to be scanned.

    centroids (k, D) float32 or float64 on the CPU; frame: any that brings them near the origin and near norm 1.
    """

    def __init__(self, centroids: Tensor, frame: Frame) -> None:
        self.frame = frame
        self.centroids = np.ascontiguousarray(centroids.numpy())
        coded, leading = _encode(centroids, frame, 1)
        order = np.arange(len(centroids), dtype=np.int64)
        if leading is not None:
            order = _order_in_tiles((leading @ _turn(leading.shape[1])[:_ORDERED].T).numpy())
        order = np.pad(order, (0, -len(order) % LANES), constant_values=-1)
        self._tiles, self._fine = _pack(coded, order), _pack_fine(coded.fine, order)
        self._largest = math.sqrt(float(coded.stats[:, NORM].max()))

    @property
    def usable(self) -> bool:
        """Whether the centroids themselves are within the range of the bounds."""
        return self._largest < _LARGEST_NORM

    def code(self, points: Tensor) -> Coded:
        """Code points (n, D) float32 or float64; another scan in the same frame can use the result."""
        return _encode(points, self.frame, ROWS)[0]

    def search(self, points: Tensor, coded: Coded, *, pair: bool) -> tuple[Longs, Doubles, Ints]:
        """Find the nearest centroid and, where `pair`, the runner-up of each point.

        Returns:
            labels int64 (n, 2), k for none and -1 where the caller has to decide (values out of range, or more exact
            distances than it is worth); distances float64 (n, 2), squared; and int32 (n,): how many exact distances a
            row needed beyond the first.

        Raises:
            ValueError: the codes are of another frame.
        """
        if coded.frame is not self.frame:
            raise ValueError("the points were coded in another frame than the centroids")
        rows, k = len(points), len(self.centroids)
        found = Found(np.full((rows, 2), k, np.int64), np.full((rows, 2), np.inf), np.zeros(rows, np.int32))
        coarse, fine = self._rows(coded, self.frame), self._rows(coded.fine or coded, None)
        values, square = np.ascontiguousarray(points.numpy()), self.frame.scale**2
        width = coded.codes.shape[1] + (coded.fine.codes.shape[1] if coded.fine else 0)
        group = max(1, _GROUP_BYTES // (LANES * width))
        chunk = max(ROWS, _CHUNK_BYTES // (width + 4 * len(self._tiles.packed)) // ROWS * ROWS)

        def scan(start: int, stop: int) -> None:
            scan_rows(
                values, self.centroids, coarse, self._tiles, fine, self._fine, square, pair,
                found, start, stop, chunk, group,
            )  # fmt: skip

        in_parallel(rows, scan, ROWS)
        found.labels[(found.computed > MOST_DISTANCES) | ~np.isfinite(coarse.shifts)] = -1
        return found.labels, found.distances, found.computed

    def _rows(self, coded: Coded, frame: Frame | None) -> Rows:
        """Return points as the scan reads them; frame: None for codes in all dimensions."""
        return Rows(coded.codes, _factors(coded), self._shifts(coded, frame))

    def _shifts(self, coded: Coded, frame: Frame | None) -> Doubles:
        """Return (n,) float64: minus |y|^2, plus what rounding may have taken from a bound; infinite out of range."""
        squares, largest = coded.stats[:, NORM], self._largest
        inside = squares < _LARGEST_NORM**2
        norms, dim = np.sqrt(np.where(inside, squares, 0.0)), self.centroids.shape[1]
        projected = np.zeros_like(norms)
        if frame is not None:
            projected = (4.2 * frame.product_error + 6.3 * frame.defect) * norms * largest
            projected += 2.1 * frame.blur * (norms + largest)
        rounding = (24 * UNIT + LANES * 2.0**-22) * (largest + 2 * norms) ** 2  # the second: lanes in the last bits
        underflow = dim * 2.0**-118 * (1 + norms + largest) + dim * 2.0**-1070 * self.frame.scale**2
        return np.where(inside, projected + rounding + underflow - squares, np.inf)


def choose_frame(points: Tensor, centroids: Tensor, center: Tensor, scale: float) -> Frame:
    """Choose between all dimensions and projections by what a few of the points would cost on one thread.

    points (n, D), n at least 1, and centroids (k, D), float32 or float64, finite. The choice never shows in results.
    """
    whole = Frame(center, scale)
    k, dim = centroids.shape
    widths = [width for width in WIDTHS if 2 * width <= dim]
    if not widths:
        return whole
    y = whole.center_rows(points[_spread(len(points), _SAMPLE_ROWS)])
    w = whole.center_rows(centroids[_spread(k, _SAMPLE_CENTROIDS)])
    basis = _leading_directions(w, widths[-1])
    costs = {(0, False): k * (_PRODUCT * dim + _SCORE) + 2 * dim * _EXACT}
    costs |= _projected_costs(y, w, k, _nearest_scores(y, centroids, whole), basis, widths)
    width, refined = min(costs, key=lambda key: costs[key])
    if width == 0:
        return whole
    chosen = (basis[:, :width] @ _turn(width)).contiguous()
    wide = chosen.to(torch.float64)
    defect = float(torch.linalg.matrix_norm(wide.T @ wide - torch.eye(width, dtype=torch.float64))) * (1 + 1e-6)
    offset = float(torch.linalg.vector_norm(center)) if scale == 1 else math.inf
    near = offset <= _NEAR * float(torch.linalg.vector_norm(w, dim=1).mean())
    return Frame(center, scale, chosen, refined, defect, offset if near else math.inf)


def _spread(count: int, most: int) -> Tensor:
    """Return up to `most` of `count` places, at random but always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def _leading_directions(rows: Tensor, width: int) -> Tensor:
    """Return an orthonormal basis (D, width) float32 near the leading principal directions of rows, in their order."""
    block = torch.randn(rows.shape[1], width + _BASIS_SPARE, generator=torch.Generator().manual_seed(0))
    for _ in range(_BASIS_ROUNDS):
        block = torch.linalg.qr(rows.T @ (rows @ block))[0]
    small = rows @ block
    return (block @ torch.linalg.eigh(small.T @ small)[1].flip(1))[:, :width]


@cache
def _turn(width: int) -> Tensor:
    """Return a random rotation (d, d): turned coordinates are alike in size, so that their codes lose less."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))[0]


def _nearest_scores(y: Tensor, centroids: Tensor, frame: Frame) -> Tensor:
    """Return about the smallest |w|^2 - 2 y.w (n, 1) of centred points y (n, D) and all centroids w + center.

    The centroids are not copied, so a center far away blurs the result.
    """
    narrow = (centroids * frame.scale if frame.scale != 1 else centroids).to(torch.float32)
    center = frame.center * frame.scale
    squares = torch.linalg.vector_norm(narrow, dim=1).square() - 2 * (narrow @ center) + center @ center
    scores = torch.addmm(squares, y, narrow.T, alpha=-2)
    return (scores + 2 * (y @ center)[:, None]).amin(dim=1, keepdim=True)


def _projected_costs(
    y: Tensor, w: Tensor, k: int, limit: Tensor, basis: Tensor, widths: list[int]
) -> dict[tuple[int, bool], float]:
    """Estimate nanoseconds per point for each width, with and without refinement, from some points and centroids.

    y (n, D) and w (m, D) of k centroids; limit (n, 1): |w|^2 - 2 y.w of the nearest of all k.
    """
    dim = y.shape[1]
    z, e = y @ basis, w @ basis
    squares, row_squares = w.square().sum(dim=1), y.square().sum(dim=1)
    loss = 3.3 / CODE_LIMIT / math.sqrt(12)  # of codes of turned coordinates, per norm
    costs = {}
    for width in widths:
        inner, outer = z[:, :width], e[:, :width]
        left = (row_squares - inner.square().sum(dim=1)).clamp_min(0).sqrt()
        right = (squares - outer.square().sum(dim=1)).clamp_min(0).sqrt()
        reach = torch.outer(left, right) + 2 * loss * torch.outer(inner.norm(dim=1), outer.norm(dim=1))
        bounds = squares - 2 * (inner @ outer.T) - 2 * reach
        candidates = float((bounds <= limit).sum(dim=1, dtype=torch.float32).mean()) * k / len(w)
        tiles = min(2 * candidates, k / LANES)
        scan = dim * width * _PROJECTED + k * (_PRODUCT * width + _SCORE)
        scan += tiles * (20 + width * LANES * _PRODUCT * 2)
        costs[width, False] = scan + 2 * candidates * dim * _EXACT
        costs[width, True] = scan + 1.2 * candidates * (8 + dim * _REFINED) + 3 * dim * _EXACT
    return costs


def exact_label_distances(points: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    """Return squared distances (n,) float64 of points (n, D) to centroids[labels], float32 or float64 on the CPU."""
    result = np.empty(len(points))
    rows, table = np.ascontiguousarray(points.numpy()), np.ascontiguousarray(centroids.numpy())
    where = np.ascontiguousarray(labels.numpy())
    in_parallel(len(rows), lambda *part: exact_distances(rows, table, where, result, *part))
    return torch.from_numpy(result)


def exhaustive_search(points: Tensor, centroids: Tensor) -> tuple[Longs, Doubles]:
    """Return the nearest centroid and the runner-up by exact distances alone: labels and distances (n, 2)."""
    found = Found(np.full((len(points), 2), len(centroids), np.int64), np.full((len(points), 2), np.inf), _NONE)
    rows, table = np.ascontiguousarray(points.numpy()), np.ascontiguousarray(centroids.numpy())
    in_parallel(len(rows), lambda *part: nearest_of_all(rows, table, found, *part))
    return found.labels, found.distances


def scan_pays(rows: int, k: int, dim: int) -> bool:
    """Return whether this CPU can scan such a problem, and it is large enough to be worth it."""
    return k >= SMALLEST_K and dim <= LARGEST_DIM and rows * k * dim >= 1 << 24 and vnni_bits() > 0
