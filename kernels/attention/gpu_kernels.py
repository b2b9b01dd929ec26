"""The Triton kernels of neighbourhood attention: forward, and one kernel for each gradient (q; k and v; bias).

A program treats a tile of query slots (or key slots) of one cell and one head, and loops over the tiles of the other
side. Slots are numbered in whole cells and a slot outside the map is masked, so a pair of slots has the same bias entry
in every cell. Tensors are float32, float16 or bfloat16; sums are float32; offsets into tensors are 64-bit. No kernel
uses atomics, so results are the same in every run.

Arguments that the kernels share:
    rows, cols: the cell tables of the pattern's axes; down, across: how many cells they have.
    sb, sr, sc, sh: strides of q, k and v over image, row, column and head; out, grad and the gradients are contiguous.
    QUERIES, KEYS: slots of a whole cell; QUERY_COLS, KEY_COLS: slots in one row of it.
    TABLE: entries in a row of the bias table; CENTRE: the entry of a query that reads its own position.
    D: channels, in a tile of BLOCK_D. STAGES: how many tiles of the inner loop are under way at a time.
"""

import triton
import triton.language as tl

from kernels.backends import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def _locate(program, heads, down, across, TILES: tl.constexpr):
    """Image, head, row cell, column cell and tile of a program. Heads are neighbours here as they are in memory."""
    h = program % heads
    tile = program // heads % TILES
    cell = program // heads // TILES
    return cell // across // down, h, cell // across % down, cell % across, tile


@triton.jit
def _cell(table, cell):
    """First query, first key and step of a cell."""
    return tl.load(table + cell * 3), tl.load(table + cell * 3 + 1), tl.load(table + cell * 3 + 2)


@triton.jit
def _queries(
    rows, cols, row_cell, col_cell, slot, H, W,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """Row, column and existence of query slots, and their share of the index into the bias table."""
    row_query, row_key, row_step = _cell(rows, row_cell)
    col_query, col_key, col_step = _cell(cols, col_cell)
    down, right = slot // QUERY_COLS, slot % QUERY_COLS
    row, col = row_query + row_step * down, col_query + col_step * right
    exists = (slot < QUERIES) & (row >= 0) & (row < H) & (col >= 0) & (col < W)
    relative = CENTRE + (down + (row_query - row_key) // row_step) * TABLE + right + (col_query - col_key) // col_step
    return row, col, exists, relative


@triton.jit
def _keys(rows, cols, row_cell, col_cell, slot, H, W, KEYS: tl.constexpr, KEY_COLS: tl.constexpr, TABLE: tl.constexpr):
    """Row, column and existence of key slots, and their share of the index into the bias table."""
    _, row_key, row_step = _cell(rows, row_cell)
    _, col_key, col_step = _cell(cols, col_cell)
    down, right = slot // KEY_COLS, slot % KEY_COLS
    row, col = row_key + row_step * down, col_key + col_step * right
    exists = (slot < KEYS) & (row >= 0) & (row < H) & (col >= 0) & (col < W)
    return row, col, exists, down * TABLE + right


@triton.jit
def _read(tokens, at, exists, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile tokens[at[i] : at[i] + D]; 0 where a token does not exist."""
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)[None, :]
    return tl.load(tokens + at[:, None] + channel[None, :], mask=mask, other=0)


@triton.jit
def _write(tokens, at, exists, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The transpose of `_read`."""
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)[None, :]
    tl.store(tokens + at[:, None] + channel[None, :], tile.to(tokens.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b):
    """Matrix product with a float32 sum, and without TensorFloat-32."""
    if INTERPRETED:  # the interpreter keeps bfloat16 as integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _strided(row, col, sr, sc):
    """Offset of tokens in q, k and v, from the head's first."""
    return row.to(tl.int64) * sr + col.to(tl.int64) * sc


@triton.jit
def _contiguous(row, col, b, h, H, W, heads, D: tl.constexpr):
    """Offset of tokens in out, grad and the gradients."""
    return (((b.to(tl.int64) * H + row) * W + col) * heads + h) * D


@triton.jit
def _logits(q, k, bias, q_exists, k_exists, q_relative, k_relative, scale, HAS_BIAS: tl.constexpr):
    """scale * q k^T + bias, and -inf where the query or the key does not exist: (queries, keys)."""
    both = q_exists[:, None] & k_exists[None, :]
    logits = _dot(q, tl.trans(k)) * scale
    if HAS_BIAS:
        logits += tl.load(bias + q_relative[:, None] - k_relative[None, :], mask=both, other=0).to(tl.float32)
    return tl.where(both, logits, float("-inf"))


@triton.jit
def forward_kernel(
    q, k, v, bias, out, lse, rows, cols, scale, H, W, heads, down, across, sb, sr, sc, sh,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    TABLE: tl.constexpr, CENTRE: tl.constexpr, TABLE_SIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out (B, H, W, heads, D) and lse (B, heads, H, W); a program per (image, cell, tile of queries, head)."""
    b, h, row_cell, col_cell, tile = _locate(tl.program_id(0), heads, down, across, (QUERIES + BLOCK_Q - 1) // BLOCK_Q)
    slot = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row, col, q_exists, q_relative = _queries(
        rows, cols, row_cell, col_cell, slot, H, W, QUERIES, QUERY_COLS, TABLE, CENTRE
    )
    head = b.to(tl.int64) * sb + h.to(tl.int64) * sh
    query = _read(q + head, _strided(row, col, sr, sc), q_exists, D, BLOCK_D)
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in tl.range(0, KEYS, BLOCK_K, num_stages=STAGES):
        k_row, k_col, k_exists, k_relative = _keys(
            rows, cols, row_cell, col_cell, first + tl.arange(0, BLOCK_K), H, W, KEYS, KEY_COLS, TABLE
        )
        at = _strided(k_row, k_col, sr, sc)
        key = _read(k + head, at, k_exists, D, BLOCK_D)
        value = _read(v + head, at, k_exists, D, BLOCK_D)
        logits = _logits(query, key, bias + h * TABLE_SIZE, q_exists, k_exists, q_relative, k_relative, scale, HAS_BIAS)
        grown = tl.maximum(largest, tl.max(logits, 1))
        base = tl.where(grown == float("-inf"), 0.0, grown)  # no key yet: keep -inf - -inf out
        weight = tl.exp(logits - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weight, 1)
        mixed = mixed * shrink[:, None] + _dot(weight.to(value.dtype), value)
        largest = grown
    total = tl.where(q_exists, total, 1.0)
    _write(out, _contiguous(row, col, b, h, H, W, heads, D), q_exists, mixed / total[:, None], D, BLOCK_D)
    position = ((b.to(tl.int64) * heads + h) * H + row) * W + col
    tl.store(lse + position, largest + tl.log(total), mask=q_exists)


@triton.jit
def _logit_gradient(logits, value, lse, grad, out):
    """Probabilities and the gradient of the logits, both (queries, keys), from a tile of queries and one of keys."""
    weight = tl.exp(logits - lse[:, None])
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    dweight = _dot(grad, tl.trans(value))
    return weight, weight * (dweight - delta[:, None])


@triton.jit
def query_kernel(
    q, k, v, bias, out, lse, grad, dq, rows, cols, scale, H, W, heads, down, across, sb, sr, sc, sh,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    TABLE: tl.constexpr, CENTRE: tl.constexpr, TABLE_SIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq (B, H, W, heads, D); a program per (image, cell, tile of queries, head)."""
    b, h, row_cell, col_cell, tile = _locate(tl.program_id(0), heads, down, across, (QUERIES + BLOCK_Q - 1) // BLOCK_Q)
    slot = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row, col, q_exists, q_relative = _queries(
        rows, cols, row_cell, col_cell, slot, H, W, QUERIES, QUERY_COLS, TABLE, CENTRE
    )
    head = b.to(tl.int64) * sb + h.to(tl.int64) * sh
    query = _read(q + head, _strided(row, col, sr, sc), q_exists, D, BLOCK_D)
    at = _contiguous(row, col, b, h, H, W, heads, D)
    dout, mixed = _read(grad, at, q_exists, D, BLOCK_D), _read(out, at, q_exists, D, BLOCK_D)
    total = tl.load(lse + ((b.to(tl.int64) * heads + h) * H + row) * W + col, mask=q_exists, other=0)
    dquery = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in tl.range(0, KEYS, BLOCK_K, num_stages=STAGES):
        k_row, k_col, k_exists, k_relative = _keys(
            rows, cols, row_cell, col_cell, first + tl.arange(0, BLOCK_K), H, W, KEYS, KEY_COLS, TABLE
        )
        k_at = _strided(k_row, k_col, sr, sc)
        key = _read(k + head, k_at, k_exists, D, BLOCK_D)
        value = _read(v + head, k_at, k_exists, D, BLOCK_D)
        logits = _logits(query, key, bias + h * TABLE_SIZE, q_exists, k_exists, q_relative, k_relative, scale, HAS_BIAS)
        _, dlogits = _logit_gradient(logits, value, total, dout, mixed)
        dquery += _dot(dlogits.to(key.dtype), key)
    _write(dq, at, q_exists, dquery * scale, D, BLOCK_D)


@triton.jit
def key_value_kernel(
    q, k, v, bias, out, lse, grad, dk, dv, rows, cols, scale, H, W, heads, down, across, sb, sr, sc, sh,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    TABLE: tl.constexpr, CENTRE: tl.constexpr, TABLE_SIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    WANT_K: tl.constexpr,
):  # fmt: skip
    """dv and, if WANT_K, dk (B, H, W, heads, D); a program per (image, cell, tile of keys, head).

    The cells' keys do not overlap, so a tile of keys owns its rows of dk and dv.
    """
    b, h, row_cell, col_cell, tile = _locate(tl.program_id(0), heads, down, across, (KEYS + BLOCK_K - 1) // BLOCK_K)
    slot = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    k_row, k_col, k_exists, k_relative = _keys(rows, cols, row_cell, col_cell, slot, H, W, KEYS, KEY_COLS, TABLE)
    head = b.to(tl.int64) * sb + h.to(tl.int64) * sh
    key = _read(k + head, _strided(k_row, k_col, sr, sc), k_exists, D, BLOCK_D)
    value = _read(v + head, _strided(k_row, k_col, sr, sc), k_exists, D, BLOCK_D)
    dkey, dvalue = tl.zeros((BLOCK_K, BLOCK_D), tl.float32), tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in tl.range(0, QUERIES, BLOCK_Q, num_stages=STAGES):
        row, col, q_exists, q_relative = _queries(
            rows, cols, row_cell, col_cell, first + tl.arange(0, BLOCK_Q), H, W, QUERIES, QUERY_COLS, TABLE, CENTRE
        )
        query = _read(q + head, _strided(row, col, sr, sc), q_exists, D, BLOCK_D)
        at = _contiguous(row, col, b, h, H, W, heads, D)
        dout = _read(grad, at, q_exists, D, BLOCK_D)
        total = tl.load(lse + ((b.to(tl.int64) * heads + h) * H + row) * W + col, mask=q_exists, other=0)
        logits = _logits(query, key, bias + h * TABLE_SIZE, q_exists, k_exists, q_relative, k_relative, scale, HAS_BIAS)
        if WANT_K:
            mixed = _read(out, at, q_exists, D, BLOCK_D)
            weight, dlogits = _logit_gradient(logits, value, total, dout, mixed)
            dkey += _dot(tl.trans(dlogits.to(query.dtype)), query)
        else:
            weight = tl.exp(logits - total[:, None])
        dvalue += _dot(tl.trans(weight.to(dout.dtype)), dout)
    at = _contiguous(k_row, k_col, b, h, H, W, heads, D)
    _write(dv, at, k_exists, dvalue, D, BLOCK_D)
    if WANT_K:
        _write(dk, at, k_exists, dkey * scale, D, BLOCK_D)


@triton.jit
def bias_kernel(
    q, k, v, bias, out, lse, grad, partial, rows, cols, scale, H, W, heads, down, across, sb, sr, sc, sh, items, share,
    QUERIES: tl.constexpr, QUERY_COLS: tl.constexpr, KEYS: tl.constexpr, KEY_COLS: tl.constexpr,
    TABLE: tl.constexpr, CENTRE: tl.constexpr, TABLE_SIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """partial (groups, heads, QUERIES, KEYS): the logits' gradient summed over the group's `share` of (image, cell).

    A program per (group, head, tile of queries, tile of keys).
    """
    k_tiles: tl.constexpr = (KEYS + BLOCK_K - 1) // BLOCK_K
    q_tiles: tl.constexpr = (QUERIES + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    h = program % heads
    k_slot = program // heads % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    slot = program // heads // k_tiles % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    group = program // heads // k_tiles // q_tiles
    dbias = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
    for item in tl.range(group * share, tl.minimum((group + 1) * share, items), num_stages=STAGES):
        b, row_cell, col_cell = item // across // down, item // across % down, item % across
        row, col, q_exists, q_relative = _queries(
            rows, cols, row_cell, col_cell, slot, H, W, QUERIES, QUERY_COLS, TABLE, CENTRE
        )
        k_row, k_col, k_exists, k_relative = _keys(rows, cols, row_cell, col_cell, k_slot, H, W, KEYS, KEY_COLS, TABLE)
        head = b.to(tl.int64) * sb + h.to(tl.int64) * sh
        query = _read(q + head, _strided(row, col, sr, sc), q_exists, D, BLOCK_D)
        key = _read(k + head, _strided(k_row, k_col, sr, sc), k_exists, D, BLOCK_D)
        value = _read(v + head, _strided(k_row, k_col, sr, sc), k_exists, D, BLOCK_D)
        at = _contiguous(row, col, b, h, H, W, heads, D)
        dout, mixed = _read(grad, at, q_exists, D, BLOCK_D), _read(out, at, q_exists, D, BLOCK_D)
        total = tl.load(lse + ((b.to(tl.int64) * heads + h) * H + row) * W + col, mask=q_exists, other=0)
        logits = _logits(query, key, bias + h * TABLE_SIZE, q_exists, k_exists, q_relative, k_relative, scale, HAS_BIAS)
        _, dlogits = _logit_gradient(logits, value, total, dout, mixed)
        dbias += dlogits
    pair = ((group.to(tl.int64) * heads + h) * QUERIES + slot[:, None]) * KEYS + k_slot[None, :]
    tl.store(partial + pair, dbias, mask=(slot < QUERIES)[:, None] & (k_slot < KEYS)[None, :])
