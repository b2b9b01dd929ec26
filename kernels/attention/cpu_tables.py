"""The parts of the attention kernels that are no matrix product: places, staged tokens, pair tables, softmax.

Everything is float32 in one axis of memory, tables row by row. A pair table has a row for each position of the other
side and `lanes` columns, one for each position of the tile's own side. Logits are kept in units of log 2, so that a
weight is a power of two.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from kernels.vectormath import (
    WIDTH,
    add,
    exp2,
    load,
    maximum,
    prefetch,
    splat,
    store,
    subtract,
    times,
    total,
    zeros,
)  # fmt: skip

from .cpu_plan import LANES

#: Without counting references, which would be an atomic operation for every array of every call: nothing is allocated.
jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", _nrt=False)

LOG2_E, LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
ONE, ZERO = np.float32(1), np.float32(0)
#: Typed, because numba compiles a function anew for every literal it is given.
QUERIES, KEYS = np.int64(0), np.int64(2)
YES: Any = np.bool_(True)
NO: Any = np.bool_(False)
#: Floats of a cache line.
LINE = np.int64(16)
#: Added to the logit of a pair that is not read: finite, so that a lane of such pairs alone makes no NaN.
FORBIDDEN = np.float32(-1e30)


class Tokens(NamedTuple):
    """One head of one image of a tensor: token 0 is at `at` of the memory, the next is `stride` further."""

    memory: np.ndarray
    at: int
    stride: int


class Room(NamedTuple):
    """A thread's memory. A tile's own tokens as rows (a, b) and as columns (a_cols, b_cols), the other side's tokens as
    rows (c, d), two pair tables, what is added to the logits, the gradients of the bias of one kind of tile, two tables
    of sums, and lanes. Rows that nobody reads are written behind the tables of rows.
    """

    a: np.ndarray
    b: np.ndarray
    a_cols: np.ndarray
    b_cols: np.ndarray
    c: np.ndarray
    d: np.ndarray
    weights: np.ndarray
    dweights: np.ndarray
    table: np.ndarray
    slots: np.ndarray
    sums: np.ndarray
    more_sums: np.ndarray
    peak: np.ndarray
    sum: np.ndarray
    factor: np.ndarray
    nothing: np.ndarray


def room_size(depth: int, lanes: int, block: int) -> int:
    """Floats that a thread needs for tokens of `depth` channels."""
    return 4 * (LANES + 8) * depth + 2 * depth * LANES + 3 * (block + 8) * depth + 4 * (block + 8) * lanes + 8 * LANES


@jit
def cut_room(memory, depth, lanes, block):
    """The parts of a thread's memory."""
    own, cols, other, pairs = (LANES + 8) * depth, depth * LANES, (block + 8) * depth, (block + 8) * lanes
    a, memory = memory[:own], memory[own:]
    b, memory = memory[:own], memory[own:]
    sums, memory = memory[:own], memory[own:]
    more_sums, memory = memory[: max(own, other)], memory[max(own, other) :]
    a_cols, memory = memory[:cols], memory[cols:]
    b_cols, memory = memory[:cols], memory[cols:]
    c, memory = memory[:other], memory[other:]
    d, memory = memory[:other], memory[other:]
    weights, memory = memory[:pairs], memory[pairs:]
    dweights, memory = memory[:pairs], memory[pairs:]
    table, memory = memory[:pairs], memory[pairs:]
    slots, memory = memory[:pairs], memory[pairs:]
    peak, sum, factor = memory[:LANES], memory[LANES : 2 * LANES], memory[2 * LANES : 3 * LANES]
    nothing = memory[3 * LANES : 8 * LANES]
    nothing[:] = 0
    return Room(
        a, b, a_cols, b_cols, c, d, weights, dweights, table, slots, sums, more_sums, peak, sum, factor, nothing
    )


@jit
def round_up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@jit
def fill_places(layout, rows, cols, which, start, count, places):
    """Positions start ... of a tile's queries (which 0) or keys (2).

    places (8, n): token, row, column, place in the bias table (of a pair: the query's less the key's, from the centre),
    and for queries the first and last row and the first and last column that they read.
    """
    across = cols[which + 1]
    row, col = start // across, start % across
    width, pitch = layout.key_width if which else layout.query_width, 2 * layout.col_extent - 1
    place = rows[which] // rows[4] * pitch + cols[which] // cols[4]
    for n in range(count):
        r, c = rows[which] + rows[4] * row, cols[which] + cols[4] * col
        places[0, n], places[1, n], places[2, n], places[3, n] = r * width + c, r, c, place + row * pitch + col
        if layout.masked and not which:
            places[4, n], places[5, n] = layout.row_spans[r, 0], layout.row_spans[r, 1]
            places[6, n], places[7, n] = layout.col_spans[c, 0], layout.col_spans[c, 1]
        col += 1
        if col == across:
            row, col = row + 1, 0


@jit
def read_rows(x, token, count, channels, depth, rows):
    """rows[j, c] = token j of x, channel c."""
    whole = channels // WIDTH * WIDTH
    for j in range(count):
        source, target = x.at + token[j] * x.stride, j * depth
        for c in range(0, whole, WIDTH):
            store(rows, target + c, load(x.memory, source + c))
        for c in range(whole, channels):
            rows[target + c] = x.memory[source + c]


@jit
def ask_for_rows(x, token, count, channels):
    """Prefetch the rows that `read_rows` or `write_rows` will take."""
    for j in range(count):
        for c in range(0, channels, LINE):
            prefetch(x.memory, x.at + token[j] * x.stride + c)


@jit
def write_rows(rows, factor, x, token, count, channels, depth, fresh):
    """Token j of x, channel c (+)= factor * rows[j, c]; fresh: =, not +=."""
    whole, every = channels // WIDTH * WIDTH, splat(factor)
    for j in range(count):
        source, target = j * depth, x.at + token[j] * x.stride
        for c in range(0, whole, WIDTH):
            value = times(every, load(rows, source + c))
            store(x.memory, target + c, value if fresh else add(load(x.memory, target + c), value))
        for c in range(whole, channels):
            x.memory[target + c] = factor * rows[source + c] + (ZERO if fresh else x.memory[target + c])


@jit
def scale_rows(rows, depth, factor, count):
    """rows[i] *= factor[i]."""
    for i in range(count):
        every = splat(factor[i])
        for c in range(i * depth, (i + 1) * depth, WIDTH):
            store(rows, c, times(every, load(rows, c)))


@jit
def row_dots(x, rows, token, count, channels, depth, result):
    """result[i] = token i of x . rows[i]."""
    whole = channels // WIDTH * WIDTH
    for i in range(count):
        source, row, found = x.at + token[i] * x.stride, i * depth, zeros()
        for c in range(0, whole, WIDTH):
            found = add(found, times(load(x.memory, source + c), load(rows, row + c)))
        result[i] = total(found)
        for c in range(whole, channels):
            result[i] += x.memory[source + c] * rows[row + c]


@jit
def pair_table(layout, own, other, count, others, lanes, own_is_query, bias, table):
    """What is added to the logits: the bias (if it has entries) of pairs that are read, FORBIDDEN for others.

    own, other (8, n): places of `count` lanes and of `others` rows. Lanes beyond `count` are left as they are.
    """
    for j in range(others):
        row = table[j * lanes : j * lanes + count]
        if len(bias) == 0:
            row[:] = 0
        elif layout.outgrown:
            for i in range(count):
                row[i] = LOG2_E * bias[_nearest_bias(layout, own, i, other, j)]
        else:
            sign = 1 if own_is_query else -1
            start = layout.centre - sign * other[3, j]
            _read_bias(bias, own[3], np.int32(sign), np.int32(start), layout.masked, row)
        if layout.masked and own_is_query:
            _forbid(row, other[1, j], other[2, j], own[4], own[5], own[6], own[7])
        elif layout.masked:
            _forbid_outside(row, own[1], own[2], other[4, j], other[5, j], other[6, j], other[7, j])
        if layout.radius > 0:
            for i in range(count):
                down, right = own[1, i] - other[1, j], own[2, i] - other[2, j]
                row[i] = row[i] if down * down + right * right < layout.radius * layout.radius else FORBIDDEN


@jit
def _forbid(row, r, c, top, bottom, left, right):
    """row[i] = FORBIDDEN unless (r, c) is in the box of lane i."""
    for i in range(len(row)):
        read = (top[i] <= r) & (r <= bottom[i]) & (left[i] <= c) & (c <= right[i])
        row[i] = row[i] if read else FORBIDDEN


@jit
def _forbid_outside(row, r, c, top, bottom, left, right):
    """row[i] = FORBIDDEN unless lane i, at (r[i], c[i]), is in the box."""
    for i in range(len(row)):
        read = (top <= r[i]) & (r[i] <= bottom) & (left <= c[i]) & (c[i] <= right)
        row[i] = row[i] if read else FORBIDDEN


@jit
def _read_bias(bias, place, sign, start, masked, row):
    """row[i] = the bias at start + sign * place[i], in units of log 2; if masked, anywhere in it for unread pairs."""
    last = np.int32(len(bias) - 1)
    if masked:
        for i in range(len(row)):
            row[i] = LOG2_E * bias[np.uint64(min(max(start + sign * place[i], np.int32(0)), last))]
    elif sign > 0:
        for i in range(len(row)):
            row[i] = LOG2_E * bias[np.uint32(start + place[i])]
    else:
        for i in range(len(row)):
            row[i] = LOG2_E * bias[np.uint32(start - place[i])]


@jit
def _nearest_bias(layout, query, i, key, j):
    """Where the bias of query i and key j is in the table, or that of the nearest distance that is in it."""
    row = min(max(query[1, i] - key[1, j], 1 - layout.row_extent), layout.row_extent - 1)
    col = min(max(query[2, i] - key[2, j], 1 - layout.col_extent), layout.col_extent - 1)
    return np.uint64((row + layout.row_extent - 1) * (2 * layout.col_extent - 1) + col + layout.col_extent - 1)


@jit
def add_to_bias(layout, gradients, lanes, own, other, count, others, bias):
    """The transpose of `pair_table` for tiles of queries: bias[pair] += gradients[pair]."""
    place, last = own[3], np.int32(2 * layout.centre)
    for j in range(others):
        row = gradients[j * lanes : j * lanes + count]
        start = np.int32(layout.centre - other[3, j])
        if layout.outgrown:
            for i in range(count):
                bias[_nearest_bias(layout, own, i, other, j)] += row[i]
        elif layout.masked:
            for i in range(count):
                bias[np.uint64(min(max(start + place[i], np.int32(0)), last))] += row[i]
        else:
            for i in range(count):
                bias[np.uint32(start + place[i])] += row[i]


@jit
def softmax_block(weights, others, lanes, peak, sum, factor, first):
    """Go on with the softmax of every lane: weights become 2**(weights - peak), and `factor` is what sums shrink by.

    first: nothing was summed before.
    """
    for lane in range(0, lanes, WIDTH):
        top = load(weights, lane)
        other_top = top
        for j in range(1, others - 1, 2):
            top = maximum(load(weights, j * lanes + lane), top)
            other_top = maximum(load(weights, (j + 1) * lanes + lane), other_top)
        top = maximum(maximum(load(weights, (others - 1) * lanes + lane), other_top), top)
        found = zeros()
        if not first:
            before = load(peak, lane)
            top = maximum(before, top)
            shrink = exp2(subtract(before, top))
            store(factor, lane, shrink)
            found = times(load(sum, lane), shrink)
        store(peak, lane, top)
        for j in range(others):
            weight = exp2(subtract(load(weights, j * lanes + lane), top))
            store(weights, j * lanes + lane, weight)
            found = add(found, weight)
        store(sum, lane, found)


@jit
def probabilities_and_gradient(weights, dweights, others, lanes, lse, delta):
    """The softmax again, from its saved logsumexp, weights = 2**(weights - lse of the lane), and the logits' gradient,
    dweights = weights * (dweights - delta of the lane).
    """
    for lane in range(0, lanes, WIDTH):
        level, mean = load(lse, lane), load(delta, lane)
        for at in range(lane, lane + others * lanes, lanes):
            weight = exp2(subtract(load(weights, at), level))
            store(weights, at, weight)
            store(dweights, at, times(weight, subtract(load(dweights, at), mean)))


@jit
def probabilities_by_row(weights, others, lanes, lse, token):
    """The softmax again, where queries are rows; lse of every token, in natural units."""
    for j in range(others):
        level = splat(lse[token[j]] * LOG2_E)
        for at in range(j * lanes, (j + 1) * lanes, WIDTH):
            store(weights, at, exp2(subtract(load(weights, at), level)))


@jit
def probabilities_and_gradient_by_row(weights, dweights, others, lanes, lse, delta, token):
    """`probabilities_and_gradient` where queries are rows; lse and delta of every token."""
    for j in range(others):
        level, mean = splat(lse[token[j]] * LOG2_E), splat(delta[token[j]])
        for at in range(j * lanes, (j + 1) * lanes, WIDTH):
            weight = exp2(subtract(load(weights, at), level))
            store(weights, at, weight)
            store(dweights, at, times(weight, subtract(load(dweights, at), mean)))


@jit
def accumulate(x, total_of, count):
    """total_of += x, for the first `count`, a multiple of WIDTH."""
    for at in range(0, count, WIDTH):
        store(total_of, at, add(load(total_of, at), load(x, at)))
