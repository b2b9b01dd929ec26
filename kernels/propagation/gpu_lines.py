"""The line loops of the Triton scan: rows read in place, columns read by tiles, and their adjoints.

Every program handles one (table entry, image, channel) plane and, along the second grid axis, a span of whole chunks.
`lines` and `cross` are the map's sizes along and across the scan; offsets are 64-bit.
"""

import triton
import triton.language as tl

#: Columns per tile of a horizontal scan: one 16-byte load a row in fp32; the other half of its sector is the next tile.
#: Tiles of eight spilled registers on sm_90.
TILE = 4


@triton.jit
def _neighbour(line, n, cross, STEP: tl.constexpr):
    """line[n + STEP], and 0 where that lies outside the line."""
    there = n + STEP
    inside = (there >= 0) & (there < cross)
    return tl.where(inside, tl.gather(line, tl.where(inside, there, n), 0), 0.0)


@triton.jit
def _advance(previous, source, g0, g1, g2, n, cross):
    """One step of the recurrence for a whole line."""
    return source + g0 * _neighbour(previous, n, cross, -1) + g1 * previous + g2 * _neighbour(previous, n, cross, 1)


@triton.jit
def _planes(
    table, batch, channels, lines, cross, X_PER_DIRECTION: tl.constexpr, GATES_SHARED: tl.constexpr,
    LAM_SHARED: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Element offsets of this program's plane in x, gates, lam and h; the stride between gates; and the reversal.

    ALIGNED: `lines` is a multiple of 4, which the compiler must know of a plane's offset for wide loads.
    """
    plane = tl.program_id(0)
    entry = plane // (batch * channels)
    image_channel = (plane % (batch * channels)).to(tl.int64)
    k = tl.load(table + 2 * entry).to(tl.int64)
    reverse = tl.load(table + 2 * entry + 1) != 0
    count = (lines // 4 * 4 if ALIGNED else lines).to(tl.int64) * cross
    own = (k * batch * channels + image_channel) * count
    image = image_channel // channels
    x_at = own if X_PER_DIRECTION else image_channel * count
    lam_at = (k * batch + image) * count if LAM_SHARED else own
    groups = batch if GATES_SHARED else batch * channels
    gates_at = (k * 3 * groups + (image if GATES_SHARED else image_channel)) * count
    return x_at, gates_at, lam_at, own, groups * count, reverse


@triton.jit
def scan_rows(
    x, gates, lam, h, table, batch, channels, lines, cross, chunk, span,
    HAS_LAM: tl.constexpr, X_PER_DIRECTION: tl.constexpr, GATES_SHARED: tl.constexpr, LAM_SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Vertical scan: a line is an image row. The next row is requested before the current one is finished."""
    x_at, gates_at, lam_at, h_at, stride, reverse = _planes(
        table, batch, channels, lines, cross, X_PER_DIRECTION, GATES_SHARED, LAM_SHARED, False
    )
    n = tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, lines)
    step = tl.where(reverse, -cross, cross)
    at = tl.where(reverse, lines - 1 - begin, begin).to(tl.int64) * cross + n
    here = n < cross
    source = tl.load(x + x_at + at, mask=here, other=0.0).to(tl.float32)
    if HAS_LAM:
        source *= tl.load(lam + lam_at + at, mask=here, other=0.0).to(tl.float32)
    g0 = tl.load(gates + gates_at + at, mask=here, other=0.0).to(tl.float32)
    g1 = tl.load(gates + gates_at + stride + at, mask=here, other=0.0).to(tl.float32)
    g2 = tl.load(gates + gates_at + 2 * stride + at, mask=here, other=0.0).to(tl.float32)
    previous = tl.zeros((BLOCK,), tl.float32)
    for t in range(begin, end):
        following = at + step
        more = n < tl.where(t + 1 < end, cross, 0)
        next_source = tl.load(x + x_at + following, mask=more, other=0.0).to(tl.float32)
        if HAS_LAM:
            next_source *= tl.load(lam + lam_at + following, mask=more, other=0.0).to(tl.float32)
        next0 = tl.load(gates + gates_at + following, mask=more, other=0.0).to(tl.float32)
        next1 = tl.load(gates + gates_at + stride + following, mask=more, other=0.0).to(tl.float32)
        next2 = tl.load(gates + gates_at + 2 * stride + following, mask=more, other=0.0).to(tl.float32)
        previous = tl.where(t % chunk == 0, source, _advance(previous, source, g0, g1, g2, n, cross))
        tl.store(h + h_at + at, previous.to(h.dtype.element_ty), mask=here)
        at, source, g0, g1, g2 = following, next_source, next0, next1, next2


@triton.jit
def adjoint_rows(
    grad, gates, e, table, batch, channels, lines, cross, chunk, span,
    GATES_SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """E of a vertical scan, last row first; a0, a1, a2 are the gates of the following row times its E."""
    _, gates_at, _, own, stride, reverse = _planes(
        table, batch, channels, lines, cross, True, GATES_SHARED, False, False
    )  # fmt: skip
    n = tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, lines)
    here = n < cross
    sent = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, end - begin):
        t = end - 1 - i
        at = tl.where(reverse, lines - 1 - t, t).to(tl.int64) * cross + n
        value = tl.load(grad + own + at, mask=here, other=0.0).to(tl.float32)
        g0 = tl.load(gates + gates_at + at, mask=here, other=0.0).to(tl.float32)
        g1 = tl.load(gates + gates_at + stride + at, mask=here, other=0.0).to(tl.float32)
        g2 = tl.load(gates + gates_at + 2 * stride + at, mask=here, other=0.0).to(tl.float32)
        value = tl.where((t + 1) % chunk == 0, value, value + sent)
        tl.store(e + own + at, value, mask=here)
        sent = _send(value, g0, g1, g2, n, cross)


@triton.jit
def _send(value, g0, g1, g2, n, cross):
    """What a line with this E sends to the line before it."""
    return _neighbour(g0 * value, n, cross, 1) + g1 * value + _neighbour(g2 * value, n, cross, -1)


@triton.jit
def _apart(tile, BLOCK: tl.constexpr):
    """The four columns of a (BLOCK, 4) tile."""
    even, odd = tl.split(tl.reshape(tile, (BLOCK, 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def _together(c0, c1, c2, c3, BLOCK: tl.constexpr):
    """The inverse of `_apart`."""
    return tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (BLOCK, 4))


@triton.jit
def _tile(begin, end, width, reverse, n, cross, ALIGNED: tl.constexpr):
    """Offsets and mask of the (BLOCK, 4) tile that holds lines begin .. begin + 3, columns ascending in memory."""
    first = tl.where(reverse, width - 4 - begin, begin)
    inside = (n < cross)[:, None]
    if ALIGNED:  # rows start on whole tiles, and no tile is cut: a mask within a row would split its load
        width = width // 4 * 4
        first = tl.multiple_of(first, 4)
    col = first + tl.arange(0, 4)
    at = n.to(tl.int64)[:, None] * width + col[None, :]
    if not ALIGNED:
        t = tl.where(reverse, width - 1 - col, col)
        inside = inside & ((t >= begin) & (t < end))[None, :]
    return at, tl.broadcast_to(inside, at.shape)


@triton.jit
def scan_columns(
    x, gates, lam, h, table, batch, channels, lines, cross, chunk, span,
    HAS_LAM: tl.constexpr, X_PER_DIRECTION: tl.constexpr, GATES_SHARED: tl.constexpr, LAM_SHARED: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Horizontal scan: a line is an image column, read and written in tiles of four."""
    x_at, gates_at, lam_at, h_at, stride, reverse = _planes(
        table, batch, channels, lines, cross, X_PER_DIRECTION, GATES_SHARED, LAM_SHARED, ALIGNED
    )
    n = tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, lines)
    previous = tl.zeros((BLOCK,), tl.float32)
    for t in range(begin, end, 4):
        at, here = _tile(t, end, lines, reverse, n, cross, ALIGNED)
        source = tl.load(x + x_at + at, mask=here, other=0.0).to(tl.float32)
        if HAS_LAM:
            source *= tl.load(lam + lam_at + at, mask=here, other=0.0).to(tl.float32)
        s = _apart(source, BLOCK)
        g0 = _apart(tl.load(gates + gates_at + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        g1 = _apart(tl.load(gates + gates_at + stride + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        g2 = _apart(tl.load(gates + gates_at + 2 * stride + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        h0 = _column_step(0, t, previous, s, g0, g1, g2, n, cross, chunk, reverse)
        h1 = _column_step(1, t, h0, s, g0, g1, g2, n, cross, chunk, reverse)
        h2 = _column_step(2, t, h1, s, g0, g1, g2, n, cross, chunk, reverse)
        previous = _column_step(3, t, h2, s, g0, g1, g2, n, cross, chunk, reverse)
        tile = _ordered(h0, h1, h2, previous, reverse, BLOCK)
        tl.store(h + h_at + at, tile.to(h.dtype.element_ty), mask=here)


@triton.jit
def _column_step(J: tl.constexpr, t, previous, s, g0, g1, g2, n, cross, chunk, reverse):
    """Line t + J of the tile; in a reversed scan it is column 3 - J."""
    source = tl.where(reverse, s[3 - J], s[J])
    a = tl.where(reverse, g0[3 - J], g0[J])
    b = tl.where(reverse, g1[3 - J], g1[J])
    c = tl.where(reverse, g2[3 - J], g2[J])
    return tl.where((t + J) % chunk == 0, source, _advance(previous, source, a, b, c, n, cross))


@triton.jit
def _ordered(l0, l1, l2, l3, reverse, BLOCK: tl.constexpr):
    """The tile whose columns are these lines, in memory order."""
    return _together(
        tl.where(reverse, l3, l0),
        tl.where(reverse, l2, l1),
        tl.where(reverse, l1, l2),
        tl.where(reverse, l0, l3),
        BLOCK,
    )


@triton.jit
def adjoint_columns(
    grad, gates, e, table, batch, channels, lines, cross, chunk, span,
    GATES_SHARED: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """E of a horizontal scan, last tile first."""
    _, gates_at, _, own, stride, reverse = _planes(
        table, batch, channels, lines, cross, True, GATES_SHARED, False, ALIGNED
    )  # fmt: skip
    n = tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, lines)
    tiles = tl.cdiv(end - begin, 4)
    sent = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, tiles):
        t = begin + (tiles - 1 - i) * 4
        at, here = _tile(t, end, lines, reverse, n, cross, ALIGNED)
        d = _apart(tl.load(grad + own + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        g0 = _apart(tl.load(gates + gates_at + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        g1 = _apart(tl.load(gates + gates_at + stride + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        g2 = _apart(tl.load(gates + gates_at + 2 * stride + at, mask=here, other=0.0).to(tl.float32), BLOCK)
        e3, sent = _adjoint_step(3, t, sent, d, g0, g1, g2, n, cross, chunk, reverse)
        e2, sent = _adjoint_step(2, t, sent, d, g0, g1, g2, n, cross, chunk, reverse)
        e1, sent = _adjoint_step(1, t, sent, d, g0, g1, g2, n, cross, chunk, reverse)
        e0, sent = _adjoint_step(0, t, sent, d, g0, g1, g2, n, cross, chunk, reverse)
        tl.store(e + own + at, _ordered(e0, e1, e2, e3, reverse, BLOCK), mask=here)


@triton.jit
def _adjoint_step(J: tl.constexpr, t, sent, d, g0, g1, g2, n, cross, chunk, reverse):
    """E of line t + J of the tile, and what it sends to the line before it."""
    value = tl.where(reverse, d[3 - J], d[J])
    value = tl.where((t + J + 1) % chunk == 0, value, value + sent)
    a = tl.where(reverse, g0[3 - J], g0[J])
    b = tl.where(reverse, g1[3 - J], g1[J])
    c = tl.where(reverse, g2[3 - J], g2[J])
    return value, _send(value, a, b, c, n, cross)
