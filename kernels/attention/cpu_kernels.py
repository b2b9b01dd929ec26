"""The numba kernels of neighbourhood attention: float32, forward and backward.

A work item is one cell of one head of one image: the queries that share their keys. It takes 64 queries at a time and
makes the table of their weights, (keys, queries). The backward pass makes the same table again from the saved
logsumexp, and computes only the gradients that are wanted.

A table (rows, 64) is one of three things. Columns: the tokens of a block lie side by side and a row is a channel.
Rows: a row is a token and the lanes are its channels; channels beyond 64 fold over into further tables below, as many
as `_folds` says. Weights: a row is a key and a lane is a query. Inner loops run along the lanes, and tables are padded
with zeros, so that there is no remainder to treat.

All of it is in one file because numba's cache on disk notices a change in a function's own file only.
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
_ONE, _LOWEST = np.float32(1), np.float32(-np.inf)

_jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
_parallel = numba.njit(cache=True, parallel=True, fastmath={"contract"}, error_model="numpy")
_inlined = numba.njit(fastmath={"contract"}, error_model="numpy", forceinline=True)


@_parallel
def forward_kernel(
    q, k, v, out, strides, lse, bias, q_start, q_token, q_relative, k_start, k_token, k_relative,
    channels, scale, scratch,
):  # fmt: skip
    """Write out and lse (B, heads, N).

    q, k, v, out: memory of the tensors in one axis; strides (tensor, 3) over image, token and head. bias (heads,
    entries). q_start ... k_relative: the cells' members, see `cpu.Members`. scratch (threads, rows, 64).
    """
    for item in numba.prange(lse.shape[0] * lse.shape[1] * (len(q_start) - 1)):
        _forward_cell(
            np.int64(item), q, k, v, out, strides, lse, bias,
            q_start, q_token, q_relative, k_start, k_token, k_relative, channels, scale, scratch[numba.get_thread_id()],
        )  # fmt: skip


@_jit
def _locate(item, heads, strides, q_start, q_token, q_relative, k_start, k_token, k_relative):
    """A work item's image, cell and head, where each tensor holds the head's token 0, and its queries and keys."""
    cells = len(q_start) - 1
    b, cell, h = item // (cells * heads), item // heads % cells, item % heads
    at = np.empty(len(strides), np.int64)
    for i in range(len(strides)):
        at[i] = b * strides[i, 0] + h * strides[i, 2]
    own, read = slice(q_start[cell], q_start[cell + 1]), slice(k_start[cell], k_start[cell + 1])
    return b, cell, h, at, q_token[own], q_relative[own], k_token[read], k_relative[read]


@_jit
def _forward_cell(
    item, q, k, v, out, strides, lse, bias, q_start, q_token, q_relative, k_start, k_token, k_relative,
    channels, scale, room,
):  # fmt: skip
    """One cell and head: writes out and lse at its queries."""
    b, _, h, at, q_token, q_relative, k_token, k_relative = _locate(
        item, lse.shape[1], strides, q_start, q_token, q_relative, k_start, k_token, k_relative
    )
    stride = strides[:, 1]
    inner, height, depth = _round_up(len(k_token), 4), min(LANES, _round_up(len(q_token), 4)), _round_up(channels, 4)
    key, room = _cut(room, _folds(channels) * inner)
    value, room = _cut(room, _folds(channels) * inner)
    mixed, room = _cut(room, _folds(channels) * height)
    query, room = _cut(room, depth)
    weights, room = _cut(room, inner)
    _read_rows(k, at[1], stride[1], k_token, channels, _ONE, key)
    _read_rows(v, at[2], stride[2], k_token, channels, _ONE, value)
    for first in range(0, len(q_token), LANES):
        token, relative = q_token[first : first + LANES], q_relative[first : first + LANES]
        lanes = _round_up(len(token), 8)
        _read_columns(q, at[0], stride[0], token, channels, scale, query)
        _products(key, query, lanes, weights)
        _add_bias(bias[h], relative, k_relative, weights)
        _softmax(weights, len(k_token), lanes, room[0])
        _mixtures(weights, 1, LANES, inner, value, channels, True, mixed)
        _write_rows(mixed, _ONE, out, at[3], stride[3], token, channels)
        for i in range(len(token)):
            lse[b, h, token[i]] = room[0, i]


@_parallel
def backward_kernel(
    q, k, v, out, grad, dq, dk, dv, dbias, wanted, strides, lse, bias,
    q_start, q_token, q_relative, k_start, k_token, k_relative, channels, scale, scratch,
):  # fmt: skip
    """Write the gradients that `wanted` (q, k, v, bias) names; dbias (B * cells, heads, entries), a table per item."""
    for item in numba.prange(lse.shape[0] * lse.shape[1] * (len(q_start) - 1)):
        _backward_cell(
            np.int64(item), q, k, v, out, grad, dq, dk, dv, dbias, wanted, strides, lse, bias,
            q_start, q_token, q_relative, k_start, k_token, k_relative, channels, scale, scratch[numba.get_thread_id()],
        )  # fmt: skip


@_jit
def _backward_cell(
    item, q, k, v, out, grad, dq, dk, dv, dbias, wanted, strides, lse, bias,
    q_start, q_token, q_relative, k_start, k_token, k_relative, channels, scale, room,
):  # fmt: skip
    """One cell and head: writes the wanted gradients."""
    b, cell, h, at, q_token, q_relative, k_token, k_relative = _locate(
        item, lse.shape[1], strides, q_start, q_token, q_relative, k_start, k_token, k_relative
    )
    stride = strides[:, 1]
    want_q, want_k, want_v, want_bias = wanted
    want_logits = want_q or want_k or want_bias
    inner, height, depth = _round_up(len(k_token), 4), min(LANES, _round_up(len(q_token), 4)), _round_up(channels, 4)
    key, room = _cut(room, _folds(channels) * inner)
    value, room = _cut(room, _folds(channels) * inner)
    dkey, room = _cut(room, _folds(channels) * inner)
    dvalue, room = _cut(room, _folds(channels) * inner)
    query_rows, room = _cut(room, _folds(channels) * height)
    dout_rows, room = _cut(room, _folds(channels) * height)
    dquery, room = _cut(room, _folds(channels) * height)
    query, room = _cut(room, depth)
    dout, room = _cut(room, depth)
    weights, room = _cut(room, inner)
    dweights, room = _cut(room, inner)
    block_lse, delta = room[0], room[1]
    _read_rows(k, at[1], stride[1], k_token, channels, _ONE, key)
    if want_logits:
        _read_rows(v, at[2], stride[2], k_token, channels, _ONE, value)
    if want_bias:
        dbias[b * (len(q_start) - 1) + cell, h] = 0
    for first in range(0, len(q_token), LANES):
        token, relative = q_token[first : first + LANES], q_relative[first : first + LANES]
        lanes, terms = _round_up(len(token), 8), _round_up(len(token), 4)
        block_lse[:], delta[:] = 0, 0  # lanes beyond the last query stay finite
        for i in range(len(token)):
            block_lse[i] = lse[b, h, token[i]]
        _read_columns(q, at[0], stride[0], token, channels, scale, query)
        _products(key, query, lanes, weights)
        _add_bias(bias[h], relative, k_relative, weights)
        _probabilities(weights, len(k_token), lanes, block_lse)
        if want_v:
            _read_rows(grad, at[4], stride[4], token, channels, _ONE, dout_rows)
            _mixtures(weights, LANES, 1, terms, dout_rows, channels, first == 0, dvalue)
        if not want_logits:
            continue
        _read_columns(grad, at[4], stride[4], token, channels, _ONE, dout)
        _products(value, dout, lanes, dweights)
        _row_dots(grad, at[4], stride[4], out, at[3], stride[3], token, channels, delta)
        _softmax_gradient(weights, dweights, delta, lanes)
        if want_bias:
            _add_to_bias(weights, relative, k_relative, dbias[b * (len(q_start) - 1) + cell, h])
        if want_q:
            _mixtures(weights, 1, LANES, inner, key, channels, True, dquery)
            _write_rows(dquery, scale, dq, at[5], stride[5], token, channels)
        if want_k:
            _read_rows(q, at[0], stride[0], token, channels, scale, query_rows)
            _mixtures(weights, LANES, 1, terms, query_rows, channels, first == 0, dkey)
    if want_k:
        _write_rows(dkey, _ONE, dk, at[6], stride[6], k_token, channels)
    if want_v:
        _write_rows(dvalue, _ONE, dv, at[7], stride[7], k_token, channels)


@_inlined
def _round_up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@_inlined
def _folds(channels):
    """How many tables of 64 lanes the channels take."""
    return (channels + LANES - 1) // LANES


@_inlined
def _cut(scratch, rows):
    """A table of the first rows, and the rest of the scratch memory."""
    return scratch[:rows], scratch[rows:]


@_jit
def _read_columns(x, at, stride, token, channels, factor, columns):
    """columns[c, i] = factor * x[token i, channel c]; x holds a head's token 0 at `at`, the next `stride` further."""
    lanes = _round_up(len(token), GROUP)
    columns[channels:, :lanes] = 0
    columns[:, len(token) : lanes] = 0
    for i in range(len(token)):
        base = _U(at + token[i] * stride)
        for c in range(channels):
            columns[c, i] = factor * x[base + _U(c)]


@_jit
def _read_rows(x, at, stride, token, channels, factor, rows):
    """rows[j, c] = factor * x[token j, channel c], folded."""
    height = len(rows) // _folds(channels)
    for fold in range(_folds(channels)):
        part = rows[fold * height : (fold + 1) * height]
        used = min(LANES, channels - fold * LANES)
        lanes = _round_up(used, GROUP)
        part[:, used:lanes] = 0
        part[len(token) :, :lanes] = 0
        for j in range(len(token)):
            base = _U(at + token[j] * stride + fold * LANES)
            for c in range(used):
                part[j, c] = factor * x[base + _U(c)]


@_jit
def _write_rows(rows, factor, x, at, stride, token, channels):
    """x[token j, channel c] = factor * rows[j, c], unfolded."""
    height = len(rows) // _folds(channels)
    for fold in range(_folds(channels)):
        part = rows[fold * height : (fold + 1) * height]
        for j in range(len(token)):
            base = _U(at + token[j] * stride + fold * LANES)
            for c in range(min(LANES, channels - fold * LANES)):
                x[base + _U(c)] = factor * part[j, c]


@_jit
def _row_dots(x, x_at, x_stride, y, y_at, y_stride, token, channels, result):
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
def _add_bias(bias, q_relative, k_relative, weights):
    """weights[j, i] += bias[relative of query i - relative of key j]; a bias without entries adds nothing."""
    if len(bias):
        for j in range(len(k_relative)):
            of_key = k_relative[j]
            for i in range(len(q_relative)):
                weights[j, i] += bias[_U(q_relative[i] - of_key)]


@_jit
def _add_to_bias(weights, q_relative, k_relative, bias):
    """The transpose of `_add_bias`: bias[relative of query i - relative of key j] += weights[j, i]."""
    for j in range(len(k_relative)):
        of_key = k_relative[j]
        for i in range(len(q_relative)):
            bias[_U(q_relative[i] - of_key)] += weights[j, i]


@_jit
def _softmax(weights, keys, lanes, lse):
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


@_jit
def _probabilities(weights, keys, lanes, lse):
    """exp(weights - lse of the column) in place: the softmax again, from its saved logsumexp."""
    for j in range(keys):
        for i in range(lanes):
            weights[j, i] = exp32(weights[j, i] - lse[i])


@_jit
def _softmax_gradient(weights, dweights, delta, lanes):
    """weights * (dweights - delta of the column) in place: from probabilities to the gradient of the logits."""
    for j in range(len(weights)):
        for i in range(lanes):
            weights[j, i] *= dweights[j, i] - delta[i]


@_jit
def _products(rows, columns, lanes, weights):
    """weights[j, i] = rows[j] . columns[:, i], the sum over channels; 0 for the padding of either."""
    height, depth, lanes = len(weights), len(columns), _round_up(lanes, GROUP)
    for first in range(0, depth, LANES):
        part = rows[first // LANES * height :]
        inner = min(LANES, depth - first)
        _multiply_add(weights, part, LANES, 1, columns[first:], height, lanes, inner, first == 0)


@_jit
def _mixtures(weights, w_row, w_col, inner, rows, channels, fresh, mixed):
    """mixed[a] (+)= sum over b < inner of weights[a * w_row + b * w_col] rows[b], for every channel; fresh: =, not +=.

    (w_row, w_col) = (1, LANES): a is a query, b a key; (LANES, 1): a is a key, b a query.
    """
    count = _folds(channels)
    to, of = len(mixed) // count, len(rows) // count
    for fold in range(count):
        lanes = min(LANES, _round_up(channels, GROUP) - fold * LANES)
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
            store(flat_c, c0, s0)
            store(flat_c, c0 + _HALF, t0)
            store(flat_c, c1, s1)
            store(flat_c, c1 + _HALF, t1)
            store(flat_c, c2, s2)
            store(flat_c, c2 + _HALF, t2)
            store(flat_c, c3, s3)
            store(flat_c, c3 + _HALF, t3)
