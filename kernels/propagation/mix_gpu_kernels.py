"""The Triton kernels of the fused GSPN mixer: which planes a program walks, and in which order its directions.

`table` has a row (number of the pass, reversed or not) for each direction, horizontal ones first; a program takes `per`
entries of it. Programs are (image and block of CB channels, span of lines, part of the table).
"""

import triton
import triton.language as tl

from .mix_gpu_adjoint import adjoint_columns, adjoint_rows
from .mix_gpu_lines import OWN, SHARED, scan_columns, scan_rows


@triton.jit
def _settle(DRAIN: tl.constexpr):
    """Wait until all threads of the program are here, and what they have stored can be read by the others."""
    if DRAIN:  # AMD's barrier does not wait for stores
        n = tl.arange(0, 64)
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)", "=v,0", [n], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def _plane(k, image, channel, batch, channels, KIND: tl.constexpr):
    """The number of the plane in a map (K, B, C or 1, H, W)."""
    if KIND == SHARED:
        return (k * batch + image).to(tl.int64)
    else:
        return (k * batch + image).to(tl.int64) * channels + channel


@triton.jit
def _inputs(
    k, image, channel, batch, channels, count, logits, lam, u, skip,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Pointers to the program's planes of three logits, lam, u and skip in direction k."""
    l0 = logits + _plane(3 * k, image, channel, batch, channels, LOGITS) * count
    l1 = logits + _plane(3 * k + 1, image, channel, batch, channels, LOGITS) * count
    l2 = logits + _plane(3 * k + 2, image, channel, batch, channels, LOGITS) * count
    lam += _plane(k, image, channel, batch, channels, LAM) * count
    u += _plane(k, image, channel, batch, channels, U) * count
    skip += _plane(k, image, channel, batch, channels, SKIP) * count
    return l0, l1, l2, lam, u, skip


@triton.jit
def mix_forward(
    v, logits, lam, u, skip, weight, sums, y, table, batch, channels, height, width, chunk_rows, chunk_cols, span_rows,
    span_cols, horizontals, entries, per,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    FINISH: tl.constexpr, CB: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    """Entries of the table, `per` a program: add their directions into the sums, or with FINISH the last into y."""
    width = width // WHOLE * WHOLE  # tells the compiler how rows are aligned
    count = height * width
    blocks = tl.cdiv(channels, CB)
    image, channel = tl.program_id(0) // blocks, tl.program_id(0) % blocks * CB
    part, left = tl.program_id(2), channels - channel
    own = _plane(0, image, channel, batch, channels, OWN) * count
    v += own
    y += own
    sums += own + part.to(tl.int64) * batch * channels * count
    start, stop = part * per, tl.minimum(part * per + per, entries)
    for entry in range(start, stop):
        k, reverse = tl.load(table + 2 * entry), tl.load(table + 2 * entry + 1) != 0
        w = tl.load(weight + k).to(tl.float32)
        l0, l1, l2, lam_k, u_k, skip_k = _inputs(
            k, image, channel, batch, channels, count, logits, lam, u, skip, LOGITS, LAM, U, SKIP
        )
        pointers = (v, l0, l1, l2, lam_k, u_k, skip_k, sums)
        added, finished = entry > start, entry == stop - 1
        if entry < horizontals:
            begin = tl.program_id(1) * span_cols
            scan_columns(
                pointers, y, w, added, finished, count, left, width, height, chunk_cols, begin,
                tl.minimum(begin + span_cols, width), reverse, LOGITS, LAM, U, SKIP, RULE, True, FINISH, CB, ROWS,
                ALIGNED,
            )  # fmt: skip
        else:
            begin = tl.program_id(1) * span_rows
            scan_rows(
                pointers, y, w, added, finished, count, left, height, width, chunk_rows, begin,
                tl.minimum(begin + span_rows, height), reverse, LOGITS, LAM, U, SKIP, RULE, True, FINISH, CB, COLS,
            )  # fmt: skip
        _settle(DRAIN)  # the next direction reads what other threads have added


@triton.jit
def mix_backward(
    grad, v, logits, lam, u, skip, weight, scratch, sums, dv, dlogits, dlam, du, dskip, dweight, table, batch, channels,
    height, width, chunk_rows, chunk_cols, span_rows, span_cols, horizontals, entries, per,
    LOGITS: tl.constexpr, LAM: tl.constexpr, U: tl.constexpr, SKIP: tl.constexpr, RULE: tl.constexpr,
    NEEDS: tl.constexpr, FINISH: tl.constexpr, CB: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    WHOLE: tl.constexpr, ALIGNED: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    """As `mix_forward` for the sums of dv; bit i of NEEDS says whether input i of `mix` needs a gradient."""
    width = width // WHOLE * WHOLE
    count = height * width
    blocks = tl.cdiv(channels, CB)
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    channel, part = block * CB, tl.program_id(2)
    left = channels - channel
    own = _plane(0, image, channel, batch, channels, OWN) * count
    apart = part.to(tl.int64) * batch * channels * count
    v += own
    grad += own
    dv += own
    sums += own + apart
    scratch += own + apart
    # What channels share has a gradient for each block of channels.
    each = block.to(tl.int64) * entries * batch * count
    if LOGITS == SHARED:
        dlogits += 3 * each
    if LAM == SHARED:
        dlam += each
    if U == SHARED:
        du += each
    if SKIP == SHARED:
        dskip += each
    start, stop = part * per, tl.minimum(part * per + per, entries)
    for entry in range(start, stop):
        k, reverse = tl.load(table + 2 * entry), tl.load(table + 2 * entry + 1) != 0
        w = tl.load(weight + k).to(tl.float32)
        l0, l1, l2, lam_k, u_k, skip_k = _inputs(
            k, image, channel, batch, channels, count, logits, lam, u, skip, LOGITS, LAM, U, SKIP
        )
        pointers = (v, l0, l1, l2, lam_k, u_k, skip_k, grad)
        m0, m1, m2, dlam_k, du_k, dskip_k = _inputs(
            k, image, channel, batch, channels, count, dlogits, dlam, du, dskip, LOGITS, LAM, U, SKIP
        )
        outputs = (sums, dv, m0, m1, m2, dlam_k, du_k, dskip_k)
        added, finished = entry > start, entry == stop - 1
        if entry < horizontals:
            begin = tl.program_id(1) * span_cols
            end = tl.minimum(begin + span_cols, width)
            scan_columns(
                pointers, scratch, w, False, False, count, left, width, height, chunk_cols, begin, end, reverse,
                LOGITS, LAM, U, SKIP, RULE, False, False, CB, ROWS, ALIGNED,
            )  # fmt: skip
            _settle(DRAIN)  # h is read by other threads than those that have made it
            total = adjoint_columns(
                pointers, outputs, scratch, w, added, finished, count, left, width, height, chunk_cols, begin, end,
                reverse, LOGITS, LAM, U, SKIP, RULE, NEEDS, FINISH, CB, ROWS, ALIGNED,
            )  # fmt: skip
        else:
            begin = tl.program_id(1) * span_rows
            end = tl.minimum(begin + span_rows, height)
            scan_rows(
                pointers, scratch, w, False, False, count, left, height, width, chunk_rows, begin, end, reverse,
                LOGITS, LAM, U, SKIP, RULE, False, False, CB, COLS,
            )  # fmt: skip
            _settle(DRAIN)
            total = adjoint_rows(
                pointers, outputs, scratch, w, added, finished, count, left, height, width, chunk_rows, begin, end,
                reverse, LOGITS, LAM, U, SKIP, RULE, NEEDS, FINISH, CB, COLS,
            )  # fmt: skip
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if NEEDS & 32:
            tl.store(dweight + program * entries + k, total)
        _settle(DRAIN)


@triton.jit
def add_parts(sums, y, parts, count, BLOCK: tl.constexpr):
    """y = sums of the parts, in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(parts):
        total += tl.load(sums + at, mask=inside, other=0.0)
        sums += count
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)
