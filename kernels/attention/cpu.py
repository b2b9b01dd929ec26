"""Neighbourhood attention on the CPU: numba, float32, forward and backward.

A work item is one cell of one head of one image: the queries that share their keys. It takes 64 queries at a time and
makes the table of their weights, (keys, queries), in the steps of `cpu_tables`. The backward pass makes the same table
again from the saved logsumexp, and computes only the gradients that are needed.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F

from kernels.backends import CPU_LOCK
from kernels.vectormath import WIDTH

from . import Attention
from .cpu_tables import (
    LANES,
    add_to_bias,
    cut,
    folds,
    mixtures,
    probabilities,
    products,
    put_bias,
    read_columns,
    read_rows,
    round_up,
    row_dots,
    softmax,
    softmax_gradient,
    write_rows,
)
from .pattern import Cells, Pattern

_ONE = np.float32(1)
_jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
_parallel = numba.njit(cache=True, parallel=True, fastmath={"contract"}, error_model="numpy")


class Members(NamedTuple):
    """The queries, or the keys, of every cell that lie on the map: cell n has those from start[n] to start[n + 1].

    A token is a position row * W + col. The bias of a pair is at relative[query] - relative[key] of a head's table.
    """

    start: np.ndarray
    token: np.ndarray
    relative: np.ndarray


def forward(
    settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs."""
    batch, height, width, heads, channels = q.shape
    out = torch.empty(q.shape)
    lse = torch.empty(batch, heads, height * width)
    queries, keys = _members(settings.pattern, (height, width))
    memory, strides = _tokens(q, k, v, out)
    scale = np.float32(settings.scale)
    scratch = _scratch(queries, keys, channels, rows_of_keys=2, rows_of_queries=1, columns=1, weights=1)
    with CPU_LOCK:
        _forward(*memory, strides, lse.numpy(), _by_head(bias, heads), *queries, *keys, channels, scale, scratch)
    return out, (q, k, v, bias, out, lse)


def backward(
    settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v and the bias; None for those not needed."""
    q, k, v, bias, out, lse = saved
    batch, height, width, heads, channels = q.shape
    queries, keys = _members(settings.pattern, (height, width))
    table = _by_head(bias, heads)
    # Cells run at the same time, so each has a bias gradient of its own; they are added in a fixed order at the end.
    dbias = torch.empty(batch * (len(queries.start) - 1), *table.shape)
    dq, dk, dv = (torch.empty(q.shape if needed else (0,) * 5) for needed in needs[:3])
    memory, strides = _tokens(q, k, v, out, grad, dq, dk, dv)
    wanted, scale = np.array(needs), np.float32(settings.scale)
    scratch = _scratch(queries, keys, channels, rows_of_keys=4, rows_of_queries=3, columns=2, weights=2)
    with CPU_LOCK:
        _backward(
            *memory, dbias.numpy(), wanted, strides, lse.numpy(), table, *queries, *keys, channels, scale, scratch
        )
    grads = (dq, dk, dv, dbias.sum(0)[:, :-WIDTH].reshape(bias.shape) if needs[3] else None)
    return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def _tokens(*tensors: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Tensors (B, H, W, heads, d) as their memory in one axis, and their strides (tensor, (image, token, head)).

    In this form numba compiles one version of a kernel, whatever views it is given.
    """
    memory, strides = [], []
    for tensor in tensors:
        t = tensor.detach().flatten(1, 2)
        if t.stride(3) != 1:
            t = t.contiguous()
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
        memory.append(t.as_strided((extent,), (1,)).numpy())
        strides.append(t.stride()[:3])
    return memory, np.array(strides)


def _by_head(bias: torch.Tensor | None, heads: int) -> np.ndarray:
    """The bias as (heads, entries + a vector's width), so that a vector may begin at any entry; (heads, 0) for none."""
    return np.empty((heads, 0), np.float32) if bias is None else F.pad(bias.detach().flatten(1), (0, WIDTH)).numpy()


def _scratch(
    queries: Members, keys: Members, channels: int, rows_of_keys: int, rows_of_queries: int, columns: int, weights: int
) -> np.ndarray:
    """Memory for the tables of a cell in every thread, given how many there are of each kind, and for two lane sums."""
    most_keys = math.ceil(np.diff(keys.start).max() / 4) * 4
    most_queries = min(LANES, math.ceil(np.diff(queries.start).max() / 4) * 4)
    rows = math.ceil(channels / LANES) * (rows_of_keys * most_keys + rows_of_queries * most_queries)
    rows += columns * math.ceil(channels / 4) * 4 + weights * most_keys + 2
    return torch.empty(numba.get_num_threads(), rows, LANES).numpy()


@lru_cache(maxsize=64)
def _members(pattern: Pattern, grid: tuple[int, int]) -> tuple[Members, Members]:
    """The queries and the keys of every cell of a pattern."""
    rows, cols = pattern.rows.cells(grid[0]), pattern.cols.cells(grid[1])
    width = 2 * pattern.cols.kernel - 1
    centre = (pattern.rows.kernel - 1) * width + pattern.cols.kernel - 1
    queries = _cross(_query_slots(rows), _query_slots(cols), grid, width)
    keys = _cross(_key_slots(rows), _key_slots(cols), grid, width)
    return queries._replace(relative=queries.relative + np.uint32(centre)), keys


def _query_slots(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """(cells, slots): the position of every query slot, and its distance in steps from the cell's key slot 0."""
    first, key, step = (cells.table[:, [i]] for i in range(3))
    slots = np.arange(cells.queries)
    return first + step * slots, (first - key) // step + slots


def _key_slots(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """(cells, slots): the position of every key slot, and its distance in steps from key slot 0."""
    _, key, step = (cells.table[:, [i]] for i in range(3))
    slots = np.arange(cells.keys)
    return key + step * slots, np.broadcast_to(slots, (len(key), cells.keys))


def _cross(
    rows: tuple[np.ndarray, np.ndarray], cols: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], width: int
) -> Members:
    """Cross the slots of the rows with those of the columns and drop what lies outside the map."""
    (row, down), (col, right) = ([a[:, None, :, None] for a in rows], [a[None, :, None, :] for a in cols])
    inside = (row >= 0) & (row < grid[0]) & (col >= 0) & (col < grid[1])
    members = inside.reshape(-1, inside.shape[2] * inside.shape[3]).sum(1)
    start = np.concatenate([[0], np.cumsum(members)])
    return Members(start, (row * grid[1] + col)[inside], (down * width + right)[inside].astype(np.uint32))


@_parallel
def _forward(
    q, k, v, out, strides, lse, bias, q_start, q_token, q_relative, k_start, k_token, k_relative,
    channels, scale, scratch,
):  # fmt: skip
    for item in numba.prange(lse.shape[0] * lse.shape[1] * (len(q_start) - 1)):
        _forward_cell(
            np.int64(item), q, k, v, out, strides, lse, bias, q_start, q_token, q_relative, k_start, k_token, k_relative,
            channels, scale, scratch[numba.get_thread_id()],
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
    stride, has_bias = strides[:, 1], bias.shape[1] > 0
    inner, height, depth = round_up(len(k_token), 4), min(LANES, round_up(len(q_token), 4)), round_up(channels, 4)
    key, room = cut(room, folds(channels) * inner)
    value, room = cut(room, folds(channels) * inner)
    mixed, room = cut(room, folds(channels) * height)
    query, room = cut(room, depth)
    weights, room = cut(room, inner)
    read_rows(k, at[1], stride[1], k_token, channels, _ONE, key)
    read_rows(v, at[2], stride[2], k_token, channels, _ONE, value)
    for first in range(0, len(q_token), LANES):
        token, relative = q_token[first : first + LANES], q_relative[first : first + LANES]
        lanes = round_up(len(token), 8)
        read_columns(q, at[0], stride[0], token, channels, scale, query)
        if has_bias:
            put_bias(bias[h], relative, k_relative, weights)
        products(key, query, lanes, not has_bias, weights)
        softmax(weights, len(k_token), lanes, room[0])
        mixtures(weights, 1, LANES, inner, value, channels, True, mixed)
        write_rows(mixed, _ONE, out, at[3], stride[3], token, channels)
        for i in range(len(token)):
            lse[b, h, token[i]] = room[0, i]


@_parallel
def _backward(
    q, k, v, out, grad, dq, dk, dv, dbias, wanted, strides, lse, bias,
    q_start, q_token, q_relative, k_start, k_token, k_relative, channels, scale, scratch,
):  # fmt: skip
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
    stride, has_bias = strides[:, 1], bias.shape[1] > 0
    want_q, want_k, want_v, want_bias = wanted
    want_logits = want_q or want_k or want_bias
    inner, height, depth = round_up(len(k_token), 4), min(LANES, round_up(len(q_token), 4)), round_up(channels, 4)
    key, room = cut(room, folds(channels) * inner)
    value, room = cut(room, folds(channels) * inner)
    dkey, room = cut(room, folds(channels) * inner)
    dvalue, room = cut(room, folds(channels) * inner)
    query_rows, room = cut(room, folds(channels) * height)
    dout_rows, room = cut(room, folds(channels) * height)
    dquery, room = cut(room, folds(channels) * height)
    query, room = cut(room, depth)
    dout, room = cut(room, depth)
    weights, room = cut(room, inner)
    dweights, room = cut(room, inner)
    block_lse, delta = room[0], room[1]
    block_lse[:], delta[:] = 0, 0
    read_rows(k, at[1], stride[1], k_token, channels, _ONE, key)
    if want_logits:
        read_rows(v, at[2], stride[2], k_token, channels, _ONE, value)
    if want_bias:
        dbias[b * (len(q_start) - 1) + cell, h] = 0
    for first in range(0, len(q_token), LANES):
        token, relative = q_token[first : first + LANES], q_relative[first : first + LANES]
        lanes, terms = round_up(len(token), 8), round_up(len(token), 4)
        for i in range(len(token)):
            block_lse[i] = lse[b, h, token[i]]
        read_columns(q, at[0], stride[0], token, channels, scale, query)
        if has_bias:
            put_bias(bias[h], relative, k_relative, weights)
        products(key, query, lanes, not has_bias, weights)
        probabilities(weights, len(k_token), len(token), block_lse)
        if want_v:
            read_rows(grad, at[4], stride[4], token, channels, _ONE, dout_rows)
            mixtures(weights, LANES, 1, terms, dout_rows, channels, first == 0, dvalue)
        if not want_logits:
            continue
        read_columns(grad, at[4], stride[4], token, channels, _ONE, dout)
        products(value, dout, lanes, True, dweights)
        row_dots(grad, at[4], stride[4], out, at[3], stride[3], token, channels, delta)
        softmax_gradient(weights, dweights, delta, lanes)
        if want_bias:
            add_to_bias(weights, relative, k_relative, dbias[b * (len(q_start) - 1) + cell, h])
        if want_q:
            mixtures(weights, 1, LANES, inner, key, channels, True, dquery)
            write_rows(dquery, scale, dq, at[5], stride[5], token, channels)
        if want_k:
            read_rows(q, at[0], stride[0], token, channels, scale, query_rows)
            mixtures(weights, LANES, 1, terms, query_rows, channels, first == 0, dkey)
    if want_k:
        write_rows(dkey, _ONE, dk, at[6], stride[6], k_token, channels)
    if want_v:
        write_rows(dvalue, _ONE, dv, at[7], stride[7], k_token, channels)
