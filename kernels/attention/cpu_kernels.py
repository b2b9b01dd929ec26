"""The numba kernels of neighbourhood attention: float32, forward and backward, by tiles of queries and tiles of keys.

A work item is a tile of one head of one image. A tile of queries takes up to 64 queries at a time and then its keys,
block by block: their weights are a small table, softmax goes on from block to block. The backward pass makes the same
weights again from the saved logsumexp. Where no key is in two tiles, a tile of queries also gives the gradients of its
keys and values; otherwise tiles of keys do, in a pass of their own.

Items run in chunks, of one head each, kind by kind (cpu_plan.py): what is added to the logits is made once for every
kind, and the gradients of the bias are summed by kind before they are sorted by distance. Chunks do not depend on the
number of threads, so neither does the result.
"""

from typing import NamedTuple

import numba
import numpy as np

from kernels.vectormath import WIDTH, log32

from .cpu_blocks import multiply, transpose
from .cpu_plan import LANES
from .cpu_tables import (
    AT_0,
    EVERY,
    KEYS,
    LN_2,
    LOG2_E,
    NO,
    ONE,
    QUERIES,
    YES,
    accumulate,
    add_to_bias,
    ask_for_rows,
    cut_room,
    fill_places,
    jit,
    pair_table,
    probabilities_and_gradient,
    probabilities_and_gradient_by_row,
    probabilities_by_row,
    read_rows,
    round_up,
    row_dots,
    scale_rows,
    softmax_block,
    write_rows,
)  # fmt: skip

_parallel = numba.njit(cache=True, parallel=True, fastmath={"contract"}, error_model="numpy")


class Tensors(NamedTuple):
    """The memory of the tensors, each in one axis; those not needed are empty."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray
    grad: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


@_parallel
def forward_kernel(tensors, strides, layout, bias, lse, channels, scale, scratch, places):
    """Write out and lse (heads, B, N).

    strides (tensor, 3) over image, token and head. bias (heads, entries). scratch (threads, floats), places (threads,
    2, 8, n).
    """
    for work in numba.prange(lse.shape[0] * layout.chunks):
        thread = numba.get_thread_id()
        _forward_chunk(
            np.int64(work), tensors, strides, layout, bias, lse, channels, scale, scratch[thread], places[thread]
        )


@jit
def _chunk(work, layout):
    """A chunk's head, and its first item and the one after its last."""
    head, chunk = work // layout.chunks, work % layout.chunks
    size = (len(layout.items) + layout.chunks - 1) // layout.chunks
    return head, min(chunk * size, len(layout.items)), min((chunk + 1) * size, len(layout.items))


@jit
def _forward_chunk(work, tensors, strides, layout, bias, lse, channels, scale, memory, places):
    head, begin, end = _chunk(work, layout)
    depth = round_up(channels, WIDTH)
    room = cut_room(memory, depth, layout.lanes, layout.block)
    kept = np.int64(-1)
    for n in range(begin, end):
        image, kind = layout.items[n, 0], layout.items[n, 3]
        rows, cols = layout.rows[layout.items[n, 1]], layout.cols[layout.items[n, 2]]
        soon = _next_queries(min(n + 1, end - 1), layout, places[2])
        kept = _forward_tile(
            soon,
            image, head, rows, cols, kind, kept, tensors, strides, layout, bias[head], lse[head, image],
            channels, depth, scale, room, places,
        )  # fmt: skip


@jit
def _start(strides, n, image, head):
    """Where tensor n holds token 0 of an image and head."""
    return image * strides[n, 0] + head * strides[n, 2]


@jit
def _next_queries(n, layout, places):
    """How many queries the first round of item n has, and its image."""
    rows, cols = layout.rows[layout.items[n, 1]], layout.cols[layout.items[n, 2]]
    count = min(LANES, rows[0, 1] * cols[0, 1])
    fill_places(layout, rows[0], cols[0], QUERIES, AT_0, count, places)
    return count, layout.items[n, 0]


@jit
def _ask(soon, x, n, head, strides, places, channels):
    """Prefetch tensor n at the next tile's queries."""
    count, image = soon
    ask_for_rows(x, _start(strides, n, image, head), strides[n, 1], places[2, 0], count, channels)


@jit
def _forward_tile(
    soon, image, head, rows, cols, kind, kept, tensors, strides, layout, bias, lse, channels, depth, scale, room, places
):
    """One tile of queries; returns the kind whose table is in `room`, or -1."""
    own, other = places[0], places[1]
    queries, parts = rows[0, 1] * cols[0, 1], rows.shape[0] * cols.shape[0]
    needs_table = layout.masked or len(bias) > 0
    for start in range(0, queries, LANES):
        count = min(LANES, queries - start)
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], QUERIES, start, count, own)
        read_rows(
            tensors.q, _start(strides, np.int64(0), image, head), strides[0, 1], own[0], count, channels, depth, room.a
        )
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, scale * LOG2_E)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            keys = row[3] * col[3]
            for key in range(0, keys, layout.block):
                others = min(layout.block, keys - key)
                fill_places(layout, row, col, KEYS, key, others, other)
                read_rows(
                    tensors.k,
                    _start(strides, np.int64(1), image, head),
                    strides[1, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.c,
                )
                read_rows(
                    tensors.v,
                    _start(strides, np.int64(2), image, head),
                    strides[2, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.d,
                )
                if needs_table and kind != kept:
                    pair_table(layout, own, other, count, others, lanes, YES, bias, room.table)
                    kept = kind if parts == 1 and queries <= LANES and others == keys else np.int64(-1)
                if first:
                    _ask(soon, tensors.k, np.int64(1), head, strides, places, channels)
                _logits(room.c, depth, room.a_cols, needs_table, room, others, lanes, channels)
                if first:
                    _ask(soon, tensors.q, np.int64(0), head, strides, places, channels)
                softmax_block(room.weights, others, lanes, room.peak, room.sum, room.factor, first)
                if not first:
                    scale_rows(room.sums, depth, room.factor, count)
                if first:
                    _ask(soon, tensors.v, np.int64(2), head, strides, places, channels)
                    _ask(soon, tensors.out, np.int64(3), head, strides, places, channels)
                _mix(room.sums, first, room.weights, lanes, room.d, depth, count, others, room.nothing)
                first = NO
        for i in range(lanes):
            room.factor[i] = ONE / room.sum[i]
            room.sum[i] = room.peak[i] * LN_2 + log32(room.sum[i])
        for i in range(count):
            lse[own[0, i]] = room.sum[i]
        scale_rows(room.sums, depth, room.factor, count)
        write_rows(
            room.sums,
            depth,
            ONE,
            tensors.out,
            _start(strides, np.int64(3), image, head),
            strides[3, 1],
            own[0],
            count,
            channels,
            YES,
        )
    return kept


@jit
def _logits(other, depth, cols, needs_table, room, others, lanes, channels):
    """weights[j, i] = other[j] . own[i], and what the table adds."""
    start, pitch = (room.table, lanes) if needs_table else (room.nothing, AT_0)
    multiply(
        room.weights,
        AT_0,
        lanes,
        start,
        AT_0,
        pitch,
        other,
        AT_0,
        depth,
        EVERY,
        cols,
        AT_0,
        lanes,
        others,
        lanes,
        channels,
    )


@jit
def _mix(sums, fresh, weights, lanes, other, depth, count, others, nothing):
    """sums[i] (+)= sum over the other side of weights[j, i] other[j]; fresh: =, not +=."""
    for c in range(0, depth, LANES):
        some = min(LANES, depth - c)
        start, at, pitch = (nothing, AT_0, AT_0) if fresh else (sums, c, depth)
        multiply(sums, c, depth, start, at, pitch, weights, AT_0, EVERY, lanes, other, c, depth, count, some, others)


@jit
def _mix_back(sums, weights, lanes, own, depth, count, others, nothing):
    """sums[j] = sum over the own side of weights[j, i] own[i]."""
    for c in range(0, depth, LANES):
        some = min(LANES, depth - c)
        multiply(sums, c, depth, nothing, AT_0, AT_0, weights, AT_0, lanes, EVERY, own, c, depth, others, some, count)


@_parallel
def query_kernel(tensors, strides, layout, bias, lse, delta, dbias, wanted, channels, scale, scratch, places):
    """Write delta (heads, B, N), the products of output and gradient, and the gradients that tiles of queries give.

    wanted (q, k, v, bias); k and v only if no key is in two tiles. dbias (heads * chunks, entries): a table per chunk.
    """
    for work in numba.prange(lse.shape[0] * layout.chunks):
        thread = numba.get_thread_id()
        _query_chunk(
            np.int64(work), tensors, strides, layout, bias, lse, delta, dbias, wanted, channels, scale,
            scratch[thread], places[thread],
        )  # fmt: skip


@jit
def _query_chunk(work, tensors, strides, layout, bias, lse, delta, dbias, wanted, channels, scale, memory, places):
    head, begin, end = _chunk(work, layout)
    depth = round_up(channels, WIDTH)
    room = cut_room(memory, depth, layout.lanes, layout.block)
    own_dbias = dbias[work if wanted[3] else 0]
    if wanted[3]:
        own_dbias[:] = 0
    kept = np.int64(-1)
    for n in range(begin, end):
        image, kind = layout.items[n, 0], layout.items[n, 3]
        rows, cols = layout.rows[layout.items[n, 1]], layout.cols[layout.items[n, 2]]
        last = n + 1 == end or layout.items[n + 1, 3] != kind
        soon = _next_queries(min(n + 1, end - 1), layout, places[2])
        kept = _query_tile(
            soon,
            image, head, rows, cols, kind, kept, last, tensors, strides, layout, bias[head], lse[head, image],
            delta[head, image], own_dbias, wanted, channels, depth, scale, room, places,
        )  # fmt: skip


@jit
def _query_tile(
    soon, image, head, rows, cols, kind, kept, last, tensors, strides, layout, bias, lse, delta, dbias, wanted,
    channels, depth, scale, room, places,
):  # fmt: skip
    """The gradients that one tile of queries gives; `last`: the next tile is of another kind."""
    own, other = places[0], places[1]
    want_q, want_k, want_v, want_bias = wanted
    queries, parts = rows[0, 1] * cols[0, 1], rows.shape[0] * cols.shape[0]
    needs_table = layout.masked or len(bias) > 0
    for start in range(0, queries, LANES):
        count = min(LANES, queries - start)
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], QUERIES, start, count, own)
        read_rows(
            tensors.grad,
            _start(strides, np.int64(4), image, head),
            strides[4, 1],
            own[0],
            count,
            channels,
            depth,
            room.b,
        )
        row_dots(
            tensors.out,
            _start(strides, np.int64(3), image, head),
            strides[3, 1],
            room.b,
            depth,
            own[0],
            count,
            channels,
            room.sum,
        )
        for i in range(count):
            delta[own[0, i]] = room.sum[i]
            room.peak[i] = lse[own[0, i]] * LOG2_E
        if not (want_q or want_k or want_v or want_bias):
            continue
        read_rows(
            tensors.q, _start(strides, np.int64(0), image, head), strides[0, 1], own[0], count, channels, depth, room.a
        )
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, scale * LOG2_E)
        transpose(room.b_cols, AT_0, lanes, room.b, AT_0, depth, lanes, depth, ONE)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            keys = row[3] * col[3]
            for key in range(0, keys, layout.block):
                others = min(layout.block, keys - key)
                alone = parts == 1 and queries <= LANES and others == keys
                fill_places(layout, row, col, KEYS, key, others, other)
                read_rows(
                    tensors.k,
                    _start(strides, np.int64(1), image, head),
                    strides[1, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.c,
                )
                read_rows(
                    tensors.v,
                    _start(strides, np.int64(2), image, head),
                    strides[2, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.d,
                )
                if kind != kept or not alone:
                    if needs_table:
                        pair_table(layout, own, other, count, others, lanes, YES, bias, room.table)
                    room.slots[: others * lanes] = 0
                    kept = kind if alone else np.int64(-1)
                if key == 0:
                    _ask(soon, tensors.grad, np.int64(4), head, strides, places, channels)
                _logits(room.c, depth, room.a_cols, needs_table, room, others, lanes, channels)
                if key == 0:
                    _ask(soon, tensors.out, np.int64(3), head, strides, places, channels)
                multiply(
                    room.dweights, AT_0, lanes, room.nothing, AT_0, AT_0, room.d, AT_0, depth, EVERY, room.b_cols,
                    AT_0, lanes,
                    others, lanes, channels,
                )  # fmt: skip
                if key == 0:
                    _ask(soon, tensors.q, np.int64(0), head, strides, places, channels)
                probabilities_and_gradient(room.weights, room.dweights, others, lanes, room.peak, room.sum)
                if want_bias:
                    accumulate(room.dweights, room.slots, others * lanes)
                    if last or not alone:
                        add_to_bias(layout, room.slots, lanes, own, other, count, others, dbias)
                if want_q and key == 0:
                    _ask(soon, tensors.k, np.int64(1), head, strides, places, channels)
                if want_q:
                    _mix(room.sums, first, room.dweights, lanes, room.c, depth, count, others, room.nothing)
                    first = NO
                if want_v:
                    _ask(soon, tensors.v, np.int64(2), head, strides, places, channels)
                    _ask(soon, tensors.dq, np.int64(5), head, strides, places, channels)
                    _mix_back(room.more_sums, room.weights, lanes, room.b, depth, count, others, room.nothing)
                    write_rows(
                        room.more_sums, depth, ONE, tensors.dv, _start(strides, np.int64(7), image, head), strides[7, 1], other[0], others, channels,
                        start == 0,
                    )  # fmt: skip
                if want_k:
                    _ask(soon, tensors.dk, np.int64(6), head, strides, places, channels)
                    _ask(soon, tensors.dv, np.int64(7), head, strides, places, channels)
                    _mix_back(room.more_sums, room.dweights, lanes, room.a, depth, count, others, room.nothing)
                    write_rows(
                        room.more_sums, depth, scale, tensors.dk, _start(strides, np.int64(6), image, head), strides[6, 1], other[0], others, channels,
                        start == 0,
                    )  # fmt: skip
        if want_q:
            write_rows(
                room.sums,
                depth,
                scale,
                tensors.dq,
                _start(strides, np.int64(5), image, head),
                strides[5, 1],
                own[0],
                count,
                channels,
                YES,
            )
    return kept


@_parallel
def key_kernel(tensors, strides, layout, bias, lse, delta, wanted, channels, scale, scratch, places):
    """Write the gradients of keys and values that `wanted` (q, k, v, bias) names, by tiles of keys."""
    for work in numba.prange(lse.shape[0] * layout.chunks):
        thread = numba.get_thread_id()
        _key_chunk(
            np.int64(work), tensors, strides, layout, bias, lse, delta, wanted, channels, scale,
            scratch[thread], places[thread],
        )  # fmt: skip


@jit
def _key_chunk(work, tensors, strides, layout, bias, lse, delta, wanted, channels, scale, memory, places):
    head, begin, end = _chunk(work, layout)
    depth = round_up(channels, WIDTH)
    room = cut_room(memory, depth, layout.lanes, layout.block)
    kept = np.int64(-1)
    for n in range(begin, end):
        image, kind = layout.items[n, 0], layout.items[n, 3]
        rows, cols = layout.rows[layout.items[n, 1]], layout.cols[layout.items[n, 2]]
        kept = _key_tile(
            image, head, rows, cols, kind, kept, tensors, strides, layout, bias[head], lse[head, image],
            delta[head, image], wanted, channels, depth, scale, room, places,
        )  # fmt: skip


@jit
def _key_tile(
    image, head, rows, cols, kind, kept, tensors, strides, layout, bias, lse, delta, wanted,
    channels, depth, scale, room, places,
):  # fmt: skip
    """The gradients of one tile of keys."""
    own, other = places[0], places[1]
    want_k, want_v = wanted[1], wanted[2]
    keys, parts = rows[0, 3] * cols[0, 3], rows.shape[0] * cols.shape[0]
    needs_table = layout.masked or len(bias) > 0
    for start in range(0, keys, LANES):
        count = min(LANES, keys - start)
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], KEYS, start, count, own)
        read_rows(
            tensors.k, _start(strides, np.int64(1), image, head), strides[1, 1], own[0], count, channels, depth, room.a
        )
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, scale * LOG2_E)
        if want_k:
            read_rows(
                tensors.v,
                _start(strides, np.int64(2), image, head),
                strides[2, 1],
                own[0],
                count,
                channels,
                depth,
                room.b,
            )
            transpose(room.b_cols, AT_0, lanes, room.b, AT_0, depth, lanes, depth, ONE)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            queries = row[1] * col[1]
            for query in range(0, queries, layout.block):
                others = min(layout.block, queries - query)
                fill_places(layout, row, col, QUERIES, query, others, other)
                read_rows(
                    tensors.q,
                    _start(strides, np.int64(0), image, head),
                    strides[0, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.c,
                )
                read_rows(
                    tensors.grad,
                    _start(strides, np.int64(4), image, head),
                    strides[4, 1],
                    other[0],
                    others,
                    channels,
                    depth,
                    room.d,
                )
                if needs_table and kind != kept:
                    pair_table(layout, own, other, count, others, lanes, NO, bias, room.table)
                    kept = kind if parts == 1 and keys <= LANES and others == queries else np.int64(-1)
                _logits(room.c, depth, room.a_cols, needs_table, room, others, lanes, channels)
                if want_k:
                    multiply(
                        room.dweights, AT_0, lanes, room.nothing, AT_0, AT_0, room.d, AT_0, depth, EVERY, room.b_cols,
                    AT_0, lanes,
                        others, lanes, channels,
                    )  # fmt: skip
                    probabilities_and_gradient_by_row(room.weights, room.dweights, others, lanes, lse, delta, other[0])
                    _mix(room.more_sums, first, room.dweights, lanes, room.c, depth, count, others, room.nothing)
                else:
                    probabilities_by_row(room.weights, others, lanes, lse, other[0])
                if want_v:
                    _mix(room.sums, first, room.weights, lanes, room.d, depth, count, others, room.nothing)
                first = NO
        if want_k:
            write_rows(
                room.more_sums,
                depth,
                scale,
                tensors.dk,
                _start(strides, np.int64(6), image, head),
                strides[6, 1],
                own[0],
                count,
                channels,
                YES,
            )
        if want_v:
            write_rows(
                room.sums,
                depth,
                ONE,
                tensors.dv,
                _start(strides, np.int64(7), image, head),
                strides[7, 1],
                own[0],
                count,
                channels,
                YES,
            )
    return kept
