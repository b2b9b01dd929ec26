"""What every Triton kernel of neighbourhood attention is made of: where the slots of a tile lie, and their logits.

Arguments that the kernels share:
    rows, cols: the tables of tiles of the axes, (tiles, parts, 3) as `tiles.Tiles` has them; down, across: their tiles.
    row_spans, col_spans: the first and last key of every query along an axis.
    H, W: the grid of the queries; KH, KW: that of the keys. batch, heads: how many there are.
    sb, sr, sc, sh: strides of q over image, row, column and head; kb, kr, kc, kh: those of k and v.
    so: from a token to the next of out, grad and the gradients, which are contiguous but for a slice of the heads.
    QUERIES, KEYS: slots of a whole tile; QUERY_COLS, KEY_COLS: slots in one row of it.
    ROW_PARTS, COL_PARTS: parts of a tile. ROWS_EXACT, COLS_EXACT: nothing is to be masked along the axis.
    RADIUS: only nearer keys are read; 0 for all.
    TABLE: entries in a row of the bias table; CENTRE: the entry of a query that reads its own position.
    D: channels, in a tile of BLOCK_D. BLOCK_Q, BLOCK_K: slots that are treated at once.
    steps: of the inner loop, in each part. It is no constant, because a loop of one step must stay a loop for Triton's
        passes: 3.9 computes the softmax of a straight line in two layouts, with twice the registers and instructions.
        The loops run at most so many steps as there are constant ones, so that the last compiler unrolls one step.
    STAGES: how many tiles of the inner loop are under way at a time.

Logits are kept in units of log 2, so that an exponential is one instruction; lse is a natural logarithm.
"""

import triton
import triton.language as tl

from kernels.backends import interpreting

INTERPRETED = tl.constexpr(interpreting())
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate(program, heads, down, across, CHUNKS: tl.constexpr):
    """Image, head, row tile, column tile and chunk of a program. Heads are neighbours here as they are in memory."""
    h = program % heads
    chunk = program // heads % CHUNKS
    tile = program // heads // CHUNKS
    return (tile // across // down).to(tl.int64), h, tile // across % down, tile % across, chunk


@triton.jit
def tile_of(table, tile, part, PARTS: tl.constexpr):
    """The positions of query slot 0 and key slot 0 of a part of a tile, and the step from a slot to the next."""
    at = table + (tile * PARTS + part) * 3
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def parts_of(table, tile, size, PARTS: tl.constexpr, SIDE: tl.constexpr):
    """How many parts of a tile lie on the map: of its keys (SIDE 1) or of its queries (SIDE 0). They come first."""
    if PARTS == 1:
        count = 1
    else:
        start = tl.load(table + (tile * PARTS + tl.arange(0, PARTS)) * 3 + SIDE)
        count = tl.sum((start < size).to(tl.int32), 0)
    return count


@triton.jit
def place(row_first, row_step, col_first, col_step, slot, H, W, SLOTS: tl.constexpr, COLS: tl.constexpr):
    """Row, column and existence of slots."""
    row, col = row_first + row_step * (slot // COLS), col_first + col_step * (slot % COLS)
    return row, col, (slot < SLOTS) & (row >= 0) & (row < H) & (col >= 0) & (col < W)


@triton.jit
def query_entry(
    row_query, row_key, row_step, col_query, col_key, col_step, slot, exists,
    QUERY_COLS: tl.constexpr, TABLE: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """The share of query slots in the index into the bias table. A missing one gets the last entry: any key fits it."""
    down = slot // QUERY_COLS + (row_query - row_key) // row_step
    right = slot % QUERY_COLS + (col_query - col_key) // col_step
    return tl.where(exists, CENTRE + down * TABLE + right, 2 * CENTRE)


@triton.jit
def key_entry(slot, KEY_COLS: tl.constexpr, TABLE: tl.constexpr):
    """The share of key slots in the index into the bias table, to be subtracted."""
    return slot // KEY_COLS * TABLE + slot % KEY_COLS


@triton.jit
def spans_of(spans, at, exists, EXACT: tl.constexpr):
    """First and last key of queries along an axis; nothing for a query that does not exist."""
    if EXACT:
        first, last = at, at
    else:
        first = tl.load(spans + 2 * at, mask=exists, other=1)
        last = tl.load(spans + 2 * at + 1, mask=exists, other=0)
    return first, last


@triton.jit
def allowed(
    row, col, row_first, row_last, col_first, col_last, k_row, k_col, k_exists,
    ROWS_EXACT: tl.constexpr, COLS_EXACT: tl.constexpr, RADIUS: tl.constexpr,
):  # fmt: skip
    """Which queries read which keys, from vectors along one axis of queries (the first six) and of keys."""
    reads = k_exists
    if not ROWS_EXACT:
        reads = reads & (row_first <= k_row) & (k_row <= row_last)
    if not COLS_EXACT:
        reads = reads & (col_first <= k_col) & (k_col <= col_last)
    if RADIUS > 0:
        reads = reads & ((row - k_row) * (row - k_row) + (col - k_col) * (col - k_col) < RADIUS * RADIUS)
    return reads


@triton.jit
def read(tokens, at, exists, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile tokens[at[i] : at[i] + D]; 0 where a token does not exist."""
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)[None, :]
    return tl.load(tokens + at[:, None] + channel[None, :], mask=mask, other=0)


@triton.jit
def write(tokens, at, exists, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The transpose of `read`."""
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None]
    if D != BLOCK_D:
        mask = mask & (channel < D)[None, :]
    tl.store(tokens + at[:, None] + channel[None, :], tile.to(tokens.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b):
    """Matrix product with a float32 sum, and without TensorFloat-32."""
    if INTERPRETED:  # the interpreter keeps bfloat16 as integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def strided(row, col, sr, sc):
    """Offset of tokens in q, or in k and v, from the head's first."""
    return row.to(tl.int64) * sr + col.to(tl.int64) * sc


@triton.jit
def token(row, col, b, H, W):
    """Number of tokens in a contiguous map, image by image."""
    return (b * H + row) * W + col


@triton.jit
def logits_of(a, b, bias, reads, entry, scale, HAS_BIAS: tl.constexpr):
    """(scale a b^T + bias) / log 2, and -inf where a key is not read; queries a and keys b, or the other way round."""
    logits = dot(a, tl.trans(b)) * (scale * LOG2E)
    if HAS_BIAS:
        logits += tl.load(bias + entry, mask=reads, other=0).to(tl.float32) * LOG2E
    return tl.where(reads, logits, float("-inf"))
