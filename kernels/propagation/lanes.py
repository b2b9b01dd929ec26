"""Vectors of float32 lanes on the CPU: the inner steps of the scan, eight lanes at a time, as numba intrinsics.

numba's own loop vectoriser checks every pair of arrays for overlap at each line and leaves up to 31 cross positions to
a scalar remainder, which costs more than the arithmetic on maps 7 to 64 wide. Here a step loads all operands of eight
neighbouring positions, computes, and stores; the last block of a line masks the lanes beyond its end. The previous line
is reloaded block by block exactly as it was stored, and its neighbours are taken by shuffles, because a load that
straddles two recent stores stalls until both have left the store buffer. LLVM lowers the vectors to what the processor
has.
"""

from collections.abc import Callable

import llvmlite.ir as ir
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_INDEX = ir.IntType(64)
_NUMBER = ir.IntType(32)
_ALIGNMENT = ir.Constant(_NUMBER, 4)


class _Block:
    """Code generation for 8 or 16 lanes at array[row, col + plus], columns contiguous; `mask` None means all lanes."""

    def __init__(self, context, builder, kinds, args, lanes):
        self.builder, self.lanes = builder, lanes
        self.vector, self.mask, self.numbers = (
            ir.VectorType(kind, lanes) for kind in (ir.FloatType(), ir.IntType(1), _NUMBER)
        )
        self.args = [
            context.make_array(kind)(context, builder, arg) if isinstance(kind, types.Array) else arg
            for kind, arg in zip(kinds, args, strict=True)
        ]

    def fixed(self, number):
        """The same number in all lanes."""
        return ir.Constant(self.vector, [number] * self.lanes)

    def first(self, count):
        """The mask of the first `count` lanes."""
        return self.builder.icmp_signed("<", ir.Constant(self.numbers, list(range(self.lanes))), self.every(count))

    def every(self, index):
        """Copies of an index, as 32 bits each: eight of 64 would take a register of 64 bytes, which slows others."""
        return self._copies(self.builder.trunc(index, _NUMBER), self.numbers)

    def splat(self, number):
        """Copies of a float32."""
        return self._copies(number, self.vector)

    def _copies(self, value, kind):
        one = self.builder.insert_element(ir.Constant(kind, None), value, ir.Constant(_NUMBER, 0))
        return self.builder.shuffle_vector(one, one, ir.Constant(self.numbers, [0] * self.lanes))

    def only_if(self, mask, index, limit):
        """`mask` where index < limit, otherwise no lane."""
        none = ir.Constant(self.mask, [0] * self.lanes)
        return self.builder.select(self.builder.icmp_signed("<", index, limit), mask, none)

    def at(self, index, plus):
        return self.builder.add(index, ir.Constant(_INDEX, plus))

    def pointer(self, array, row, col, plus=0, size=4, kind=None):
        """Where array[row, col + plus] lies, for numbers of `size` bytes."""
        b = self.builder
        row_bytes = cgutils.unpack_tuple(b, array.strides)[0]
        offset = b.add(b.mul(row, row_bytes), b.mul(self.at(col, plus), ir.Constant(_INDEX, size)))
        return b.inttoptr(b.add(b.ptrtoint(array.data, _INDEX), offset), (kind or self.vector).as_pointer())

    def _masked(self, name, result, arguments):
        kind = ir.FunctionType(result, [a.type for a in arguments])
        name = f"llvm.masked.{name}.v{self.lanes}f32.p0"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def load(self, array, row, col, plus=0, mask=None):
        pointer = self.pointer(array, row, col, plus)
        if mask is None:
            return self.builder.load(pointer, align=4)
        return self._masked("load", self.vector, [pointer, _ALIGNMENT, mask, self.fixed(0.0)])

    def store(self, value, array, row, col, plus=0, mask=None):
        pointer = self.pointer(array, row, col, plus)
        if mask is None:
            self.builder.store(value, pointer, align=4)
        else:
            self._masked("store", ir.VoidType(), [value, pointer, _ALIGNMENT, mask])

    def product(self, a, b):
        return self.builder.fmul(a, b, flags=("contract",))

    def plus_product(self, total, a, b):
        return self.builder.fadd(total, self.product(a, b), flags=("contract",))

    def add(self, a, b):
        return self.builder.fadd(a, b, flags=("contract",))

    def shuffle(self, a, b, lanes):
        return self.builder.shuffle_vector(a, b, ir.Constant(self.numbers, list(lanes)))

    def before(self, left, here):
        """The positions one before `here`, given the block to its left."""
        return self.shuffle(left, here, range(self.lanes - 1, 2 * self.lanes - 1))

    def after(self, here, right):
        """The positions one after `here`, given the block to its right."""
        return self.shuffle(here, right, range(1, self.lanes + 1))

    def along(self, cross, rows, step):
        """Call step(n, windows, mask) for each block of a line, then for the masked tail if the line has one.

        `rows` are (array, row) of padded lines; their windows (left, here, right) roll along, so that each block is
        loaded once, exactly as it was stored.
        """
        b = self.builder
        rolling = [[cgutils.alloca_once(b, self.vector) for _ in range(2)] for _ in rows]
        for (array, row), (left, here) in zip(rows, rolling, strict=True):
            b.store(self.fixed(0.0), left)
            b.store(self.load(array, row, ir.Constant(_INDEX, LANES)), here)

        def block(n, mask):
            right = [self.load(array, row, n, 2 * LANES) for array, row in rows]
            windows = [(b.load(left), b.load(here), r) for (left, here), r in zip(rolling, right, strict=True)]
            step(n, windows, mask)
            for (left, here), (_, middle, r) in zip(rolling, windows, strict=True):
                b.store(middle, left)
                b.store(r, here)

        eight = ir.Constant(_INDEX, LANES)
        whole = b.mul(b.sdiv(cross, eight), eight)
        with cgutils.for_range_slice(b, ir.Constant(_INDEX, 0), whole, eight, _INDEX) as (n, _):
            block(n, None)
        with b.if_then(b.icmp_signed("<", whole, cross)):
            block(whole, self.first(b.sub(cross, whole)))


def block_step(generate: Callable[..., None], lanes: int = LANES):
    """Turn `generate(block, *arguments)` into a numba intrinsic over 2-D float32 arrays and indices."""

    def typing(typingctx, *args):
        def codegen(context, builder, signature, packed):
            kinds = signature.args[0].types
            block = _Block(context, builder, kinds, cgutils.unpack_tuple(builder, packed[0], len(kinds)), lanes)
            generate(block, *block.args)
            return context.get_dummy_value()

        return types.void(types.BaseTuple.from_types(args)), codegen

    typing.__name__ = generate.__name__
    typing.__doc__ = generate.__doc__
    return intrinsic(typing)


def _scan_line(do, weights, x, gates, cross, r, h, states, before, now):
    def step(n, windows, mask):
        left, here, right = windows[0]
        value = do.load(x, r, n, mask=mask)
        if weights is not None:
            value = do.product(value, do.load(weights, r, n, mask=mask))
        neighbours = do.before(left, here), here, do.after(here, right)
        for gate, neighbour in zip(gates, neighbours, strict=True):
            value = do.plus_product(value, do.load(gate, r, n, mask=mask), neighbour)
        do.store(value, h, r, n, mask=mask)
        do.store(value, states, now, n, LANES)

    do.along(cross, [(states, before)], step)


@block_step
def scan_line(do, x, g0, g1, g2, cross, r, h, states, before, now):
    """h[r, n] = x[r, n] + g0[r, n] p[n-1] + g1[r, n] p[n] + g2[r, n] p[n+1] for n < cross.

    p is the previous line of h, kept in states[before] after a margin of one block; this line is kept in states[now].
    """
    _scan_line(do, None, x, (g0, g1, g2), cross, r, h, states, before, now)


@block_step
def scan_weighted_line(do, x, lam, g0, g1, g2, cross, r, h, states, before, now):
    """As `scan_line` with lam x in place of x."""
    _scan_line(do, lam, x, (g0, g1, g2), cross, r, h, states, before, now)


@block_step
def adjoint_line(do, grad, g0, g1, g2, cross, r, e, states, after, now):
    """e[r, n] = grad[r, n] + what the next line sent here, for n < cross; keep what this line sends on.

    states[after + j] holds g_j E of the next line after a margin of one block, states[now + j] that of this one.
    """

    def step(n, windows, mask):
        (_, here0, right0), (_, here1, _), (left2, here2, _) = windows
        value = do.load(grad, r, n, mask=mask)
        for sent in (do.after(here0, right0), here1, do.before(left2, here2)):
            value = do.add(value, sent)
        do.store(value, e, r, n, mask=mask)
        for j, gate in enumerate((g0, g1, g2)):
            do.store(do.product(do.load(gate, r, n, mask=mask), value), states, do.at(now, j), n, LANES)

    do.along(cross, [(states, do.at(after, j)) for j in range(3)], step)


def transposed_columns(do, source, weights, r, c, load_masks):
    """The columns of eight rows, one of eight lanes each, in the order 0, 1, 2...: source[r : r + 8, c + j] for j < 8.

    Rows i and i + 4 are paired four columns at a time, then singles and pairs interleave inside each half-vector.
    """
    rows = [do.load(source, do.at(r, i), c, mask=load_masks[i]) for i in range(LANES)]
    if weights is not None:
        rows = [do.product(row, do.load(weights, do.at(r, i), c, mask=load_masks[i])) for i, row in enumerate(rows)]
    for half in (0, 4):
        lanes = [half + i for i in range(4)]
        a, b, c_, d = (do.shuffle(rows[i], rows[i + 4], lanes + [LANES + lane for lane in lanes]) for i in range(4))
        low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
        pairs = do.shuffle(a, b, low), do.shuffle(c_, d, low), do.shuffle(a, b, high), do.shuffle(c_, d, high)
        low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
        for p, q in (pairs[:2], pairs[2:]):
            for lanes in (low, high):
                yield do.shuffle(p, q, lanes)


def _transpose(do, source, weights, r, c, target, load_masks, store_masks):
    for j, column in enumerate(transposed_columns(do, source, weights, r, c, load_masks)):
        do.store(column, target, do.at(c, j), r, mask=store_masks[j])


def tail_masks(do, rows, cols):
    """For a block cut off at `rows` and `cols`: the masks that load its rows, and those that store its columns."""
    numbers = [ir.Constant(_INDEX, i) for i in range(LANES)]
    in_cols, in_rows = do.first(cols), do.first(rows)
    return [do.only_if(in_cols, i, rows) for i in numbers], [do.only_if(in_rows, j, cols) for j in numbers]


@block_step
def _transpose_block(do, source, r, c, target):
    """target[c + j, r + i] = source[r + i, c + j] for i, j < 8."""
    _transpose(do, source, None, r, c, target, [None] * LANES, [None] * LANES)


@block_step
def _transpose_tail(do, source, r, c, target, rows, cols):
    """As `_transpose_block` for i < rows and j < cols, at most 8 each."""
    _transpose(do, source, None, r, c, target, *tail_masks(do, rows, cols))


@block_step
def _transpose_product_block(do, source, weights, r, c, target):
    """target[c + j, r + i] = weights[r + i, c + j] source[r + i, c + j] for i, j < 8."""
    _transpose(do, source, weights, r, c, target, [None] * LANES, [None] * LANES)


@block_step
def _transpose_product_tail(do, source, weights, r, c, target, rows, cols):
    """As `_transpose_product_block` for i < rows and j < cols, at most 8 each."""
    _transpose(do, source, weights, r, c, target, *tail_masks(do, rows, cols))


@numba.njit(cache=True)
def transpose_into(source, target, width):
    """target[j, i] = source[i, j] for j < width, arrays with contiguous rows."""
    height = source.shape[0]
    for i in range(0, height, LANES):
        for j in range(0, width, LANES):
            if i + LANES <= height and j + LANES <= width:
                _transpose_block(source, i, j, target)
            else:
                _transpose_tail(source, i, j, target, min(LANES, height - i), min(LANES, width - j))


@numba.njit(cache=True)
def transpose_product_into(source, weights, target, width):
    """target[j, i] = weights[i, j] source[i, j] for j < width, arrays with contiguous rows."""
    height = source.shape[0]
    for i in range(0, height, LANES):
        for j in range(0, width, LANES):
            if i + LANES <= height and j + LANES <= width:
                _transpose_product_block(source, weights, i, j, target)
            else:
                _transpose_product_tail(source, weights, i, j, target, min(LANES, height - i), min(LANES, width - j))
