"""The inner loops of the CPU scan: products of 8-bit integers that become lower bounds without leaving the registers.

Numba compiles them for the CPU that they run on. The byte products are the x86 instruction VPDPBUSD, an LLVM intrinsic,
in 512 bits (AVX-512 VNNI) or 256 bits (AVX-VNNI). CPUs without it multiply in plain LLVM code, with the same integers:
sums of byte products are exact in int32, and nothing is rounded before the last conversion.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sctok.runtime.jit import compiled_features

_FEATURES = {512: ("avx512f", "avx512bw", "avx512vl", "avx512vnni"), 256: ("avx2", "fma", "avxvnni")}


@cache
def vnni_bits() -> int:
    """Return the width in bits of the byte products that Numba compiles for: 512, 256, or 0 without the instruction."""
    return next((bits for bits, needed in _FEATURES.items() if compiled_features().issuperset(needed)), 0)


BITS = vnni_bits() or 256
WIDTH = BITS // 32  # int32 lanes of a register
VECTORS = 4
LANES = VECTORS * WIDTH  # centroids of a tile
ROWS = {512: 6, 256: 3}[BITS]  # points of a tile: their sums fill most of the 32 or 16 registers
COLUMNS = 2 * WIDTH  # columns that `column_products` computes at a time
QUAD = 4  # bytes that one lane multiplies and sums at a time
ROW_BYTES = 2 * QUAD  # the length of a row of codes is a multiple of this
PIECE = 2 * BITS // 8  # bytes that `byte_product` multiplies at a time
ALIGNMENT = 64  # of packed centroids, in bytes
LARGEST_DIM = 65_536  # 255 * 127 * dim stays below 2^31

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, WIDTH), ir.VectorType(_F32, WIDTH)
_CHAINS = 2  # independent sums, so that no addition waits for the previous one
_DOT = f"llvm.x86.avx512.vpdpbusd.{BITS}"
_FMA = f"llvm.fma.v{WIDTH}f32"


class _Emitter:
    """Writer of the LLVM code of one tile: points, given by int64 row numbers, against LANES centroids."""

    def __init__(self, builder: Any, rows: list[Any]) -> None:
        self.builder, self.rows = builder, rows

    def function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        known = module.globals.get(name)
        return known or ir.Function(module, ir.FunctionType(result, arguments), name)

    def load(self, base: Any, offset: Any, kind: Any, align: int) -> Any:
        value = self.builder.load(self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, base: Any, offset: Any, align: int) -> None:
        target = self.builder.bitcast(self.builder.gep(base, [offset]), value.type.as_pointer())
        self.builder.store(value, target).align = align

    def broadcast(self, value: Any, kind: Any) -> Any:
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

    def at(self, number: int) -> Any:
        return ir.Constant(_I64, number)

    def dots(self, x: Any, stride: Any, c: Any, quads: Any, offsets: list[Any]) -> list[list[Any]]:
        """Return the int32 products [rows][VECTORS] plus `offsets`, in a loop over quads of bytes.

        A single row adds two quads at a time to separate sums, so that neither waits for the other.
        """
        builder, chains = self.builder, 2 if len(self.rows) == 1 else 1
        entry = builder.block
        loop, done = builder.append_basic_block("quads"), builder.append_basic_block("products")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(self.at(0), entry)
        sums = [[[builder.phi(_INTS) for _ in range(VECTORS)] for _ in self.rows] for _ in range(chains)]
        results = [self._quad(x, stride, c, builder.add(step, self.at(n)), chain) for n, chain in enumerate(sums)]
        for n, (before, after) in enumerate(zip(sums, results, strict=True)):
            for phis, values in zip(before, after, strict=True):
                for phi, value, offset in zip(phis, values, offsets, strict=True):
                    phi.add_incoming(offset if n == 0 else ir.Constant(_INTS, [0] * WIDTH), entry)
                    phi.add_incoming(value, loop)
        following = builder.add(step, self.at(chains))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, quads), loop, done)
        builder.position_at_end(done)
        if chains == 1:
            return results[0]
        return [[builder.add(*pair) for pair in zip(*rows, strict=True)] for rows in zip(*results, strict=True)]

    def _quad(self, x: Any, stride: Any, c: Any, quad: Any, sums: list[list[Any]]) -> list[list[Any]]:
        """Return the sums [rows][VECTORS] plus the products of one quad of bytes."""
        builder = self.builder
        base = builder.mul(quad, self.at(LANES * QUAD))
        packed = [self.load(c, builder.add(base, self.at(n * WIDTH * QUAD)), _INTS, BITS // 8) for n in range(VECTORS)]
        after = []
        for row, number in zip(sums, self.rows, strict=True):
            place = builder.add(builder.mul(stride, number), builder.mul(quad, self.at(QUAD)))
            word = self.broadcast(self.load(x, place, _I32, 4), _INTS)
            after.append([self.dot(row[n], word, packed[n]) for n in range(VECTORS)])
        return after

    def dot(self, total: Any, x: Any, c: Any) -> Any:
        """Add to each int32 lane of `total` the products of four unsigned bytes of x and four signed bytes of c."""
        builder = self.builder
        if vnni_bits():
            return builder.call(self.function(_DOT, _INTS, [_INTS] * 3), [total, x, c])
        right = ir.Constant(_INTS, [24] * WIDTH)
        for byte in range(QUAD):
            left = ir.Constant(_INTS, [24 - 8 * byte] * WIDTH)
            unsigned, signed = builder.lshr(builder.shl(x, left), right), builder.ashr(builder.shl(c, left), right)
            total = builder.add(total, builder.mul(unsigned, signed))
        return total

    def factor(self, factors: Any, number: Any, column: int) -> Any:
        place = self.builder.add(self.builder.mul(number, self.at(16)), self.at(4 * column))
        return self.broadcast(self.load(factors, place, _F32, 4), _FLOATS)

    def term(self, terms: Any, column: int) -> list[Any]:
        return [self.load(terms, self.at(4 * (LANES * column + WIDTH * n)), _FLOATS, 4) for n in range(VECTORS)]

    def estimates(self, products: list[list[Any]], factors: Any, terms: Any) -> list[list[Any]]:
        """Return float32 [rows][VECTORS]: term 0 + factor 0 of the row * term 1 * product."""
        builder = self.builder
        squares, steps = self.term(terms, 0), self.term(terms, 1)
        result = []
        for row, number in zip(products, self.rows, strict=True):
            factor = self.factor(factors, number, 0)
            scaled = [
                builder.fmul(builder.sitofp(product, _FLOATS), step) for product, step in zip(row, steps, strict=True)
            ]
            result.append(
                [self.multiply_add(factor, value, square) for value, square in zip(scaled, squares, strict=True)]
            )
        return result

    def bounds(self, estimates: list[list[Any]], factors: Any, terms: Any) -> list[list[Any]]:
        """Return float32 [rows][VECTORS]: the estimates minus their reach, factors 1 … 3 times terms 2 … 4."""
        result = estimates
        for column in (1, 2, 3):
            weights = self.term(terms, column + 1)
            lower = []
            for row, number in zip(result, self.rows, strict=True):
                minus = self.builder.fneg(self.factor(factors, number, column))
                lower.append(
                    [self.multiply_add(minus, weight, value) for weight, value in zip(weights, row, strict=True)]
                )
            result = lower
        return result

    def multiply_add(self, one: Any, other: Any, added: Any) -> Any:
        return self.builder.call(self.function(_FMA, _FLOATS, [_FLOATS] * 3), [one, other, added])

    def below(self, values: list[Any], limit: Any) -> Any:
        """Return an int64 whose bits tell which of LANES values do not exceed a limit."""
        builder = self.builder
        mask = self.at(0)
        for n, value in enumerate(values):
            bits = builder.bitcast(builder.fcmp_ordered("<=", value, limit), ir.IntType(WIDTH))
            mask = builder.or_(mask, builder.shl(builder.zext(bits, _I64), self.at(n * WIDTH)))
        return mask

    def mark(self, values: list[Any]) -> list[Any]:
        """Replace the last bits of each of LANES values with the number of its lane."""
        builder = self.builder
        marked = []
        for n, value in enumerate(values):
            lanes = ir.Constant(_INTS, [n * WIDTH + i for i in range(WIDTH)])
            bits = builder.and_(builder.bitcast(value, _INTS), ir.Constant(_INTS, [-LANES] * WIDTH))
            marked.append(builder.bitcast(builder.or_(bits, lanes), _FLOATS))
        return marked

    def smaller(self, one: Any, other: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", one, other), one, other)

    def smallest(self, vectors: list[Any]) -> Any:
        """Return the smallest lane of several vectors."""
        builder = self.builder
        value = vectors[0]
        for vector in vectors[1:]:
            value = self.smaller(value, vector)
        width = WIDTH
        while width > 1:
            width //= 2
            order = [width + i if i < width else i for i in range(WIDTH)]
            moved = builder.shuffle_vector(
                value, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(ir.VectorType(_I32, WIDTH), order)
            )
            value = self.smaller(value, moved)
        return builder.extract_element(value, ir.Constant(_I32, 0))


def _pointers(builder: Any, *addresses: Any) -> list[Any]:
    return [builder.inttoptr(address, _I8.as_pointer()) for address in addresses]


def _emit_products(emit: _Emitter, x: Any, stride: Any, c: Any, quads: Any, offsets: Any) -> list[list[Any]]:
    start = [emit.load(offsets, emit.at(4 * WIDTH * n), _INTS, 4) for n in range(VECTORS)]
    return emit.dots(x, stride, c, quads, start)


def _tile_minima(
    typingctx: Any,
    x: Any,
    stride: Any,
    c: Any,
    quads: Any,
    offsets: Any,
    terms: Any,
    factors: Any,
    out: Any,
    apart: Any,
) -> Any:
    """Store the smallest estimate between each of ROWS points and LANES centroids, with its lane in the last bits.

    An estimate is terms[0] + factor[0] * terms[1] * (offset + x.c). All arguments are int64: addresses, byte strides
    and counts. x: uint8 (ROWS, 4 quads). c: int8 (quads, LANES, 4). offsets: int32 (LANES,). terms: float32 (5, LANES).
    factors: float32 (ROWS, 4). out: one float32 per row, `apart` bytes apart.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stride, quads, apart = arguments[1], arguments[3], arguments[8]
        x, c, offsets, terms, factors, out = _pointers(builder, *(arguments[i] for i in (0, 2, 4, 5, 6, 7)))
        emit = _Emitter(builder, [ir.Constant(_I64, m) for m in range(ROWS)])
        estimates = emit.estimates(_emit_products(emit, x, stride, c, quads, offsets), factors, terms)
        for m, row in enumerate(estimates):
            emit.store(emit.smallest(emit.mark(row)), out, builder.mul(apart, emit.at(m)), 4)
        return context.get_dummy_value()

    return types.void(x, stride, c, quads, offsets, terms, factors, out, apart), codegen


def _row_estimates(typingctx: Any, x: Any, c: Any, quads: Any, offsets: Any, terms: Any, factors: Any, out: Any) -> Any:
    """Store the estimates float32 (LANES,) between one point and LANES centroids. Arguments as in `_tile_minima`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        quads = arguments[2]
        x, c, offsets, terms, factors, out = _pointers(builder, *(arguments[i] for i in (0, 1, 3, 4, 5, 6)))
        emit = _Emitter(builder, [ir.Constant(_I64, 0)])
        (row,) = emit.estimates(_emit_products(emit, x, emit.at(0), c, quads, offsets), factors, terms)
        for n, vector in enumerate(row):
            emit.store(vector, out, emit.at(4 * WIDTH * n), 4)
        return context.get_dummy_value()

    return types.void(x, c, quads, offsets, terms, factors, out), codegen


def _gathered_bounds(
    typingctx: Any, x: Any, stride: Any, c: Any, quads: Any, offsets: Any, terms: Any, factors: Any, rows: Any,
    limits: Any, out: Any, masks: Any,
) -> Any:  # fmt: skip
    """Store lower bounds float32 (ROWS, LANES) between chosen points and LANES centroids, and masks of those within the
    limits.

    A bound is the estimate minus (factors[1] terms[2] + factors[2] terms[3] + factors[3] terms[4]). rows: int64
    (ROWS,), the numbers of the points. limits: float32 (ROWS,). masks: int64 (ROWS,), one bit per lane. Other
    arguments as in `_tile_minima`.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stride, quads = arguments[1], arguments[3]
        x, c, offsets, terms, factors, rows, limits, out, masks = _pointers(
            builder, *(arguments[i] for i in (0, 2, 4, 5, 6, 7, 8, 9, 10))
        )
        first = _Emitter(builder, [])
        emit = _Emitter(builder, [first.load(rows, first.at(8 * m), _I64, 8) for m in range(ROWS)])
        estimates = emit.estimates(_emit_products(emit, x, stride, c, quads, offsets), factors, terms)
        for m, row in enumerate(emit.bounds(estimates, factors, terms)):
            limit = emit.broadcast(emit.load(limits, emit.at(4 * m), _F32, 4), _FLOATS)
            emit.store(emit.below(row, limit), masks, emit.at(8 * m), 8)
            for n, vector in enumerate(row):
                emit.store(vector, out, emit.at(4 * (LANES * m + WIDTH * n)), 4)
        return context.get_dummy_value()

    return types.void(x, stride, c, quads, offsets, terms, factors, rows, limits, out, masks), codegen


def _byte_product(typingctx: Any, x: Any, c: Any, pieces: Any) -> Any:
    """Return the int32 product of PIECE * pieces bytes: uint8 at address x, int8 at address c."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x, c), pieces = _pointers(builder, *arguments[:2]), arguments[2]
        emit = _Emitter(builder, [])
        entry, loop, done = builder.block, builder.append_basic_block("pieces"), builder.append_basic_block("product")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(emit.at(0), entry)
        totals = [builder.phi(_INTS) for _ in range(_CHAINS)]
        sums = []
        for n, total in enumerate(totals):
            place = builder.add(builder.mul(step, emit.at(PIECE)), emit.at(n * BITS // 8))
            sums.append(emit.dot(total, emit.load(x, place, _INTS, 4), emit.load(c, place, _INTS, 4)))
            total.add_incoming(ir.Constant(_INTS, [0] * WIDTH), entry)
            total.add_incoming(sums[-1], loop)
        following = builder.add(step, emit.at(1))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, pieces), loop, done)
        builder.position_at_end(done)
        reduce = emit.function(f"llvm.vector.reduce.add.v{WIDTH}i32", _I32, [_INTS])
        return builder.call(reduce, [builder.add(*sums)])

    return types.int32(x, c, pieces), codegen


def _column_products(typingctx: Any, y: Any, dim: Any, basis: Any, width: Any, out: Any) -> Any:
    """Store the float32 products (ROWS, COLUMNS) of ROWS rows with the first columns of a matrix.

    All arguments are int64: addresses and sizes. y: float32 (ROWS, dim). basis: float32 (dim, width). out: float32
    (ROWS, width).
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (y, basis, out), dim, width = _pointers(builder, *(arguments[i] for i in (0, 2, 4))), arguments[1], arguments[3]
        emit = _Emitter(builder, [])
        vectors = COLUMNS // WIDTH
        entry, loop, done = builder.block, builder.append_basic_block("dims"), builder.append_basic_block("projected")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(emit.at(0), entry)
        sums = [[builder.phi(_FLOATS) for _ in range(vectors)] for _ in range(ROWS)]
        row = builder.mul(builder.mul(step, width), emit.at(4))
        columns = [emit.load(basis, builder.add(row, emit.at(4 * WIDTH * n)), _FLOATS, 4) for n in range(vectors)]
        following = builder.add(step, emit.at(1))
        step.add_incoming(following, loop)
        results = []
        for m, before in enumerate(sums):
            place = builder.mul(builder.add(builder.mul(dim, emit.at(m)), step), emit.at(4))
            value = emit.broadcast(emit.load(y, place, _F32, 4), _FLOATS)
            results.append([emit.multiply_add(value, *pair) for pair in zip(columns, before, strict=True)])
            for total, after in zip(before, results[-1], strict=True):
                total.add_incoming(ir.Constant(_FLOATS, [0.0] * WIDTH), entry)
                total.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", following, dim), loop, done)
        builder.position_at_end(done)
        for m, values in enumerate(results):
            for n, value in enumerate(values):
                place = builder.mul(builder.add(builder.mul(width, emit.at(m)), emit.at(WIDTH * n)), emit.at(4))
                emit.store(value, out, place, 4)
        return context.get_dummy_value()

    return types.void(y, dim, basis, width, out), codegen


def _lowest_bit(typingctx: Any, mask: Any) -> Any:
    """Return the position of the lowest bit of an int64 that is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = _Emitter(builder, []).function("llvm.cttz.i64", _I64, [_I64, ir.IntType(1)])
        return builder.call(count, [arguments[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(mask), codegen


tile_minima: Any = intrinsic(_tile_minima)
row_estimates: Any = intrinsic(_row_estimates)
gathered_bounds: Any = intrinsic(_gathered_bounds)
byte_product: Any = intrinsic(_byte_product)
column_products: Any = intrinsic(_column_products)
lowest_bit: Any = intrinsic(_lowest_bit)
