"""Scan centroids with 8-bit products on CPUs: Numba functions that bound distances, and settle the rest exactly.

A row is coded as s q with 8-bit q. As explained in `cpu.certify`, |y - w|^2 is at least

    |y|^2 + square - 2 s s' q.q' - 2 (f1 t1 + f2 t2 + f3 t3) - rounding,

with non-negative factors f of the point and terms t of the centroid. "square - 2 s s' q.q'" is called the estimate, and
"2 (f1 t1 + f2 t2 + f3 t3)" its reach. The scan keeps the smallest estimate for each point and tile of centroids. Exact
float64 distances decide between the centroids that are possible by estimate and reach.
"""

from typing import Any, NamedTuple

import numpy as np

from sctok.runtime.jit import compiled

from .encode import Bytes, Codes, Doubles, Floats, Ints, Longs
from .vnni import (
    LANES,
    PIECE,
    QUAD,
    ROWS,
    byte_product,
    gathered_bounds,
    lowest_bit,
    row_estimates,
    tile_minima,
)

MOST_DISTANCES = 128  # exact distances of a point, after which the caller decides it


class Tiles(NamedTuple):
    """Centroids in tiles of LANES.

    order: (tiles * LANES,) int64, the centroid in each place, -1 for none.
    packed: (tiles, quads, LANES, 4) int8, their codes.
    offsets: (tiles, LANES) int32, -128 times the sum of the codes.
    terms: (tiles, 5, LANES) float32: |w|^2, the step, and t1, t2, t3.
    widest: (5, tiles) float32, the largest terms of each tile.
    """

    order: Longs
    packed: Codes
    offsets: Ints
    terms: Floats
    widest: Floats


class Fine(NamedTuple):
    """The same centroids in all dimensions, place by place. The length is 0 if the tiles have all dimensions already.

    codes: (places, a multiple of PIECE) int8. offsets: (places,) int32. terms: (places, 5) float32.
    """

    codes: Codes
    offsets: Ints
    terms: Floats


class Rows(NamedTuple):
    """Points.

    codes: (n rounded up to ROWS, width) uint8.
    factors: (n rounded up to ROWS, 4) float32: -2 times the step, and twice f1, f2, f3.
    shifts: (n,) float64. Added to a squared distance in scaled units, it gives the limit for bounds. It is infinite if
    the caller has to decide the row.
    """

    codes: Bytes
    factors: Floats
    shifts: Doubles


class Found(NamedTuple):
    """Results of n rows.

    labels: (n, 2) int64, initially k.
    distances: (n, 2) float64, initially infinite.
    computed: (n,) int32, initially 0: exact distances after the first guess. If it exceeds MOST_DISTANCES, the caller
    has to decide the row.
    """

    labels: Longs
    distances: Doubles
    computed: Ints


_SAFE = 1 + 2.0**-40  # covers the float64 rounding of a sum of squares


@compiled()
def exact_distance(point: Any, centroid: Any, terms: Doubles) -> float:
    """Return the squared distance, summed in the order of `reference.squared_distances`. terms: scratch memory."""
    width = point.shape[0]
    half = width // 2
    upper = width - half
    point_tail, centroid_tail = point[upper:], centroid[upper:]  # slices let the compiler vectorize the loops
    for i in range(half):
        one = np.float64(point[i]) - np.float64(centroid[i])
        other = np.float64(point_tail[i]) - np.float64(centroid_tail[i])
        terms[i] = one * one + other * other
    if upper > half:
        one = np.float64(point[half]) - np.float64(centroid[half])
        terms[half] = one * one
    while upper > 1:
        half = upper // 2
        tail = terms[upper - half : upper]
        upper -= half
        for i in range(half):
            terms[i] += tail[i]
    return terms[0]


@compiled()
def exact_distances(points: Any, centroids: Any, labels: Longs, distances: Doubles, start: int, stop: int) -> None:
    """Write the exact squared distances between the rows start … stop and centroids[labels]."""
    terms = np.empty(max(1, points.shape[1]), np.float64)
    for i in range(start, stop):
        distances[i] = exact_distance(points[i], centroids[labels[i]], terms)


@compiled()
def _consider(j: int, distance: float, i: int, found: Found) -> None:
    """Keep centroid j for row i if it is the nearest or the runner-up. The lower index wins a tie."""
    labels, distances = found.labels, found.distances
    if distance < distances[i, 0] or (distance == distances[i, 0] and j < labels[i, 0]):
        labels[i, 1], distances[i, 1] = labels[i, 0], distances[i, 0]
        labels[i, 0], distances[i, 0] = j, distance
    elif distance < distances[i, 1] or (distance == distances[i, 1] and j < labels[i, 1]):
        labels[i, 1], distances[i, 1] = j, distance


@compiled()
def nearest_of_all(points: Any, centroids: Any, found: Found, start: int, stop: int) -> None:
    """Settle the rows start … stop by their exact distances to all centroids."""
    terms = np.empty(max(1, points.shape[1]), np.float64)
    for i in range(start, stop):
        for j in range(len(centroids)):
            _consider(j, exact_distance(points[i], centroids[j], terms), i, found)


@compiled()
def _minima(rows: Rows, tiles: Tiles, group: int, minima: Floats) -> None:
    """Write the smallest estimate of every row and tile to minima (n, tiles). n: a multiple of ROWS."""
    count, width = rows.codes.shape
    number, quads = tiles.packed.shape[0], tiles.packed.shape[1]
    x, c, o = rows.codes.ctypes.data, tiles.packed.ctypes.data, tiles.offsets.ctypes.data
    t, f, m = tiles.terms.ctypes.data, rows.factors.ctypes.data, minima.ctypes.data
    for first in range(0, number, group):
        for i in range(0, count, ROWS):
            for tile in range(first, min(first + group, number)):
                tile_minima(
                    x + i * width,
                    np.int64(width),
                    c + tile * quads * (LANES * QUAD),
                    np.int64(quads),
                    o + tile * (4 * LANES),
                    t + tile * (20 * LANES),
                    f + 16 * i,
                    m + (i * number + tile) * 4,
                    np.int64(4 * number),
                )


@compiled()
def _smallest(row: Floats) -> int:
    """Return the first index of the smallest value."""
    smallest = row[0]
    for j in range(len(row)):
        smallest = min(smallest, row[j])
    place = 0
    while row[place] > smallest:
        place += 1
    return place


@compiled()
def _first_guess(
    points: Any, centroids: Any, rows: Rows, tiles: Tiles, minima: Floats, pair: bool, found: Found
) -> None:
    """Compute, for every row, the exact distance to the centroid of its smallest estimate.

    The last bits of an estimate hold the lane of the centroid. For pairs, take the two smallest estimates of the tile.
    """
    values, work = np.empty(LANES, np.float32), np.empty(max(1, points.shape[1]), np.float64)
    lanes, quads = minima.view(np.int32), tiles.packed.shape[1]
    for i in range(len(points)):
        tile = _smallest(minima[i])
        lane = lanes[i, tile] & np.int32(LANES - 1)
        if pair:
            row_estimates(
                rows.codes.ctypes.data + i * rows.codes.shape[1],
                tiles.packed.ctypes.data + tile * quads * (LANES * QUAD),
                np.int64(quads),
                tiles.offsets.ctypes.data + tile * (4 * LANES),
                tiles.terms.ctypes.data + tile * (20 * LANES),
                rows.factors.ctypes.data + 16 * i,
                values.ctypes.data,
            )
            lane = _smallest(values)
        j = tiles.order[tile * LANES + lane]
        if j >= 0:
            _consider(j, exact_distance(points[i], centroids[j], work), i, found)
        if pair:
            values[lane] = np.inf
            j = tiles.order[tile * LANES + _smallest(values)]
            if j < 0 and minima.shape[1] > 1:  # the tile holds one centroid
                minima[i, tile], kept = np.inf, minima[i, tile]
                other = _smallest(minima[i])
                j = tiles.order[other * LANES + (lanes[i, other] & np.int32(LANES - 1))]
                minima[i, tile] = kept
            if j >= 0:
                _consider(j, exact_distance(points[i], centroids[j], work), i, found)


@compiled()
def _possible(minima: Floats, factors: Floats, i: int, widest: Floats, limit: np.float32, hits: Bytes) -> None:
    """Mark the tiles, in one byte each, in which a centroid may be within the limit of row i."""
    one, two, three = factors[i, 1], factors[i, 2], factors[i, 3]
    residuals, insides, losts = widest[2], widest[3], widest[4]
    for tile in range(len(minima)):
        reach = one * residuals[tile] + two * insides[tile] + three * losts[tile]
        hits[tile] = minima[tile] - reach <= limit


@compiled()
def _gather_hits(
    minima: Floats, factors: Floats, widest: Floats, limits: Floats, hits: Bytes, members: Longs, counts: Longs
) -> None:
    """List the rows that may have a candidate in each tile of a group: members (tiles, rows), counts (tiles,)."""
    counts[:] = 0
    eights = hits.view(np.int64)
    tiles = minima.shape[1]
    for i in range(len(limits)):
        if not limits[i] > -np.inf:
            continue
        _possible(minima[i], factors, i, widest, limits[i], hits)
        for eight in range((tiles + 7) // 8):
            if eights[eight] == 0:
                continue
            for tile in range(8 * eight, min(8 * eight + 8, tiles)):
                if hits[tile]:
                    members[tile, counts[tile]] = i
                    counts[tile] += 1


@compiled()
def _fine_bound(i: int, place: int, rows: Rows, fine: Fine) -> float:
    """Return the lower bound between row i and the centroid at a place, in all dimensions."""
    width = fine.codes.shape[1]
    x, c = rows.codes.ctypes.data + i * width, fine.codes.ctypes.data + place * width
    product = fine.offsets[place] + byte_product(x, c, np.int64(width // PIECE))
    terms, factors = fine.terms[place], rows.factors[i]
    estimate = terms[0] + factors[0] * (np.float32(product) * terms[1])
    return estimate - (factors[1] * terms[2] + factors[2] * terms[3] + factors[3] * terms[4])


@compiled()
def _settle(
    points: Any, centroids: Any, rows: Rows, tiles: Tiles, fine_rows: Rows, fine: Fine, minima: Floats, square: float,
    pair: bool, group: int, found: Found,
) -> None:  # fmt: skip
    """Compute the exact distances to the centroids that the bounds leave possible, tile by tile."""
    count, number, quads, worst = len(points), tiles.packed.shape[0], tiles.packed.shape[1], 1 if pair else 0
    labels, distances, computed = found
    work, refined = np.empty(max(1, points.shape[1]), np.float64), len(fine.codes) > 0
    limits, hits = np.empty(count, np.float32), np.zeros((group + 7) // 8 * 8, np.uint8)
    members, counts = np.empty((group, count), np.int64), np.empty(group, np.int64)
    batch, reach = np.empty(ROWS, np.int64), np.empty(ROWS, np.float32)
    bounds, masks = np.empty((ROWS, LANES), np.float32), np.empty(ROWS, np.int64)
    for i in range(count):
        limits[i] = -np.inf
        if rows.shifts[i] < np.inf:
            limits[i] = distances[i, worst] * square * _SAFE + rows.shifts[i]
    for first in range(0, number, group):
        last = min(first + group, number)
        _gather_hits(
            minima[:count, first:last], rows.factors, tiles.widest[:, first:last], limits, hits, members, counts
        )
        for tile in range(first, last):
            for start in range(0, counts[tile - first], ROWS):
                size = min(ROWS, counts[tile - first] - start)
                for m in range(ROWS):
                    batch[m] = members[tile - first, start + min(m, size - 1)]
                    reach[m] = limits[batch[m]]
                gathered_bounds(
                    rows.codes.ctypes.data,
                    np.int64(rows.codes.shape[1]),
                    tiles.packed.ctypes.data + tile * quads * (LANES * QUAD),
                    np.int64(quads),
                    tiles.offsets.ctypes.data + tile * (4 * LANES),
                    tiles.terms.ctypes.data + tile * (20 * LANES),
                    rows.factors.ctypes.data,
                    batch.ctypes.data,
                    reach.ctypes.data,
                    bounds.ctypes.data,
                    masks.ctypes.data,
                )
                for m in range(size):
                    mask, i = masks[m], batch[m]
                    while mask != 0:
                        lane = lowest_bit(mask)
                        mask &= mask - 1
                        place = tile * LANES + lane
                        j = tiles.order[place]
                        if bounds[m, lane] > limits[i] or j < 0 or j == labels[i, 0] or j == labels[i, 1]:
                            continue
                        if refined:
                            limit = distances[i, worst] * square * _SAFE + fine_rows.shifts[i]
                            if _fine_bound(i, place, fine_rows, fine) > limit:
                                continue
                        computed[i] += 1
                        _consider(j, exact_distance(points[i], centroids[j], work), i, found)
                        limits[i] = distances[i, worst] * square * _SAFE + rows.shifts[i]
                        if computed[i] > MOST_DISTANCES:
                            limits[i] = -np.inf


@compiled()
def _part(rows: Rows, low: int, high: int, padded: int) -> Rows:
    return Rows(rows.codes[low:padded], rows.factors[low:padded], rows.shifts[low:high])


@compiled()
def scan_rows(
    points: Any, centroids: Any, rows: Rows, tiles: Tiles, fine_rows: Rows, fine: Fine, square: float, pair: bool,
    found: Found, start: int, stop: int, chunk: int, group: int,
) -> None:  # fmt: skip
    """Settle the rows start … stop (start a multiple of ROWS).

    points, centroids: float32 or float64, as given.
    rows, tiles: the same in their frame.
    fine_rows, fine: the same in all dimensions; fine is empty if rows and tiles have all dimensions.
    square: square of the scale.
    pair: whether the runner-up is wanted.
    chunk: number of rows at a time, a multiple of ROWS.
    group: number of tiles at a time.
    """
    minima = np.empty((chunk, tiles.packed.shape[0]), np.float32)
    for low in range(start, stop, chunk):
        high = min(low + chunk, stop)
        padded = low + (high - low + ROWS - 1) // ROWS * ROWS
        part, fine_part = _part(rows, low, high, padded), _part(fine_rows, low, high, padded)
        _minima(part, tiles, group, minima)
        results = Found(found.labels[low:high], found.distances[low:high], found.computed[low:high])
        _first_guess(points[low:high], centroids, part, tiles, minima, pair, results)
        _settle(points[low:high], centroids, part, tiles, fine_part, fine, minima, square, pair, group, results)
