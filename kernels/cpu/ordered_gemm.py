"""Matrix products in which every value is one chain of fused multiply-adds, from the first factor to the last.

Such a product does not depend on the CPU, the number of threads or the other rows. Libraries choose the order of
summation by the shape. This order is also that of oneDNN's recurrent layers, bit for bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sctok.runtime.jit import compiled, compiled_features

Floats = npt.NDArray[np.float32]

# There are 32 registers of 512 bits, or 16 of 256 bits. The sums of a tile fill three quarters of them.
WIDTH, _ROWS = (16, 12) if "avx512f" in compiled_features() else (8, 6)
LANES = 2 * WIDTH  # columns of a panel
DEPTH = 512  # factors of a block before the next panel: this part of a panel stays in the second-level cache
BLOCK = 384  # rows of a block: this part of the rows stays there too

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, WIDTH)
_HALVES = range(2)


class _Emitter:
    """Writer of the LLVM code of one tile: some rows against the LANES columns of a panel. Addresses are int64."""

    def __init__(self, builder: Any, rows: int) -> None:
        self.builder, self.rows = builder, rows

    def at(self, number: int) -> Any:
        return ir.Constant(_I64, number)

    def place(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(base, offset), kind.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any) -> Any:
        value = self.builder.load(self.place(base, offset, kind))
        value.align = 4
        return value

    def spread(self, value: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH))

    def fma(self, *arguments: Any) -> Any:
        module, name = self.builder.module, f"llvm.fma.v{WIDTH}f32"
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), name)
        return self.builder.call(function, arguments)

    def tile(self, x: Any, stride: Any, w: Any, depth: Any, out: Any) -> None:
        """Continue the chains (rows, LANES) at `out` for `depth` more factors."""
        builder = self.builder
        offsets = [[self.at(4 * (LANES * row + WIDTH * half)) for half in _HALVES] for row in range(self.rows)]
        start = [[self.load(out, offset, _VECTOR) for offset in row] for row in offsets]
        lines = [builder.add(x, builder.mul(stride, self.at(row))) for row in range(self.rows)]
        entry, loop, done = builder.block, builder.append_basic_block("factors"), builder.append_basic_block("chained")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(self.at(0), entry)
        chains = [[builder.phi(_VECTOR) for _ in _HALVES] for _ in lines]
        longer = self._longer(chains, lines, w, step)
        for before, phis, after in zip(start, chains, longer, strict=True):
            for half in _HALVES:
                phis[half].add_incoming(before[half], entry)
                phis[half].add_incoming(after[half], loop)
        following = builder.add(step, self.at(1))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
        builder.position_at_end(done)
        for row, values in zip(offsets, longer, strict=True):
            for half in _HALVES:
                builder.store(values[half], self.place(out, row[half], _VECTOR)).align = 4

    def _longer(self, chains: list[list[Any]], lines: list[Any], w: Any, step: Any) -> list[list[Any]]:
        """Return the chains with the products of factor `step` added."""
        offset = self.builder.mul(step, self.at(4 * LANES))
        weights = [self.load(w, self.builder.add(offset, self.at(4 * WIDTH * half)), _VECTOR) for half in _HALVES]
        place = self.builder.mul(step, self.at(4))
        values = [self.spread(self.load(line, place, _F32)) for line in lines]
        return [
            [self.fma(value, weights[half], row[half]) for half in _HALVES]
            for value, row in zip(values, chains, strict=True)
        ]


def _tile(rows: int) -> Any:
    def chain_tile(typingctx: Any, x: Any, stride: Any, w: Any, depth: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Emitter(builder, rows).tile(*arguments)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), codegen

    return intrinsic(chain_tile)


_MIDDLE = 8 if _ROWS > 8 else 4
_tile_most, _tile_middle, _tile_2, _tile_1 = (_tile(rows) for rows in (_ROWS, _MIDDLE, 2, 1))


@compiled()
def _chain_rows(x: int, stride: int, rows: int, w: int, depth: int, out: int) -> None:
    """Continue the chains of rows. x, w and out are addresses, stride is in bytes; out: (rows, LANES) float32."""
    row = 0
    while row < rows:
        left, source, target = rows - row, x + row * stride, out + row * LANES * 4
        if left >= _ROWS:
            _tile_most(source, stride, w, depth, target)
            row += _ROWS
        elif left >= _MIDDLE:
            _tile_middle(source, stride, w, depth, target)
            row += _MIDDLE
        elif left >= 2:
            _tile_2(source, stride, w, depth, target)
            row += 2
        else:
            _tile_1(source, stride, w, depth, target)
            row += 1


@compiled()
def chain_product(x: Floats, panels: Floats, out: Floats) -> None:
    """Compute out[p, m, j] = sum over k of x[m, k] * panels[p, k, j].

    x: (m, k) float32, rows contiguous. panels: (p, k, LANES) from `pack_panels`. out: (p, m, LANES), contiguous.
    """
    rows, depth = x.shape
    out[:] = 0
    for block in range(0, rows, BLOCK):
        for first in range(0, depth, DEPTH):
            for panel in range(len(panels)):
                _chain_rows(
                    x[block:, first:].ctypes.data,
                    x.strides[0],
                    min(BLOCK, rows - block),
                    panels[panel, first:].ctypes.data,
                    min(DEPTH, depth - first),
                    out[panel, block:].ctypes.data,
                )


@compiled()
def pack_panels(weights: Floats, panels: Floats) -> None:
    """Lay weights (n, k) float32 out as panels (ceil(n / LANES), k, LANES), padded with zeros."""
    n, depth = weights.shape
    for panel in range(len(panels)):
        first = panel * LANES
        count = min(LANES, n - first)
        for start in range(0, depth, 16):
            stop = min(depth, start + 16)
            for j in range(count):
                for k in range(start, stop):
                    panels[panel, k, j] = weights[first + j, k]
            for j in range(count, LANES):
                for k in range(start, stop):
                    panels[panel, k, j] = 0
