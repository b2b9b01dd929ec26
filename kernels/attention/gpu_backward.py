"""The backward kernels of neighbourhood attention for any pattern: one for each gradient (q; k and v; the bias).

With w the probabilities and delta = out . dout of a query, the gradient of the logits is w (dout . v - delta).
gpu_tiles.py explains the arguments, and gpu_window.py does all of this at once where windows share no keys.
"""

import triton
import triton.language as tl

from .gpu_tiles import (
    LOG2E,
    allowed,
    dot,
    key_entry,
    locate,
    logits_of,
    parts_of,
    place,
    query_entry,
    read,
    spans_of,
    strided,
    tile_of,
    token,
    write,
)


@triton.jit
def delta_kernel(
    out, grad, delta, tokens, heads, so, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr
):  # fmt: skip
    """delta (heads, B, H, W), the sum over channels of out dout; a program per (BLOCK_Q tokens, head)."""
    h = (tl.program_id(0) % heads).to(tl.int64)
    at = (tl.program_id(0) // heads).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mixed = read(out + h * D, at * so, at < tokens, D, BLOCK_D).to(tl.float32)
    dout = read(grad + h * D, at * so, at < tokens, D, BLOCK_D).to(tl.float32)
    tl.store(delta + h * tokens + at, tl.sum(mixed * dout, 1), mask=at < tokens)


@triton.jit
def weights_of(logits, lse):
    """The probabilities from logits in units of log 2. A missing query has lse inf, and so no weights."""
    return tl.exp2(logits - lse * LOG2E)


@triton.jit
def logit_gradient(weight, a, b, delta):
    """The gradient of the logits: a and b are dout and v, or v and dout where keys come first."""
    return weight * (dot(a, tl.trans(b)) - delta)


@triton.jit(do_not_specialize=["steps"])
def query_kernel(
    q, k, v, bias, grad, lse, delta, dq, rows, cols, row_spans, col_spans, scale, H, W, KH, KW, batch, heads, down,
    across, steps, sb, sr, sc, sh, kb, kr, kc, kh, so,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    ROW_PARTS: tl.constexpr, COL_PARTS: tl.constexpr, ROWS_EXACT: tl.constexpr, COLS_EXACT: tl.constexpr,
    RADIUS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq (B, H, W, heads, D); a program per (image, tile, chunk of its queries, head)."""
    TILES: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    b, h, row_tile, col_tile, chunk = locate(tl.program_id(0), heads, down, across, (QUERIES + BLOCK_Q - 1) // BLOCK_Q)
    row_query, row_key, row_step = tile_of(rows, row_tile, 0, ROW_PARTS)
    col_query, col_key, col_step = tile_of(cols, col_tile, 0, COL_PARTS)
    slot = chunk * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row, col, q_exists = place(row_query, row_step, col_query, col_step, slot, H, W, QUERIES, QUERY_COLS)
    row_first, row_last = spans_of(row_spans, row, q_exists, ROWS_EXACT)
    col_first, col_last = spans_of(col_spans, col, q_exists, COLS_EXACT)
    q_entry = query_entry(
        row_query, row_key, row_step, col_query, col_key, col_step, slot, q_exists, QUERY_COLS, TABLE, CENTRE
    )
    query = read(q + b * sb + h.to(tl.int64) * sh, strided(row, col, sr, sc), q_exists, D, BLOCK_D)
    q_at = token(row, col, b, H, W)
    dout = read(grad + h * D, q_at * so, q_exists, D, BLOCK_D)
    at = h.to(tl.int64) * batch * H * W + q_at
    q_lse = tl.load(lse + at, mask=q_exists, other=float("inf"))
    q_delta = tl.load(delta + at, mask=q_exists, other=0)
    head = b * kb + h.to(tl.int64) * kh
    dquery = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    col_parts = parts_of(cols, col_tile, KW, COL_PARTS, 1)
    count = parts_of(rows, row_tile, KH, ROW_PARTS, 1) * col_parts * tl.minimum(steps, TILES)
    for step in tl.range(0, count, num_stages=STAGES):
        k_slot = step % TILES * BLOCK_K + tl.arange(0, BLOCK_K)
        if ROW_PARTS * COL_PARTS > 1:
            part = step // TILES
            row_query, row_key, row_step = tile_of(rows, row_tile, part // col_parts, ROW_PARTS)
            col_query, col_key, col_step = tile_of(cols, col_tile, part % col_parts, COL_PARTS)
        k_row, k_col, k_exists = place(row_key, row_step, col_key, col_step, k_slot, KH, KW, KEYS, KEY_COLS)
        k_at = head + strided(k_row, k_col, kr, kc)
        key, value = read(k, k_at, k_exists, D, BLOCK_D), read(v, k_at, k_exists, D, BLOCK_D)
        reads = allowed(
            row[:, None],
            col[:, None],
            row_first[:, None],
            row_last[:, None],
            col_first[:, None],
            col_last[:, None],
            k_row[None, :],
            k_col[None, :],
            k_exists[None, :],
            ROWS_EXACT,
            COLS_EXACT,
            RADIUS,
        )
        k_entry = key_entry(k_slot, KEY_COLS, TABLE)
        entry = q_entry[:, None] - k_entry[None, :]
        logits = logits_of(query, key, bias + h * (2 * CENTRE + 1), reads, entry, scale, HAS_BIAS)
        dlogits = logit_gradient(weights_of(logits, q_lse[:, None]), dout, value, q_delta[:, None])
        dquery += dot(dlogits.to(key.dtype), key)
    write(dq + h * D, q_at * so, q_exists, dquery * scale, D, BLOCK_D)


@triton.jit(do_not_specialize=["steps"])
def key_value_kernel(
    q, k, v, bias, grad, lse, delta, dk, dv, rows, cols, row_spans, col_spans, scale, H, W, KH, KW, batch, heads, down,
    across, steps, sb, sr, sc, sh, kb, kr, kc, kh, so,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    ROW_PARTS: tl.constexpr, COL_PARTS: tl.constexpr, ROWS_EXACT: tl.constexpr, COLS_EXACT: tl.constexpr,
    RADIUS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    WANT_K: tl.constexpr, WANT_V: tl.constexpr,
):  # fmt: skip
    """dk if WANT_K and dv if WANT_V, (B, KH, KW, heads, D); a program per (image, tile, chunk of its keys, head).

    Here a tile is one of keys with all their readers, so a program owns its rows of dk and dv. Logits are (keys,
    queries), so that they are multiplied as they are.
    """
    TILES: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    b, h, row_tile, col_tile, chunk = locate(tl.program_id(0), heads, down, across, (KEYS + BLOCK_K - 1) // BLOCK_K)
    row_query, row_key, row_step = tile_of(rows, row_tile, 0, ROW_PARTS)
    col_query, col_key, col_step = tile_of(cols, col_tile, 0, COL_PARTS)
    k_slot = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    k_row, k_col, k_exists = place(row_key, row_step, col_key, col_step, k_slot, KH, KW, KEYS, KEY_COLS)
    k_entry = key_entry(k_slot, KEY_COLS, TABLE)
    k_at = b * kb + h.to(tl.int64) * kh + strided(k_row, k_col, kr, kc)
    key, value = read(k, k_at, k_exists, D, BLOCK_D), read(v, k_at, k_exists, D, BLOCK_D)
    dkey, dvalue = tl.zeros((BLOCK_K, BLOCK_D), tl.float32), tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    col_parts = parts_of(cols, col_tile, W, COL_PARTS, 0)
    count = parts_of(rows, row_tile, H, ROW_PARTS, 0) * col_parts * tl.minimum(steps, TILES)
    for step in tl.range(0, count, num_stages=STAGES):
        slot = step % TILES * BLOCK_Q + tl.arange(0, BLOCK_Q)
        if ROW_PARTS * COL_PARTS > 1:
            part = step // TILES
            row_query, row_key, row_step = tile_of(rows, row_tile, part // col_parts, ROW_PARTS)
            col_query, col_key, col_step = tile_of(cols, col_tile, part % col_parts, COL_PARTS)
        row, col, q_exists = place(row_query, row_step, col_query, col_step, slot, H, W, QUERIES, QUERY_COLS)
        row_first, row_last = spans_of(row_spans, row, q_exists, ROWS_EXACT)
        col_first, col_last = spans_of(col_spans, col, q_exists, COLS_EXACT)
        q_entry = query_entry(
            row_query, row_key, row_step, col_query, col_key, col_step, slot, q_exists, QUERY_COLS, TABLE, CENTRE
        )
        query = read(q + b * sb + h.to(tl.int64) * sh, strided(row, col, sr, sc), q_exists, D, BLOCK_D)
        q_at = token(row, col, b, H, W)
        dout = read(grad + h * D, q_at * so, q_exists, D, BLOCK_D)
        at = h.to(tl.int64) * batch * H * W + q_at
        q_lse = tl.load(lse + at, mask=q_exists, other=float("inf"))
        reads = allowed(
            row[None, :],
            col[None, :],
            row_first[None, :],
            row_last[None, :],
            col_first[None, :],
            col_last[None, :],
            k_row[:, None],
            k_col[:, None],
            k_exists[:, None],
            ROWS_EXACT,
            COLS_EXACT,
            RADIUS,
        )
        entry = q_entry[None, :] - k_entry[:, None]
        logits = logits_of(key, query, bias + h * (2 * CENTRE + 1), reads, entry, scale, HAS_BIAS)
        weight = weights_of(logits, q_lse[None, :])
        if WANT_V:
            dvalue += dot(weight.to(dout.dtype), dout)
        if WANT_K:
            q_delta = tl.load(delta + at, mask=q_exists, other=0)
            dlogits = logit_gradient(weight, value, dout, q_delta[None, :])
            dkey += dot(dlogits.to(query.dtype), query)
    k_to = token(k_row, k_col, b, KH, KW) * so
    if WANT_V:
        write(dv + h * D, k_to, k_exists, dvalue, D, BLOCK_D)
    if WANT_K:
        write(dk + h * D, k_to, k_exists, dkey * scale, D, BLOCK_D)


@triton.jit
def bias_kernel(
    q, k, v, bias, grad, lse, delta, partial, groups, rows, cols, row_spans, col_spans, scale, H, W, KH, KW, batch,
    heads, splits, sb, sr, sc, sh, kb, kr, kc, kh, so,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    ROW_PARTS: tl.constexpr, COL_PARTS: tl.constexpr, ROWS_EXACT: tl.constexpr, COLS_EXACT: tl.constexpr,
    RADIUS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """partial (groups, splits, heads, QUERIES, KEYS): the logits' gradient summed over a split of a group's tiles.

    A group (first row tile, row tiles, first column tile, column tiles) has tiles whose slots are equally far apart,
    so that a pair of slots is one entry of the bias table. A program per (group, split, head, chunk of queries, chunk
    of keys).
    """
    k_chunks: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    q_chunks: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    h = program % heads
    k_slot = program // heads % k_chunks * BLOCK_K + tl.arange(0, BLOCK_K)
    slot = program // heads // k_chunks % q_chunks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    share = program // heads // k_chunks // q_chunks
    group = groups + share // splits * 4
    row_start, down = tl.load(group), tl.load(group + 1)
    col_start, across = tl.load(group + 2), tl.load(group + 3)
    items = batch * down * across
    count = (items + splits - 1) // splits
    first = share % splits * count
    k_entry = key_entry(k_slot, KEY_COLS, TABLE)
    dbias = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for item in tl.range(first, tl.minimum(first + count, items), num_stages=STAGES):
        b = (item // across // down).to(tl.int64)
        row_query, row_key, row_step = tile_of(rows, row_start + item // across % down, 0, ROW_PARTS)
        col_query, col_key, col_step = tile_of(cols, col_start + item % across, 0, COL_PARTS)
        row, col, q_exists = place(row_query, row_step, col_query, col_step, slot, H, W, QUERIES, QUERY_COLS)
        row_first, row_last = spans_of(row_spans, row, q_exists, ROWS_EXACT)
        col_first, col_last = spans_of(col_spans, col, q_exists, COLS_EXACT)
        q_entry = query_entry(
            row_query, row_key, row_step, col_query, col_key, col_step, slot, q_exists, QUERY_COLS, TABLE, CENTRE
        )
        k_row, k_col, k_exists = place(row_key, row_step, col_key, col_step, k_slot, KH, KW, KEYS, KEY_COLS)
        query = read(q + b * sb + h.to(tl.int64) * sh, strided(row, col, sr, sc), q_exists, D, BLOCK_D)
        k_at = b * kb + h.to(tl.int64) * kh + strided(k_row, k_col, kr, kc)
        key, value = read(k, k_at, k_exists, D, BLOCK_D), read(v, k_at, k_exists, D, BLOCK_D)
        q_at = token(row, col, b, H, W)
        dout = read(grad + h * D, q_at * so, q_exists, D, BLOCK_D)
        at = h.to(tl.int64) * batch * H * W + q_at
        q_lse = tl.load(lse + at, mask=q_exists, other=float("inf"))
        q_delta = tl.load(delta + at, mask=q_exists, other=0)
        reads = allowed(
            row[:, None],
            col[:, None],
            row_first[:, None],
            row_last[:, None],
            col_first[:, None],
            col_last[:, None],
            k_row[None, :],
            k_col[None, :],
            k_exists[None, :],
            ROWS_EXACT,
            COLS_EXACT,
            RADIUS,
        )
        entry = q_entry[:, None] - k_entry[None, :]
        logits = logits_of(query, key, bias + h * (2 * CENTRE + 1), reads, entry, scale, HAS_BIAS)
        dbias += logit_gradient(weights_of(logits, q_lse[:, None]), dout, value, q_delta[:, None])
    pair = ((share.to(tl.int64) * heads + h) * QUERIES + slot[:, None]) * KEYS + k_slot[None, :]
    tl.store(partial + pair, dbias, mask=(slot < QUERIES)[:, None] & (k_slot < KEYS)[None, :])
