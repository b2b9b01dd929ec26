"""The inner loops of CPU attention, on tables of 64 float32 lanes.

A table (rows, 64) is one of three things. Columns: the tokens of a block lie side by side and a row is a channel.
Rows: a row is a token and the lanes are its channels; channels beyond 64 fold over into further tables below, as many
as `folds` says. Weights: a row is a key and a lane is a query. Loops run along the lanes, and lanes and rows are padded
(lanes to eights, rows to fours) with zeros, so that there is no remainder to treat.
"""

import numba
import numpy as np

from kernels.vectormath import WIDTH, exp32, load, multiply_add, store, zeros

#: A constant, so that LLVM can tell the rows of a table apart and keep its loops free of overlap tests.
LANES = 64

_U = np.uint64  # an unsigned index spares numba's test for a negative one, which would keep a loop scalar
_PITCH = _U(LANES)
_HALF, _STRIDE = _U(WIDTH), _U(2 * WIDTH)
#: Lanes are used in groups of this many: two vectors.
GROUP = 2 * WIDTH
_LOWEST = np.float32(-np.inf)

_jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
_inlined = numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)


@_inlined
def round_up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@_inlined
def folds(channels):
    """How many tables of 64 lanes the channels take."""
    return (channels + LANES - 1) // LANES


@_inlined
def cut(scratch, rows):
    """A table of the first rows, and the rest of the scratch memory."""
    return scratch[:rows], scratch[rows:]


@_jit
def read_columns(x, at, stride, token, channels, factor, columns):
    """columns[c, i] = factor * x[token i, channel c]; x holds a head's token 0 at `at`, the next `stride` further."""
    lanes = round_up(len(token), GROUP)
    columns[channels:, :lanes] = 0
    columns[:, len(token) : lanes] = 0
    for i in range(len(token)):
        base = _U(at + token[i] * stride)
        for c in range(channels):
            columns[c, i] = factor * x[base + _U(c)]


@_jit
def read_rows(x, at, stride, token, channels, factor, rows):
    """rows[j, c] = factor * x[token j, channel c], folded."""
    height = len(rows) // folds(channels)
    for fold in range(folds(channels)):
        part = rows[fold * height : (fold + 1) * height]
        used = min(LANES, channels - fold * LANES)
        lanes = round_up(used, GROUP)
        part[:, used:lanes] = 0
        part[len(token) :, :lanes] = 0
        for j in range(len(token)):
            base = _U(at + token[j] * stride + fold * LANES)
            for c in range(used):
                part[j, c] = factor * x[base + _U(c)]


@_jit
def write_rows(rows, factor, x, at, stride, token, channels):
    """x[token j, channel c] = factor * rows[j, c], unfolded."""
    height = len(rows) // folds(channels)
    for fold in range(folds(channels)):
        part = rows[fold * height : (fold + 1) * height]
        for j in range(len(token)):
            base = _U(at + token[j] * stride + fold * LANES)
            for c in range(min(LANES, channels - fold * LANES)):
                x[base + _U(c)] = factor * part[j, c]


@_jit
def row_dots(x, x_at, x_stride, y, y_at, y_stride, token, channels, result):
    """result[i] = x[token i] . y[token i]."""
    for i in range(len(token)):
        result[i] = _dot(x, _U(x_at + token[i] * x_stride), y, _U(y_at + token[i] * y_stride), channels)


@numba.njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _dot(x, x_at, y, y_at, channels):
    total = np.float32(0)
    for c in range(_U(channels)):  # the sum may be taken in any order: eight lanes at a time
        total += x[x_at + c] * y[y_at + c]
    return total


@_jit
def put_bias(bias, q_relative, k_relative, weights):
    """weights[j, i] = bias[relative of query i - relative of key j].

    Consecutive queries mostly read consecutive entries, so the bias is copied run by run, in whole vectors. What a
    vector carries past the end of its run is overwritten by the next run or row; past the last row is spare memory.
    """
    flat, starts, runs = weights.ravel(), np.empty(LANES, np.int64), 0
    for i in range(len(q_relative)):
        if i == 0 or q_relative[i] != q_relative[i - 1] + 1 or i == starts[runs - 1] + WIDTH:
            starts[runs] = i
            runs += 1
    for j in range(len(k_relative)):
        for run in range(runs):
            i = starts[run]
            store(flat, j * LANES + i, load(bias, q_relative[i] - k_relative[j]))


@_jit
def add_to_bias(weights, q_relative, k_relative, bias):
    """The transpose of `put_bias`: bias[relative of query i - relative of key j] += weights[j, i]."""
    for j in range(len(k_relative)):
        of_key = k_relative[j]
        for i in range(len(q_relative)):
            bias[_U(q_relative[i] - of_key)] += weights[j, i]


@_jit
def softmax(weights, keys, lanes, lse):
    """Softmax of every column over its first `keys` rows, in place; lse: the logsumexp of every column."""
    largest, total = np.full(LANES, _LOWEST), np.zeros(LANES, np.float32)
    for j in range(keys):
        for i in range(lanes):
            largest[i] = weights[j, i] if weights[j, i] > largest[i] else largest[i]
    for j in range(keys):
        for i in range(lanes):
            weights[j, i] = exp32(weights[j, i] - largest[i])
            total[i] += weights[j, i]
    for i in range(lanes):
        lse[i] = largest[i] + np.log(total[i])
        total[i] = np.float32(1) / total[i]
    for j in range(keys):
        for i in range(lanes):
            weights[j, i] *= total[i]
    weights[keys:] = 0


@_jit
def probabilities(weights, keys, queries, lse):
    """exp(weights - lse of the column) in place: the softmax again, from its saved logsumexp; padding becomes 0."""
    for j in range(keys):
        for i in range(round_up(queries, 8)):
            weights[j, i] = exp32(weights[j, i] - lse[i])
    weights[keys:] = 0
    weights[:, queries : round_up(queries, 8)] = 0


@_jit
def softmax_gradient(weights, dweights, delta, lanes):
    """weights * (dweights - delta of the column) in place: from probabilities to the gradient of the logits."""
    for j in range(len(weights)):
        for i in range(lanes):
            weights[j, i] *= dweights[j, i] - delta[i]


@_jit
def products(rows, columns, lanes, fresh, weights):
    """weights[j, i] (+)= rows[j] . columns[:, i], the sum over channels; fresh: =, not +=."""
    height, depth, lanes = len(weights), len(columns), round_up(lanes, GROUP)
    for first in range(0, depth, LANES):
        part = rows[first // LANES * height :]
        inner = min(LANES, depth - first)
        _multiply_add(weights, part, LANES, 1, columns[first:], height, lanes, inner, fresh and first == 0)


@_jit
def mixtures(weights, w_row, w_col, inner, rows, channels, fresh, mixed):
    """mixed[a] (+)= sum over b < inner of weights[a * w_row + b * w_col] rows[b], for every channel; fresh: =, not +=.

    (w_row, w_col) = (1, LANES): a is a query, b a key; (LANES, 1): a is a key, b a query.
    """
    count = folds(channels)
    to, of = len(mixed) // count, len(rows) // count
    for fold in range(count):
        lanes = min(LANES, round_up(channels, GROUP) - fold * LANES)
        _multiply_add(mixed[fold * to :], weights, w_row, w_col, rows[fold * of :], to, lanes, inner, fresh)


@_jit
def _multiply_add(c, a, a_row, a_col, b, rows, lanes, inner, fresh):
    """c[i, l] (+)= sum over j of a[i, j] b[j, l], with a[i, j] at i * a_row + j * a_col; rows in fours.

    Four rows of two vectors stay in registers while j runs.
    """
    flat_a, flat_b, flat_c = a.ravel(), b.ravel(), c.ravel()
    row, col = _U(a_row), _U(a_col)
    for i in range(_U(0), _U(rows), _U(4)):
        for lane in range(_U(0), _U(lanes), _STRIDE):
            at, c0 = i * row, i * _PITCH + lane
            c1, c2, c3 = c0 + _PITCH, c0 + _PITCH + _PITCH, c0 + _PITCH + _PITCH + _PITCH
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zeros()
            if not fresh:
                s0, t0 = load(flat_c, c0), load(flat_c, c0 + _HALF)
                s1, t1 = load(flat_c, c1), load(flat_c, c1 + _HALF)
                s2, t2 = load(flat_c, c2), load(flat_c, c2 + _HALF)
                s3, t3 = load(flat_c, c3), load(flat_c, c3 + _HALF)
            for j in range(_U(inner)):
                x, y = load(flat_b, j * _PITCH + lane), load(flat_b, j * _PITCH + lane + _HALF)
                a0, a1, a2, a3 = flat_a[at], flat_a[at + row], flat_a[at + row + row], flat_a[at + row + row + row]
                s0, t0 = multiply_add(a0, x, s0), multiply_add(a0, y, t0)
                s1, t1 = multiply_add(a1, x, s1), multiply_add(a1, y, t1)
                s2, t2 = multiply_add(a2, x, s2), multiply_add(a2, y, t2)
                s3, t3 = multiply_add(a3, x, s3), multiply_add(a3, y, t3)
                at += col
            store(flat_c, c0, s0), store(flat_c, c0 + _HALF, t0)
            store(flat_c, c1, s1), store(flat_c, c1 + _HALF, t1)
            store(flat_c, c2, s2), store(flat_c, c2 + _HALF, t2)
            store(flat_c, c3, s3), store(flat_c, c3 + _HALF, t3)
