"""The nearest-centroid scan: streams centroids past a tile of points and keeps the best scores of each row.

Scores are s_ij = offset_j - 2 x_i·c_j in float32, with the factor -2 folded into the centroid operand and the offsets
put into the accumulators first, so that one move and one minimum per score remain beside the tensor cores. The
(points, centroids) matrix never leaves registers.

Two results can be asked for. "index" keeps the smallest score and its column, the lowest column on equal scores, and
the runner-up on request. "group" keeps, for certified search, lower bounds of groups of columns: group g holds the
columns (g // SLOTS) * COLUMNS + g % SLOTS + SLOTS * i, the ones that one thread holds, so its minimum needs no
exchange between threads and no index per score.
"""

# Kernels are not typed: their arguments are pointers and descriptors at one time, tensors at another.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _score_tile(
    x, c, offsets, row_scale, column_scale, rows, first_row, column, limit, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Return the scores (ROWS, COLUMNS) of one tile."""
    columns = column + tl.arange(0, COLUMNS)
    inner = tl.arange(0, DEPTH)
    offset = tl.load(offsets + columns)[None, :]
    accumulator = tl.zeros((ROWS, COLUMNS), tl.int32) if INTEGER else tl.broadcast_to(offset, (ROWS, COLUMNS))
    if not DESCRIPTORS:
        x_pointers = x + tl.minimum(rows, limit - 1).to(tl.int64)[:, None] * depth + inner[None, :]
        c_pointers = c + columns.to(tl.int64)[:, None] * depth + inner[None, :]
    for start in range(0, depth, DEPTH):
        if DESCRIPTORS:
            left = x.load([first_row, start])
            right = c.load([column, start])
        else:
            left = tl.load(x_pointers + start)
            right = tl.load(c_pointers + start)
        if INTEGER:
            accumulator = tl.dot(left, right.T, accumulator, out_dtype=tl.int32)
        else:
            accumulator = tl.dot(left, right.T, accumulator, input_precision=PRECISION)
    if INTEGER:
        scaled = accumulator.to(tl.float32) * tl.load(column_scale + columns)[None, :]
        scores = scaled * row_scale[:, None] + offset
    else:
        scores = accumulator
    return scores


@triton.jit
def _best_of_slots(value, index, next_value, next_index, last_value):
    """Return the smallest (value, index) of each row and the arrays with that entry moved up in its slot."""
    best = tl.min(value, axis=1)
    chosen = tl.min(tl.where(value == best[:, None], index, 2147483647), axis=1)
    hit = index == chosen[:, None]
    index = tl.where(hit, next_index, index)
    value = tl.where(hit, next_value, value)
    next_value = tl.where(hit, last_value, next_value)
    return best, chosen, value, index, next_value


@triton.jit
def scan_groups_kernel(
    x, c, offsets, row_scale, column_scale, residuals, norms, tile_norms, tile_residuals,
    first_group, second_group, second_bound, third_bound, n, depth, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLOTS: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Write per row the two groups of columns with the smallest lower bounds, and the second and third of the bounds.

    A lower bound is the group's smallest score less residuals_i * tile_norms_t + norms_i * tile_residuals_t.
    """
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    scale = tl.load(row_scale + rows, inside, other=0) if INTEGER else 0
    residual = tl.load(residuals + rows, inside, other=0)
    norm = tl.load(norms + rows, inside, other=0)
    value1 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    value2 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    value3 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    tile1 = tl.zeros((ROWS, SLOTS), tl.int32)
    tile2 = tl.zeros((ROWS, SLOTS), tl.int32)
    for tile in range(tiles):
        scores = _score_tile(
            x, c, offsets, scale, column_scale, rows, first_row, tile * COLUMNS, n, depth,
            ROWS, COLUMNS, DEPTH, INTEGER, PRECISION, DESCRIPTORS,
        )  # fmt: skip
        low = tl.min(tl.reshape(scores, (ROWS, COLUMNS // SLOTS, SLOTS)), axis=1)
        slack = residual * tl.load(tile_norms + tile) + norm * tl.load(tile_residuals + tile)
        low = low - slack[:, None]
        before1 = low < value1
        before2 = low < value2
        value3 = tl.minimum(value3, tl.maximum(value2, low))
        value2 = tl.minimum(value2, tl.maximum(value1, low))
        value1 = tl.minimum(value1, low)
        tile2 = tl.where(before1, tile1, tl.where(before2, tile, tile2))
        tile1 = tl.where(before1, tile, tile1)
    slot = tl.arange(0, SLOTS)[None, :]
    group1, group2 = tile1 * SLOTS + slot, tile2 * SLOTS + slot
    _best, chosen, value1, group1, value2 = _best_of_slots(value1, group1, value2, group2, value3)
    second, other, value1, group1, value2 = _best_of_slots(value1, group1, value2, group1, value2)
    tl.store(first_group + rows, chosen, inside)
    tl.store(second_group + rows, other, inside)
    tl.store(second_bound + rows, second, inside)
    tl.store(third_bound + rows, tl.min(value1, axis=1), inside)


@triton.jit
def scan_index_kernel(
    x, c, offsets, row_scale, column_scale, first_index, first_score, second_index, second_score, n, depth, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLOTS: tl.constexpr, RUNNER_UP: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Write per row the smallest score and its column, the lowest on equal scores, and with RUNNER_UP the next pair."""
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    scale = tl.load(row_scale + rows, inside, other=0) if INTEGER else 0
    value1 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    value2 = tl.full((ROWS, SLOTS), float("inf"), tl.float32)
    index1 = tl.full((ROWS, SLOTS), -1, tl.int32)
    index2 = tl.full((ROWS, SLOTS), -1, tl.int32)
    step = tl.arange(0, COLUMNS // SLOTS)[None, :, None]
    slot = tl.arange(0, SLOTS)[None, :]
    for tile in range(tiles):
        scores = _score_tile(
            x, c, offsets, scale, column_scale, rows, first_row, tile * COLUMNS, n, depth,
            ROWS, COLUMNS, DEPTH, INTEGER, PRECISION, DESCRIPTORS,
        )  # fmt: skip
        scores = tl.reshape(scores, (ROWS, COLUMNS // SLOTS, SLOTS))
        low = tl.min(scores, axis=1)
        place = tl.min(tl.where(scores == low[:, None, :], step, COLUMNS), axis=1)
        column = tile * COLUMNS + place * SLOTS + slot
        before1 = low < value1
        if RUNNER_UP:
            before2 = low < value2
            index2 = tl.where(before1, index1, tl.where(before2, column, index2))
            value2 = tl.where(before1, value1, tl.where(before2, low, value2))
        index1 = tl.where(before1, column, index1)
        value1 = tl.where(before1, low, value1)
        if RUNNER_UP:
            scores = tl.where(step == place[:, None, :], float("inf"), scores)
            low = tl.min(scores, axis=1)
            place = tl.min(tl.where(scores == low[:, None, :], step, COLUMNS), axis=1)
            before2 = low < value2
            index2 = tl.where(before2, tile * COLUMNS + place * SLOTS + slot, index2)
            value2 = tl.where(before2, low, value2)
    best, chosen, value1, index1, value2 = _best_of_slots(value1, index1, value2, index2, value2)
    tl.store(first_index + rows, chosen, inside)
    tl.store(first_score + rows, best, inside)
    if RUNNER_UP:
        best, chosen, value1, index1, value2 = _best_of_slots(value1, index1, value2, index2, value2)
        tl.store(second_index + rows, chosen, inside)
        tl.store(second_score + rows, best, inside)


@triton.jit
def emit_candidates_kernel(
    x, c, offsets, row_scale, column_scale, residuals, norms, tile_norms, tile_residuals,
    limits, count, pair_rows, pair_columns, n, depth, tiles, parts, capacity,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INTEGER: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """List every (row, column) whose lower bound is at most limits_i; count goes on where the list is full."""
    first_row = tl.program_id(0) // parts * ROWS
    part = tl.program_id(0) % parts
    rows = first_row + tl.arange(0, ROWS)
    inside = rows < n
    scale = tl.load(row_scale + rows, inside, other=0) if INTEGER else 0
    residual = tl.load(residuals + rows, inside, other=0)
    norm = tl.load(norms + rows, inside, other=0)
    limit = tl.load(limits + rows, inside, other=float("-inf"))
    for tile in range(part, tiles, parts):
        scores = _score_tile(
            x, c, offsets, scale, column_scale, rows, first_row, tile * COLUMNS, n, depth,
            ROWS, COLUMNS, DEPTH, INTEGER, PRECISION, DESCRIPTORS,
        )  # fmt: skip
        slack = residual * tl.load(tile_norms + tile) + norm * tl.load(tile_residuals + tile)
        wanted = (scores - slack[:, None] <= limit[:, None]) & (scores < float("inf"))
        if tl.max(tl.max(wanted.to(tl.int32), axis=1), axis=0) > 0:
            columns = tile * COLUMNS + tl.arange(0, COLUMNS)
            ones = tl.full((ROWS, COLUMNS), 1, tl.int32)
            place = tl.atomic_add(count + tl.zeros((ROWS, COLUMNS), tl.int32), ones, wanted, sem="relaxed")
            kept = wanted & (place < capacity)
            tl.store(pair_rows + place, tl.broadcast_to(rows[:, None], (ROWS, COLUMNS)), kept)
            tl.store(pair_columns + place, tl.broadcast_to(columns[None, :], (ROWS, COLUMNS)), kept)
