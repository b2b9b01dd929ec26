"""The forward kernel of neighbourhood attention in Triton; gpu_tiles.py explains the arguments.

A program treats a chunk of the query slots of one tile and one head, and loops over the tile's keys with an online
softmax. Tensors are float32, float16 or bfloat16; sums are float32; offsets into tensors are 64-bit. No kernel uses
atomics, so results are the same in every run.
"""

import triton
import triton.language as tl

from .gpu_tiles import (
    LN2,
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


@triton.jit(do_not_specialize=["steps"])
def forward_kernel(
    q, k, v, bias, out, lse, rows, cols, row_spans, col_spans, scale, H, W, KH, KW, batch, heads, down, across,
    steps, sb, sr, sc, sh, kb, kr, kc, kh, so,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    ROW_PARTS: tl.constexpr, COL_PARTS: tl.constexpr, ROWS_EXACT: tl.constexpr, COLS_EXACT: tl.constexpr,
    RADIUS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out (B, H, W, heads, D) and lse (heads, B, H, W); a program per (image, tile, chunk of its queries, head)."""
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
    head = b * kb + h.to(tl.int64) * kh
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    col_parts = parts_of(cols, col_tile, KW, COL_PARTS, 1)
    count = parts_of(rows, row_tile, KH, ROW_PARTS, 1) * col_parts * tl.minimum(steps, TILES)
    for step in tl.range(0, count, num_stages=STAGES):
        k_slot = step % TILES * BLOCK_K + tl.arange(0, BLOCK_K)
        if ROW_PARTS * COL_PARTS > 1:
            part = step // TILES
            row_query, row_key, row_step = tile_of(rows, row_tile, part // col_parts, ROW_PARTS)
            col_query, col_key, col_step = tile_of(cols, col_tile, part % col_parts, COL_PARTS)
        k_row, k_col, k_exists = place(row_key, row_step, col_key, col_step, k_slot, KH, KW, KEYS, KEY_COLS)
        at = head + strided(k_row, k_col, kr, kc)
        key, value = read(k, at, k_exists, D, BLOCK_D), read(v, at, k_exists, D, BLOCK_D)
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
        grown = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(grown == float("-inf"), 0.0, grown)  # no key yet: keep -inf - -inf out
        weight = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + dot(weight.to(value.dtype), value)
        largest = grown
    total = tl.where(q_exists, total, 1.0)
    at = token(row, col, b, H, W)
    write(out + h * D, at * so, q_exists, mixed / total[:, None], D, BLOCK_D)
    tl.store(lse + h.to(tl.int64) * batch * H * W + at, (largest + tl.log2(total)) * LN2, mask=q_exists)
