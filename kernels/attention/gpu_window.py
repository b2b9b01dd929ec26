"""The backward kernel of neighbourhood attention where windows share no keys: all gradients in one pass over memory.

Swin's windows, blocks, grids and stripes that fit one tile of queries and one of keys: every gradient of a window
comes from that window alone. gpu_tiles.py explains the arguments.
"""

import triton
import triton.language as tl

from .gpu_backward import logit_gradient, weights_of
from .gpu_tiles import LOG2E, dot, key_entry, place, query_entry, read, strided, tile_of, token, write


@triton.jit
def window_kernel(
    q, k, v, bias, grad, lse, out, dq, dk, dv, partial, rows, cols, scale, H, W, KH, KW, batch, heads, down,
    across, share, sb, sr, sc, sh, kb, kr, kc, kh, so,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    TABLE: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    WANT_BIAS: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv and, if WANT_BIAS, partial (splits, heads, QUERIES, KEYS), the logits' gradient summed over windows.

    A program per (split, head) takes `share` windows, one after the other.
    """
    h = tl.program_id(0) % heads
    split = tl.program_id(0) // heads
    slot, k_slot = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    if HAS_BIAS:  # the slots of all windows are equally far apart
        row_query, row_key, row_step = tile_of(rows, 0, 0, 1)
        col_query, col_key, col_step = tile_of(cols, 0, 0, 1)
        q_entry = query_entry(
            row_query, row_key, row_step, col_query, col_key, col_step, slot, slot < QUERIES, QUERY_COLS, TABLE, CENTRE
        )
        entry = q_entry[:, None] - key_entry(k_slot, KEY_COLS, TABLE)[None, :]
        own = bias + h * (2 * CENTRE + 1)
        added = tl.load(own + entry, mask=(entry >= 0) & (entry <= 2 * CENTRE), other=0).to(tl.float32) * LOG2E
    dbias = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    first = split * share
    for item in tl.range(first, tl.minimum(first + share, batch * down * across), num_stages=STAGES):
        b = (item // across // down).to(tl.int64)
        row_query, row_key, row_step = tile_of(rows, item // across % down, 0, 1)
        col_query, col_key, col_step = tile_of(cols, item % across, 0, 1)
        row, col, q_exists = place(row_query, row_step, col_query, col_step, slot, H, W, QUERIES, QUERY_COLS)
        k_row, k_col, k_exists = place(row_key, row_step, col_key, col_step, k_slot, KH, KW, KEYS, KEY_COLS)
        query = read(q + b * sb + h.to(tl.int64) * sh, strided(row, col, sr, sc), q_exists, D, BLOCK_D)
        k_at = b * kb + h.to(tl.int64) * kh + strided(k_row, k_col, kr, kc)
        key, value = read(k, k_at, k_exists, D, BLOCK_D), read(v, k_at, k_exists, D, BLOCK_D)
        q_at = token(row, col, b, H, W)
        dout = read(grad + h * D, q_at * so, q_exists, D, BLOCK_D)
        mixed = read(out + h * D, q_at * so, q_exists, D, BLOCK_D)
        q_lse = tl.load(lse + h.to(tl.int64) * batch * H * W + q_at, mask=q_exists, other=float("inf"))
        logits = dot(query, tl.trans(key)) * (scale * LOG2E)
        if HAS_BIAS:
            logits += added
        weight = weights_of(tl.where(k_exists[None, :], logits, float("-inf")), q_lse[:, None])
        delta = tl.sum(dout.to(tl.float32) * mixed.to(tl.float32), 1)
        dlogits = logit_gradient(weight, dout, value, delta[:, None])
        k_to = token(k_row, k_col, b, KH, KW) * so
        write(dv + h * D, k_to, k_exists, dot(tl.trans(weight.to(dout.dtype)), dout), D, BLOCK_D)
        rounded = dlogits.to(query.dtype)
        write(dk + h * D, k_to, k_exists, dot(tl.trans(rounded), query) * scale, D, BLOCK_D)
        write(dq + h * D, q_at * so, q_exists, dot(rounded, key) * scale, D, BLOCK_D)
        if WANT_BIAS:
            dbias += dlogits
    if WANT_BIAS:
        pair = ((split.to(tl.int64) * heads + h) * QUERIES + slot[:, None]) * KEYS + k_slot[None, :]
        tl.store(partial + pair, dbias, mask=(slot < QUERIES)[:, None] & (k_slot < KEYS)[None, :])
