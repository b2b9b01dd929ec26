"""The numba kernels of neighbourhood attention: float32, forward and backward, by tiles of queries and tiles of keys.

A work item is a tile of one head of one image. A tile of queries takes up to 64 queries at a time and then its keys,
block by block: their weights are a small table, softmax goes on from block to block. The backward pass makes the same
weights again from the saved logsumexp. Where no key is in two tiles, a tile of queries also gives the gradients of its
keys and values; otherwise tiles of keys do, in a pass of their own.

Items run in chunks, of one head each, kind by kind (cpu_plan.py): what is added to the logits is made once for every
kind, and the gradients of the bias are summed by kind before they are sorted by distance. Chunks do not depend on the
number of threads, so neither does the result. While a tile is computed, what the next one needs is asked for.
"""

from typing import NamedTuple

import numba
import numpy as np

from kernels.vectormath import WIDTH, log32

from .cpu_blocks import AT_0, EVERY, mix, mix_back, products, transpose
from .cpu_plan import LANES, Layout
from .cpu_tables import (
    KEYS,
    LN_2,
    LOG2_E,
    NO,
    ONE,
    QUERIES,
    YES,
    Room,
    Tokens,
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


class Head(NamedTuple):
    """One head of one image of `Tensors`."""

    q: Tokens
    k: Tokens
    v: Tokens
    out: Tokens
    grad: Tokens
    dq: Tokens
    dk: Tokens
    dv: Tokens


class Task(NamedTuple):
    """What all tiles of a chunk have in common. own, other, ahead: places (cpu_tables.fill_places) of the tile's own
    and its other side, and of the next tile's queries.
    """

    layout: Layout
    room: Room
    own: np.ndarray
    other: np.ndarray
    ahead: np.ndarray
    bias: np.ndarray
    channels: int
    depth: int
    scale: float


@jit
def _chunk(work, layout):
    """A chunk's head, and its first item and the one after its last."""
    head, chunk = work // layout.chunks, work % layout.chunks
    size = (len(layout.items) + layout.chunks - 1) // layout.chunks
    return head, min(chunk * size, len(layout.items)), min((chunk + 1) * size, len(layout.items))


@jit
def _task(layout, bias, channels, scale, memory, places):
    depth = round_up(channels, WIDTH)
    room = cut_room(memory, depth, layout.lanes, layout.block)
    return Task(layout, room, places[0], places[1], places[2], bias, channels, depth, scale)


@jit
def _tokens(memory, strides, image, head):
    return Tokens(memory, image * strides[0] + head * strides[2], strides[1])


@jit
def _head(tensors, strides, image, head):
    """The tensors of one head; strides (tensor, 3) over image, token and head."""
    q, k = _tokens(tensors.q, strides[0], image, head), _tokens(tensors.k, strides[1], image, head)
    v, out = _tokens(tensors.v, strides[2], image, head), _tokens(tensors.out, strides[3], image, head)
    grad, dq = _tokens(tensors.grad, strides[4], image, head), _tokens(tensors.dq, strides[5], image, head)
    dk, dv = _tokens(tensors.dk, strides[6], image, head), _tokens(tensors.dv, strides[7], image, head)
    return Head(q, k, v, out, grad, dq, dk, dv)


@jit
def _look_ahead(task, n):
    """Fill in the places of the first queries of item n; returns how many there are."""
    rows, cols = task.layout.rows[task.layout.items[n, 1]], task.layout.cols[task.layout.items[n, 2]]
    count = min(LANES, rows[0, 1] * cols[0, 1])
    fill_places(task.layout, rows[0], cols[0], QUERIES, AT_0, count, task.ahead)
    return count


@_parallel
def forward_kernel(tensors, strides, layout, bias, lse, channels, scale, scratch, places):
    """Write out and lse (heads, B, N).

    strides (tensor, 3) over image, token and head. bias (heads, entries). scratch (threads, floats), places (threads,
    3, 8, n).
    """
    for work in numba.prange(lse.shape[0] * layout.chunks):
        thread = numba.get_thread_id()
        _forward_chunk(
            np.int64(work), tensors, strides, layout, bias, lse, channels, scale, scratch[thread], places[thread]
        )


@jit
def _forward_chunk(work, tensors, strides, layout, bias, lse, channels, scale, memory, places):
    head, begin, end = _chunk(work, layout)
    task = _task(layout, bias[head], channels, scale, memory, places)
    kept = np.int64(-1)
    for n in range(begin, end):
        image, following = layout.items[n, 0], min(n + 1, end - 1)
        now = _head(tensors, strides, image, head)
        soon = _head(tensors, strides, layout.items[following, 0], head)
        kept = _forward_tile(task, now, soon, _look_ahead(task, following), layout.items[n], kept, lse[head, image])


@jit
def _forward_tile(task, head, soon, ahead, item, kept, lse):
    """One tile of queries; `kept`: the kind whose table is in the room, or -1; returns what is there afterwards."""
    layout, room, own, other, channels, depth = task.layout, task.room, task.own, task.other, task.channels, task.depth
    rows, cols, kind = layout.rows[item[1]], layout.cols[item[2]], item[3]
    queries, parts = rows[0, 1] * cols[0, 1], rows.shape[0] * cols.shape[0]
    needs_table = layout.masked or len(task.bias) > 0
    start, pitch = (room.table, EVERY) if needs_table else (room.nothing, AT_0)
    for query in range(0, queries, LANES):
        count = min(LANES, queries - query)
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], QUERIES, query, count, own)
        read_rows(head.q, own[0], count, channels, depth, room.a)
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, task.scale * LOG2_E)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            keys = row[3] * col[3]
            for key in range(0, keys, layout.block):
                others = min(layout.block, keys - key)
                fill_places(layout, row, col, KEYS, key, others, other)
                read_rows(head.k, other[0], others, channels, depth, room.c)
                read_rows(head.v, other[0], others, channels, depth, room.d)
                if needs_table and kind != kept:
                    pair_table(layout, own, other, count, others, lanes, YES, task.bias, room.table)
                    kept = kind if parts == 1 and queries <= LANES and others == keys else np.int64(-1)
                if first:
                    ask_for_rows(soon.k, task.ahead[0], ahead, channels)
                    ask_for_rows(soon.q, task.ahead[0], ahead, channels)
                products(room.c, depth, room.a_cols, start, pitch * lanes, others, lanes, channels, room.weights)
                softmax_block(room.weights, others, lanes, room.peak, room.sum, room.factor, first)
                if first:
                    ask_for_rows(soon.v, task.ahead[0], ahead, channels)
                    ask_for_rows(soon.out, task.ahead[0], ahead, channels)
                else:
                    scale_rows(room.sums, depth, room.factor, count)
                mix(room.sums, first, room.weights, lanes, room.d, depth, count, others, room.nothing)
                first = NO
        for i in range(lanes):
            room.factor[i] = ONE / room.sum[i]
            room.sum[i] = room.peak[i] * LN_2 + log32(room.sum[i])
        for i in range(count):
            lse[own[0, i]] = room.sum[i]
        scale_rows(room.sums, depth, room.factor, count)
        write_rows(room.sums, ONE, head.out, own[0], count, channels, depth, YES)
    return kept


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
    task = _task(layout, bias[head], channels, scale, memory, places)
    partial = dbias[work if wanted[3] else 0]
    if wanted[3]:
        partial[:] = 0
    kept = np.int64(-1)
    for n in range(begin, end):
        image, following = layout.items[n, 0], min(n + 1, end - 1)
        now = _head(tensors, strides, image, head)
        soon = _head(tensors, strides, layout.items[following, 0], head)
        last = n + 1 == end or layout.items[following, 3] != layout.items[n, 3]
        kept = _query_tile(
            task, now, soon, _look_ahead(task, following), layout.items[n], kept, last,
            lse[head, image], delta[head, image], partial, wanted,
        )  # fmt: skip


@jit
def _query_tile(task, head, soon, ahead, item, kept, last, lse, delta, dbias, wanted):
    """The gradients that one tile of queries gives; `last`: the next tile is of another kind."""
    layout, room, own, other, channels, depth = task.layout, task.room, task.own, task.other, task.channels, task.depth
    rows, cols, kind = layout.rows[item[1]], layout.cols[item[2]], item[3]
    queries, parts = rows[0, 1] * cols[0, 1], rows.shape[0] * cols.shape[0]
    for query in range(0, queries, LANES):
        count, fresh = min(LANES, queries - query), query == 0
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], QUERIES, query, count, own)
        read_rows(head.grad, own[0], count, channels, depth, room.b)
        row_dots(head.out, room.b, own[0], count, channels, depth, room.sum)
        for i in range(count):
            delta[own[0, i]] = room.sum[i]
            room.peak[i] = lse[own[0, i]] * LOG2_E
        if not (wanted[0] or wanted[1] or wanted[2] or wanted[3]):
            continue
        read_rows(head.q, own[0], count, channels, depth, room.a)
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, task.scale * LOG2_E)
        transpose(room.b_cols, AT_0, lanes, room.b, AT_0, depth, lanes, depth, ONE)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            keys = row[3] * col[3]
            for key in range(0, keys, layout.block):
                others = min(layout.block, keys - key)
                alone = parts == 1 and queries <= LANES and others == keys
                fill_places(layout, row, col, KEYS, key, others, other)
                read_rows(head.k, other[0], others, channels, depth, room.c)
                read_rows(head.v, other[0], others, channels, depth, room.d)
                if kind != kept or not alone:
                    if layout.masked or len(task.bias) > 0:
                        pair_table(layout, own, other, count, others, lanes, YES, task.bias, room.table)
                    room.slots[: others * lanes] = 0
                    kept = kind if alone else np.int64(-1)
                _logits_gradient(task, soon, ahead, count, others, lanes, first)
                if wanted[3]:
                    accumulate(room.dweights, room.slots, others * lanes)
                    if last or not alone:
                        add_to_bias(layout, room.slots, lanes, own, other, count, others, dbias)
                if wanted[0]:
                    mix(room.sums, first, room.dweights, lanes, room.c, depth, count, others, room.nothing)
                if wanted[2]:
                    ask_for_rows(soon.dv, task.ahead[0], ahead, channels)
                    mix_back(room.more_sums, room.weights, lanes, room.b, depth, count, others, room.nothing)
                    write_rows(room.more_sums, ONE, head.dv, other[0], others, channels, depth, fresh)
                if wanted[1]:
                    ask_for_rows(soon.dk, task.ahead[0], ahead, channels)
                    mix_back(room.more_sums, room.dweights, lanes, room.a, depth, count, others, room.nothing)
                    write_rows(room.more_sums, task.scale, head.dk, other[0], others, channels, depth, fresh)
                first = NO
        if wanted[0]:
            write_rows(room.sums, task.scale, head.dq, own[0], count, channels, depth, YES)
    return kept


@jit
def _logits_gradient(task, soon, ahead, count, others, lanes, first):
    """From staged tokens to weights and, in dweights, the gradient of the logits, for a tile of queries."""
    room, channels, depth = task.room, task.channels, task.depth
    needs_table = task.layout.masked or len(task.bias) > 0
    start, pitch = (room.table, lanes) if needs_table else (room.nothing, AT_0)
    if first:
        ask_for_rows(soon.grad, task.ahead[0], ahead, channels)
        ask_for_rows(soon.out, task.ahead[0], ahead, channels)
    products(room.c, depth, room.a_cols, start, pitch, others, lanes, channels, room.weights)
    if first:
        ask_for_rows(soon.q, task.ahead[0], ahead, channels)
        ask_for_rows(soon.k, task.ahead[0], ahead, channels)
    products(room.d, depth, room.b_cols, room.nothing, AT_0, others, lanes, channels, room.dweights)
    if first:
        ask_for_rows(soon.v, task.ahead[0], ahead, channels)
        ask_for_rows(soon.dq, task.ahead[0], ahead, channels)
    probabilities_and_gradient(room.weights, room.dweights, others, lanes, room.peak, room.sum)


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
    task = _task(layout, bias[head], channels, scale, memory, places)
    kept = np.int64(-1)
    for n in range(begin, end):
        image = layout.items[n, 0]
        now = _head(tensors, strides, image, head)
        kept = _key_tile(task, now, layout.items[n], kept, lse[head, image], delta[head, image], wanted[1], wanted[2])


@jit
def _key_tile(task, head, item, kept, lse, delta, want_k, want_v):
    """The gradients of one tile of keys."""
    layout, room, own, other, channels, depth = task.layout, task.room, task.own, task.other, task.channels, task.depth
    rows, cols, kind = layout.rows[item[1]], layout.cols[item[2]], item[3]
    keys, parts = rows[0, 3] * cols[0, 3], rows.shape[0] * cols.shape[0]
    needs_table = layout.masked or len(task.bias) > 0
    start, pitch = (room.table, EVERY) if needs_table else (room.nothing, AT_0)
    for key in range(0, keys, LANES):
        count = min(LANES, keys - key)
        lanes, first = round_up(count, WIDTH), YES
        fill_places(layout, rows[0], cols[0], KEYS, key, count, own)
        read_rows(head.k, own[0], count, channels, depth, room.a)
        transpose(room.a_cols, AT_0, lanes, room.a, AT_0, depth, lanes, depth, task.scale * LOG2_E)
        if want_k:
            read_rows(head.v, own[0], count, channels, depth, room.b)
            transpose(room.b_cols, AT_0, lanes, room.b, AT_0, depth, lanes, depth, ONE)
        for part in range(parts):
            row, col = rows[part // cols.shape[0]], cols[part % cols.shape[0]]
            queries = row[1] * col[1]
            for query in range(0, queries, layout.block):
                others = min(layout.block, queries - query)
                fill_places(layout, row, col, QUERIES, query, others, other)
                read_rows(head.q, other[0], others, channels, depth, room.c)
                read_rows(head.grad, other[0], others, channels, depth, room.d)
                if needs_table and kind != kept:
                    pair_table(layout, own, other, count, others, lanes, NO, task.bias, room.table)
                    kept = kind if parts == 1 and keys <= LANES and others == queries else np.int64(-1)
                products(room.c, depth, room.a_cols, start, pitch * lanes, others, lanes, channels, room.weights)
                if want_k:
                    products(room.d, depth, room.b_cols, room.nothing, AT_0, others, lanes, channels, room.dweights)
                    probabilities_and_gradient_by_row(room.weights, room.dweights, others, lanes, lse, delta, other[0])
                    mix(room.more_sums, first, room.dweights, lanes, room.c, depth, count, others, room.nothing)
                else:
                    probabilities_by_row(room.weights, others, lanes, lse, other[0])
                if want_v:
                    mix(room.sums, first, room.weights, lanes, room.d, depth, count, others, room.nothing)
                first = NO
        if want_k:
            write_rows(room.more_sums, task.scale, head.dk, own[0], count, channels, depth, YES)
        if want_v:
            write_rows(room.sums, ONE, head.dv, own[0], count, channels, depth, YES)
    return kept
