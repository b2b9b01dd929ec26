"""The fused mixer on the CPU: numba, float32, forward and backward.

A plane is one channel of one image; its directions run one after the other while v and the output stay in the cache.
Under the sigmoid rule with gates for every channel, the forward pass reads the logits once, line by line, and makes the
gates in registers (`mix_lanes.py`): neither they nor h are written. The first line of a chunk does not read its logits.
Otherwise the gates and h of one plane and direction are made in a scratch, once for all channels that share them.

The backward pass keeps nothing but its inputs. It makes gates and h of one plane and direction again in the scratch,
runs the adjoint scan of `cpu.py` on dh = weight u dy, and takes every gradient from there, with
du = weight dy h, dskip = weight dy v, dweight = sum of dy (u h + skip v), dv = sum over directions of lam E + weight
skip dy; those of the logits go through the rule (`normalise_cpu.py`). Where nothing is shared, small planes are taken
together by every pass that has no order, so that its loops are long.
"""

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK

from . import Mix, Scan, mix_apart
from .cpu import (
    STRIP,
    adjoint_columns,
    adjoint_lines,
    arrays,
    clear_chunk_starts,
    product,
    rules,
    scan_columns,
    scan_lines,
    scratch_lines,
    shifted_product,
    summed,
)
from .lanes import transpose_into, transpose_product_into
from .mix_lanes import first_line, gated_line, merge_columns, mix_first_line, mix_line
from .normalise_cpu import divide, logit_gradient, rule_number, weigh

_SIGMOID = rule_number("sigmoid")
_jit = numba.njit(cache=True, fastmath={"contract"})


@_jit
def _mix_lines(v, l0, l1, l2, lam, u, skip, weight, out, states, reverse, chunk):
    """Add one vertical direction to the output; states as in `scan_lines`."""
    lines, cross = v.shape
    for t in range(lines):
        r = lines - 1 - t if reverse else t
        before, now = 3 + 3 * ((t - 1) % 2), 3 + 3 * (t % 2)
        if t % chunk == 0:
            mix_first_line(v, lam, u, skip, weight, out, cross, r, states, now)
        else:
            mix_line(v, lam, l0, l1, l2, u, skip, weight, out, cross, r, states, before, now)


@_jit
def _mix_columns(v, l0, l1, l2, lam, u, skip, weight, out, states, strips, reverse, chunk):
    """Add one horizontal direction to the output, strip by strip; strips is (5, STRIP, H)."""
    height, width = v.shape
    source, t0, t1, t2, ht = strips[0], strips[1], strips[2], strips[3], strips[4]
    for start in range(0, width, STRIP):
        count = min(STRIP, width - start)
        lo = width - start - count if reverse else start
        transpose_product_into(v[:, lo:], lam[:, lo:], source, count)
        transpose_into(l0[:, lo:], t0, count)
        transpose_into(l1[:, lo:], t1, count)
        transpose_into(l2[:, lo:], t2, count)
        for i in range(count):
            t, r = start + i, count - 1 - i if reverse else i
            before, now = 3 + 3 * ((t - 1) % 2), 3 + 3 * (t % 2)
            if t % chunk == 0:
                first_line(source, height, r, ht, states, now)
            else:
                gated_line(source, t0, t1, t2, height, r, ht, states, before, now)
        merge_columns(ht[:count], u[:, lo:], skip[:, lo:], v[:, lo:], weight, out[:, lo:])


@_jit
def _merge(out, u, h, skip, v, weight):
    """out += weight (u h + skip v), flat."""
    for i in range(out.size):
        out[i] += weight * (u[i] * h[i] + skip[i] * v[i])


@_jit
def _shared(maps, k, b, c):
    """maps[k, b, c] of (K, B, C, H, W), or of what all passes, images or channels share, which has 1 of them."""
    return maps[min(k, maps.shape[0] - 1), min(b, maps.shape[1] - 1), min(c, maps.shape[2] - 1)]


@_jit
def _gates(logits, k, b, c, planes, rule, horizontal):
    """Weights in planes[0:3], 1 / S in planes[3], gates in planes[4:7], for one plane of logits of one direction."""
    l0, l1, l2 = logits[k, 0, b, c], logits[k, 1, b, c], logits[k, 2, b, c]
    weights, gates = (planes[0], planes[1], planes[2]), (planes[4], planes[5], planes[6])
    shape = (logits.shape[4], logits.shape[5])
    weigh((l0.reshape(-1), l1.reshape(-1), l2.reshape(-1)), weights, planes[3], rule, shape, horizontal)
    divide(weights, gates, planes[3], rule)


@_jit
def _scan_plane(v, g0, g1, g2, lam, h, strips, column_states, row_states, horizontal, reverse, chunk):
    """h of one plane and direction, from its gates."""
    if horizontal:
        scan_columns(v, g0, g1, g2, lam, True, h, column_states, strips, reverse, chunk)
    else:
        scan_lines(v, g0, g1, g2, lam, True, h, row_states, v.shape[0], 0, reverse, chunk)


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _forward(v, logits, lam, u, skip, weight, out, rule, parts, horizontal, reverse, chunk,
             strips, column_states, row_states, planes):  # fmt: skip
    """One work item is an image and a block of channels, of one channel unless they share gates."""
    batch, channels, height, width = v.shape
    count, groups = logits.shape[0], logits.shape[3]
    for item in numba.prange(batch * parts):
        b, part, thread = item // parts, item % parts, numba.get_thread_id()
        begin, end = part * channels // parts, (part + 1) * channels // parts
        out[b, begin:end] = 0
        for k in range(count):
            fused = rule == _SIGMOID and groups == channels
            if not fused and groups == 1:
                _gates(logits, k, b, 0, planes[thread], rule, horizontal[k])
            for c in range(begin, end):
                vc, to, lk = v[b, c], out[b, c], _shared(lam, k, b, c)
                uk, sk = _shared(u, k, b, c), _shared(skip, k, b, c)
                if fused:
                    l0, l1, l2 = logits[k, 0, b, c], logits[k, 1, b, c], logits[k, 2, b, c]
                    if horizontal[k]:
                        state, strip = column_states[thread], strips[thread]
                        _mix_columns(vc, l0, l1, l2, lk, uk, sk, weight[k], to, state, strip, reverse[k], chunk)
                    else:
                        state = row_states[thread]
                        _mix_lines(vc, l0, l1, l2, lk, uk, sk, weight[k], to, state, reverse[k], chunk)
                else:
                    if groups > 1:
                        _gates(logits, k, b, c, planes[thread], rule, horizontal[k])
                    mine = planes[thread].reshape((8, height, width))
                    h = mine[7]
                    _scan_plane(vc, mine[4], mine[5], mine[6], lk, h, strips[thread], column_states[thread],
                                row_states[thread], horizontal[k], reverse[k], chunk)  # fmt: skip
                    _merge(to.reshape(-1), uk.reshape(-1), h.reshape(-1), sk.reshape(-1), vc.reshape(-1), weight[k])


@_jit
def _scaled_product(target, a, b, scale, add):
    """target = scale a b, or target += scale a b, flat."""
    if add:
        for i in range(target.size):
            target[i] += scale * a[i] * b[i]
    else:
        for i in range(target.size):
            target[i] = scale * a[i] * b[i]


@_jit
def _value_gradient(target, lam, e, skip, dy, weight, add):
    """target (+)= lam E + weight skip dy, flat."""
    if add:
        for i in range(target.size):
            target[i] += lam[i] * e[i] + weight * skip[i] * dy[i]
    else:
        for i in range(target.size):
            target[i] = lam[i] * e[i] + weight * skip[i] * dy[i]


@numba.njit(cache=True, fastmath={"contract", "reassoc"})
def _row_sum(dy, u, h, skip, v):
    total = np.float32(0)
    for i in range(dy.size):
        total += dy[i] * (u[i] * h[i] + skip[i] * v[i])
    return total


@_jit
def _weight_gradient(dy, u, h, skip, v):
    """The sum of dy (u h + skip v) over a plane: rows in float32, their total in float64."""
    total = 0.0
    for r in range(dy.shape[0]):
        total += _row_sum(dy[r], u[r], h[r], skip[r], v[r])
    return total


@_jit
def _target(gradient, part, k, b, c):
    """Where the gradient of a map goes, flat; one part for each block of channels if they share it."""
    return gradient[min(part, gradient.shape[0] - 1), k, b, min(c, gradient.shape[3] - 1)].reshape(-1)


@_jit
def _adjoint_plane(dh, g0, g1, g2, e, strips, column_states, row_states, horizontal, reverse, chunk):
    """E of one plane and direction."""
    if horizontal:
        adjoint_columns(dh, g0, g1, g2, e, column_states, strips, reverse, chunk)
    else:
        adjoint_lines(dh, g0, g1, g2, e, row_states, dh.shape[0], 0, dh.shape[0], reverse, chunk)


@_jit
def _gate_gradients(targets, e, h, horizontal, reverse, chunk, add):
    """targets[j] (+)= E times the neighbour of gate j; E becomes 0 where chunks start."""
    clear_chunk_starts(e, horizontal, reverse, chunk)
    back = 1 if reverse else -1
    for j in range(3):
        down, right = (j - 1, back) if horizontal else (back, j - 1)
        shifted_product(targets[j], e, h, down, right, add)


@_jit
def _logit_gradients(dlogits, part, k, b, c, planes, rule, horizontal):
    """Finish the logits' gradients of a plane of one direction, given those of their gates in planes[10:13]."""
    weights, shape = (planes[0], planes[1], planes[2]), (dlogits.shape[5], dlogits.shape[6])
    dy, mean = (planes[10], planes[11], planes[12]), planes[8]
    logit_gradient(dy, weights, planes[3], mean, rule, shape, horizontal)
    for j in range(3):
        dlogits[part, k, j, b, c].reshape(-1)[:] = weights[j]


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _backward(grad, v, logits, lam, u, skip, weight, dv, dlogits, dlam, du, dskip, dweight, needs, rule, parts,
              horizontal, reverse, chunk, strips, column_states, row_states, planes):  # fmt: skip
    """A work item is an image and a block of channels; gradients shared by channels are summed block by block."""
    batch, channels = v.shape[:2]
    count, groups = logits.shape[0], logits.shape[3]
    for item in numba.prange(batch * parts):
        b, part, thread = item // parts, item % parts, numba.get_thread_id()
        begin, end = part * channels // parts, (part + 1) * channels // parts
        strip, columns, rows = strips[thread], column_states[thread], row_states[thread]
        flat = planes[thread]
        maps = flat.reshape((13, *v.shape[2:]))
        g0, g1, g2, h, dh, e = maps[4], maps[5], maps[6], maps[7], maps[8], maps[9]
        for k in range(count):
            across, back, w = horizontal[k], reverse[k], weight[k]
            for c in range(begin, end):
                later, group = c > begin, min(c, groups - 1)
                if groups == channels or not later:
                    _gates(logits, k, b, group, flat, rule, across)
                vc, dy, lk = v[b, c], grad[b, c], _shared(lam, k, b, c)
                uk, sk, flat_dy = _shared(u, k, b, c), _shared(skip, k, b, c), dy.reshape(-1)
                _scaled_product(flat[8], uk.reshape(-1), flat_dy, w, False)
                _scan_plane(vc, g0, g1, g2, lk, h, strip, columns, rows, across, back, chunk)
                _adjoint_plane(dh, g0, g1, g2, e, strip, columns, rows, across, back, chunk)
                if needs[0]:
                    _value_gradient(dv[b, c].reshape(-1), lk.reshape(-1), flat[9], sk.reshape(-1), flat_dy, w, k > 0)
                if needs[2]:
                    product(_target(dlam, part, k, b, c), vc.reshape(-1), flat[9], later and dlam.shape[3] < channels)
                if needs[3]:
                    add = later and du.shape[3] < channels
                    _scaled_product(_target(du, part, k, b, c), flat_dy, flat[7], w, add)
                if needs[4]:
                    add = later and dskip.shape[3] < channels
                    _scaled_product(_target(dskip, part, k, b, c), flat_dy, vc.reshape(-1), w, add)
                if needs[5]:
                    dweight[item, k] += _weight_gradient(dy, uk, h, sk, vc)
                if needs[1]:
                    _gate_gradients(maps[10:13], e, h, across, back, chunk, later and groups < channels)
                    if groups == channels or c + 1 == end:
                        _logit_gradients(dlogits, min(part, dlogits.shape[0] - 1), k, b, group, flat, rule, across)


def forward(
    settings: Mix,
    v: torch.Tensor,
    logits: torch.Tensor,
    lam: torch.Tensor | None,
    u: torch.Tensor | None,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """v (B, C, H, W), logits (K, 3, B, C or 1, H, W), lam, u, skip (K, B, C or 1, H, W) or None, weight (K,) -> y."""
    v, logits, weight = v.contiguous(), logits.contiguous(), weight.contiguous()
    lam, u, skip = (None if t is None else t.contiguous() for t in (lam, u, skip))
    channels, height, width = v.shape[1:]
    out = torch.empty_like(v)
    with CPU_LOCK:
        threads = numba.get_num_threads()
        apart = mix_apart.apart(settings, v, logits, lam, u, skip, weight)
        if apart and mix_apart.is_narrow(v):
            mix_apart.forward(settings, out, apart, threads)
        else:
            parts = _parts(v, logits.shape[3] < channels, threads)
            fused = settings.rule == "sigmoid" and logits.shape[3] == channels
            planes = torch.empty((threads, 8, 1 if fused else height * width))
            _forward(
                *arrays(v, logits, *_filled(v, lam, u, skip), weight, out), rule_number(settings.rule), parts,
                *_scan(settings), *arrays(*scratch_lines(threads, height, width), planes),
            )  # fmt: skip
    return out, (v, logits, lam, u, skip, weight)


def backward(
    settings: Mix, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of v, logits, lam, u, skip and weight that `needs` asks for, shaped as they are."""
    v, logits, lam, u, skip, weight = saved
    batch, channels, height, width = v.shape
    maps = (logits, lam, u, skip)
    wanted = [need and t is not None for need, t in zip(needs[1:5], maps, strict=True)]
    with CPU_LOCK:
        threads = numba.get_num_threads()
        if apart := mix_apart.apart(settings, *saved):
            every = mix_apart.backward(settings, grad.contiguous(), apart, threads)
            return tuple(t if need else None for t, need in zip(every, needs, strict=True))
        parts = _parts(v, any(t is None or t.shape[-3] < channels for t in maps), threads)
        dv = torch.empty_like(v) if needs[0] else torch.empty((1,) * 4)
        found = [
            torch.empty((parts if t.shape[-3] < channels else 1, *t.shape) if w else (1,) * (7 if t is logits else 6))
            for w, t in zip(wanted, maps, strict=True)
        ]
        dweight = torch.zeros((batch * parts, len(weight)), dtype=torch.float64)
        planes = torch.empty((threads, 13, height * width))
        _backward(
            *arrays(grad.contiguous(), v, logits, *_filled(v, lam, u, skip), weight, dv, *found, dweight),
            np.array([needs[0], *wanted, needs[5]]), rule_number(settings.rule), parts, *_scan(settings),
            *arrays(*scratch_lines(threads, height, width), planes),
        )  # fmt: skip
    return (
        dv if needs[0] else None,
        *(summed(t) if w else None for w, t in zip(wanted, found, strict=True)),
        dweight.sum(0).float() if needs[5] else None,
    )


def _parts(v: torch.Tensor, shares: bool, threads: int) -> int:
    """Blocks of channels of an image: single channels, or as few as keep the threads busy where channels share."""
    return min(v.shape[1], -(-threads // v.shape[0])) if shares else v.shape[1]


def _filled(
    v: torch.Tensor, lam: torch.Tensor | None, u: torch.Tensor | None, skip: torch.Tensor | None
) -> list[torch.Tensor]:
    """lam, u and skip with one plane of 1, 1 and 0, which stays in the cache, in place of None."""
    shape = (1, 1, 1, *v.shape[-2:])
    return [torch.full(shape, value) if t is None else t for t, value in ((lam, 1.0), (u, 1.0), (skip, 0.0))]


def _scan(settings: Mix) -> tuple[np.ndarray, np.ndarray, int]:
    return rules(Scan(settings.directions, settings.chunk))
