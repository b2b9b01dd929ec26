"""Line propagation on the CPU: numba, float32, forward and backward.

A plane is one channel of one image in one direction. Planes are independent and run in parallel; inside a plane the
cross axis is the inner, vectorised loop. For the vertical directions lines are image rows and are read in place. For
the horizontal ones lines are columns: strips of them are transposed in registers into a scratch that stays in the
cache, scanned there, and transposed back, so memory is still read and written in whole rows.

Backward: the adjoint scan E runs each chunk's lines in the opposite order,

    E[t, n] = dh[t, n] + g0[t+1, n+1] E[t+1, n+1] + g1[t+1, n] E[t+1, n] + g2[t+1, n-1] E[t+1, n-1],

and every gradient is a product of E with a shifted map, taken in image coordinates:
dx = lam E, dlam = x E, dg_j[t, n] = E[t, n] h[t-1, n+j-1].
"""

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK

from . import Scan
from .lanes import LANES, adjoint_line, scan_line, scan_weighted_line, transpose_into, transpose_product_into

#: Columns of a horizontal scan that are transposed together: wider strips leave the level 1 cache and were slower.
STRIP = 8

_WHOLE = np.iinfo(np.int64).max
_jit = numba.njit(cache=True, fastmath={"contract"})


@_jit
def scan_lines(x, g0, g1, g2, lam, has_lam, h, states, lines, first, reverse, chunk):
    """Scan `lines` rows of (lines, cross) arrays; the first one walked is line `first` of the map.

    states: nine padded lines (`scratch_lines`), three of zeros, then two sets to alternate between; a strip finds the
    line before it there. (The adjoint keeps three products of a line, hence sets of three.)
    """
    for i in range(lines):
        t = first + i
        r = lines - 1 - i if reverse else i
        before = 0 if t % chunk == 0 else 3 + 3 * ((t - 1) % 2)
        now = 3 + 3 * (t % 2)
        if has_lam:
            scan_weighted_line(x, lam, g0, g1, g2, x.shape[1], r, h, states, before, now)
        else:
            scan_line(x, g0, g1, g2, x.shape[1], r, h, states, before, now)


@_jit
def adjoint_lines(grad, g0, g1, g2, e, states, lines, first, total, reverse, chunk):
    """The adjoint of `scan_lines`, last line first; a line sends nothing back to another chunk."""
    for i in range(lines - 1, -1, -1):
        t = first + i
        r = lines - 1 - i if reverse else i
        after = 0 if t + 1 == total or (t + 1) % chunk == 0 else 3 + 3 * ((t + 1) % 2)
        adjoint_line(grad, g0, g1, g2, grad.shape[1], r, e, states, after, 3 + 3 * (t % 2))


@_jit
def scan_columns(x, g0, g1, g2, lam, has_lam, h, states, strips, reverse, chunk):
    """Scan the columns of (H, W) planes strip by strip; strips is (5, STRIP, H)."""
    height, width = x.shape
    source, t0, t1, t2, ht = strips[0], strips[1], strips[2], strips[3], strips[4]
    for start in range(0, width, STRIP):
        count = min(STRIP, width - start)
        lo = width - start - count if reverse else start
        if has_lam:
            transpose_product_into(x[:, lo:], lam[:, lo:], source, count)
        else:
            transpose_into(x[:, lo:], source, count)
        transpose_into(g0[:, lo:], t0, count)
        transpose_into(g1[:, lo:], t1, count)
        transpose_into(g2[:, lo:], t2, count)
        scan_lines(source, t0, t1, t2, source, False, ht, states, count, start, reverse, chunk)
        transpose_into(ht[:count], h[:, lo:], height)


@_jit
def adjoint_columns(grad, g0, g1, g2, e, states, strips, reverse, chunk):
    """The adjoint of `scan_columns`, strips in the opposite order."""
    height, width = grad.shape
    dh, t0, t1, t2, et = strips[0], strips[1], strips[2], strips[3], strips[4]
    for start in range((width - 1) // STRIP * STRIP, -1, -STRIP):
        count = min(STRIP, width - start)
        lo = width - start - count if reverse else start
        transpose_into(grad[:, lo:], dh, count)
        transpose_into(g0[:, lo:], t0, count)
        transpose_into(g1[:, lo:], t1, count)
        transpose_into(g2[:, lo:], t2, count)
        adjoint_lines(dh, t0, t1, t2, et, states, count, start, width, reverse, chunk)
        transpose_into(et[:count], e[:, lo:], height)


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _forward(x, gates, lam, has_lam, h, horizontal, reverse, chunk, strips, column_states, row_states):
    count, batch, channels = h.shape[:3]
    for item in numba.prange(count * batch * channels):
        k, b, c = item // (batch * channels), item // channels % batch, item % channels
        xk = x[k if x.shape[0] > 1 else 0, b, c]
        cg = c if gates.shape[3] > 1 else 0
        g0, g1, g2 = gates[k, 0, b, cg], gates[k, 1, b, cg], gates[k, 2, b, cg]
        lk = lam[k if has_lam else 0, b if has_lam else 0, c if lam.shape[2] > 1 else 0]
        thread = numba.get_thread_id()
        if horizontal[k]:
            state = column_states[thread]
            scan_columns(xk, g0, g1, g2, lk, has_lam, h[k, b, c], state, strips[thread], reverse[k], chunk)
        else:
            state = row_states[thread]
            scan_lines(xk, g0, g1, g2, lk, has_lam, h[k, b, c], state, xk.shape[0], 0, reverse[k], chunk)


@_jit
def product(target, a, b, add):
    """target = a * b, or target += a * b, flat."""
    if add:
        for i in range(target.size):
            target[i] += a[i] * b[i]
    else:
        for i in range(target.size):
            target[i] = a[i] * b[i]


@_jit
def shifted_product(target, e, h, down, right, add):
    """target[r, c] (+)= e[r, c] h[r + down, c + right], and 0 where that lies outside the map."""
    height, width = e.shape
    if add:
        lo, hi = max(0, -right), min(width, width - right)
        for r in range(max(0, -down), min(height, height - down)):
            product(target[r, lo:hi], e[r, lo:hi], h[r + down, lo + right : hi + right], True)
        return
    # In one flat run, which also multiplies across the ends of rows; those columns are then set to 0.
    flat, shift = target.reshape(-1), down * width + right
    lo, hi = min(max(0, -shift), flat.size), max(0, min(flat.size, flat.size - shift))
    flat[:lo] = 0
    flat[hi:] = 0
    product(flat[lo:hi], e.reshape(-1)[lo:hi], h.reshape(-1)[lo + shift : hi + shift], False)
    if right != 0:
        target[:, 0 if right < 0 else width - 1] = 0


@_jit
def clear_chunk_starts(e, horizontal, reverse, chunk):
    """Set E to 0 on the lines that read no previous line."""
    height, width = e.shape
    for t in range(0, width if horizontal else height, chunk):
        if horizontal:
            e[:, width - 1 - t if reverse else t] = 0
        else:
            e[height - 1 - t if reverse else t] = 0


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _backward(
    grad,
    x,
    gates,
    lam,
    has_lam,
    h,
    dx,
    dgates,
    dlam,
    needs,
    horizontal,
    reverse,
    chunk,
    parts,
    strips,
    column_states,
    row_states,
    planes,
):
    """One work item is an image and a block of channels; gradients shared by channels are summed block by block."""
    count, batch, channels, height = grad.shape[:4]
    for item in numba.prange(batch * parts):
        b, part = item // parts, item % parts
        thread = numba.get_thread_id()
        e = planes[thread]
        flat = e.reshape(-1)
        begin, end = part * channels // parts, (part + 1) * channels // parts
        for c in range(begin, end):
            for k in range(count):
                cg = c if gates.shape[3] > 1 else 0
                g0, g1, g2, dh = gates[k, 0, b, cg], gates[k, 1, b, cg], gates[k, 2, b, cg], grad[k, b, c]
                if horizontal[k]:
                    state = column_states[thread]
                    adjoint_columns(dh, g0, g1, g2, e, state, strips[thread], reverse[k], chunk)
                else:
                    state = row_states[thread]
                    adjoint_lines(dh, g0, g1, g2, e, state, height, 0, height, reverse[k], chunk)
                kx, cl = k if x.shape[0] > 1 else 0, c if lam.shape[2] > 1 else 0
                if needs[0]:
                    if has_lam:
                        product(dx[kx, b, c].reshape(-1), lam[k, b, cl].reshape(-1), flat, k > kx)
                    elif k > kx:
                        dx[kx, b, c] += e
                    else:
                        dx[kx, b, c] = e
                if needs[2]:
                    shared = dlam.shape[3] < channels
                    target = dlam[part if shared else 0, k, b, cl].reshape(-1)
                    product(target, x[kx, b, c].reshape(-1), flat, shared and c > begin)
                if needs[1]:
                    shared = dgates.shape[4] < channels
                    clear_chunk_starts(e, horizontal[k], reverse[k], chunk)
                    back = 1 if reverse[k] else -1
                    for j in range(3):
                        down, right = (j - 1, back) if horizontal[k] else (back, j - 1)
                        target = dgates[part if shared else 0, k, j, b, cg]
                        shifted_product(target, e, h[k, b, c], down, right, shared and c > begin)


def forward(
    scan: Scan, x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """x (K or 1, B, C, H, W), gates (K, 3, B, C or 1, H, W), lam (K, B, C or 1, H, W) or None -> h (K, B, C, H, W)."""
    x, gates = x.contiguous(), gates.contiguous()
    lam = None if lam is None else lam.contiguous()
    height, width = x.shape[-2:]
    h = torch.empty((len(scan.directions), *x.shape[1:]), dtype=torch.float32)
    with CPU_LOCK:
        scratch = scratch_lines(numba.get_num_threads(), height, width)
        _forward(*arrays(x, gates), *_optional(lam), *arrays(h), *rules(scan), *arrays(*scratch))
    return h, (x, gates, lam, h)


def backward(
    scan: Scan, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x, gates and lam that `needs` asks for, shaped as they are."""
    x, gates, lam, h = saved
    _, batch, channels, height, width = h.shape
    needs = (needs[0], needs[1], needs[2] and lam is not None)
    lam_channels = channels if lam is None else lam.shape[2]
    with CPU_LOCK:
        threads = numba.get_num_threads()
        shares = (needs[1] and gates.shape[3] < channels) or (needs[2] and lam_channels < channels)
        parts = min(channels, -(-threads // batch)) if shares else channels
        dx = torch.empty(x.shape if needs[0] else (1,) * 5)
        dgates = torch.empty((parts if gates.shape[3] < channels else 1, *gates.shape) if needs[1] else (1,) * 7)
        dlam = torch.empty((parts if lam_channels < channels else 1, *lam.shape) if needs[2] else (1,) * 6)
        scratch = (*scratch_lines(threads, height, width), torch.empty((threads, height, width)))
        _backward(
            *arrays(grad.contiguous(), x, gates), *_optional(lam), *arrays(h, dx, dgates, dlam),
            np.array(needs), *rules(scan), parts, *arrays(*scratch),
        )  # fmt: skip
    return (
        dx if needs[0] else None,
        summed(dgates) if needs[1] else None,
        summed(dlam) if needs[2] else None,
    )


def scratch_lines(threads: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """For each thread: strips of transposed columns, and the nine state lines of a column scan and of a row scan.

    A state line is whole blocks with one more block of zeros at each end.
    """
    strips = torch.empty((threads, 5, STRIP, height))
    column, row = (torch.zeros((threads, 9, -(-n // LANES) * LANES + 2 * LANES)) for n in (height, width))
    return strips, column, row


def summed(parts: torch.Tensor) -> torch.Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)


def _optional(lam: torch.Tensor | None) -> tuple[np.ndarray, bool]:
    """numba wants an array of the right rank either way, and a flag that says whether it is meant."""
    return (np.empty((1,) * 5, np.float32), False) if lam is None else (lam.detach().numpy(), True)


def rules(scan: Scan) -> tuple[np.ndarray, np.ndarray, int]:
    horizontal = np.array([d in ("left_right", "right_left") for d in scan.directions])
    reverse = np.array([d in ("right_left", "bottom_top") for d in scan.directions])
    return horizontal, reverse, _WHOLE if scan.chunk is None else scan.chunk
