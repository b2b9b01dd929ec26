"""Isotropic diffusion on the CPU: numba, float32, forward and backward.

Planes (one channel of one image) are independent and run in parallel; all steps of a plane run while it is in the
cache. A plane lies in memory with zeros around it, whole vectors wide, so no step looks at the border: what is outside
has a kappa of 0. Of the H_t nothing is kept for the gradients; the backward pass makes those of one plane again, which
takes (steps + 1) H W numbers for each thread instead of for each plane.

Backward: with E_T the gradient of H_T and D = sum over t of E_t, t = 1 ... T,

    E_t(q) = sum_j kappa_j(q - n_j) E_{t+1}(q - n_j),    dkappa_j(p) = sum_t E_{t+1}(p) H_t(p + n_j) - D(p) H_0(p),
    dx = E_0 + (1 - sum_j kappa_j) D.
"""

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK
from kernels.vectormath import WIDTH, add, load, store, subtract, times, zeros

from . import NEIGHBOURS, Diffusion

_OFFSETS = np.array(NEIGHBOURS)
_jit = numba.njit(cache=True, fastmath={"contract"})


@_jit
def _enter(plane, target, stride):
    """(H, W) -> flat padded rows. The rest of the last vectors is cleared: a NaN of another plane may be there."""
    for r in range(plane.shape[0]):
        start = (r + 1) * stride + WIDTH
        for c in range(plane.shape[1]):
            target[start + c] = plane[r, c]
        for c in range(plane.shape[1], stride - WIDTH):
            target[start + c] = 0


@_jit
def _clear(plane):
    for i in range(plane.size):
        plane[i] = 0


@_jit
def _leave(source, plane, stride):
    """Flat padded rows -> (H, W)."""
    for r in range(plane.shape[0]):
        start = (r + 1) * stride + WIDTH
        for c in range(plane.shape[1]):
            plane[r, c] = source[start + c]


@_jit
def _keep(kappa, x, kept, rows, stride):
    """kept = (1 - sum of the eight kappas) x."""
    for r in range(1, rows + 1):
        for i in range(r * stride + WIDTH, (r + 1) * stride, WIDTH):
            value = load(x, i)
            left = value
            for j in range(8):
                left = subtract(left, times(load(kappa[j], i), value))
            store(kept, i, left)


@_jit
def _step(kappa, kept, h, following, shifts, rows, stride):
    """following = kept + sum_j kappa_j h shifted by n_j."""
    for r in range(1, rows + 1):
        for i in range(r * stride + WIDTH, (r + 1) * stride, WIDTH):
            found = load(kept, i)
            for j in range(8):
                found = add(found, times(load(kappa[j], i), load(h, i + shifts[j])))
            store(following, i, found)


@_jit
def _step_back(kappa, e, before, shifts, rows, stride):
    """before = sum_j (kappa_j e) shifted by -n_j."""
    for r in range(1, rows + 1):
        for i in range(r * stride + WIDTH, (r + 1) * stride, WIDTH):
            found = zeros()
            for j in range(8):
                found = add(found, times(load(kappa[j], i - shifts[j]), load(e, i - shifts[j])))
            store(before, i, found)


@_jit
def _gather(grad, total, e, h, shifts, rows, stride):
    """grad_j += e h shifted by n_j, and total += e."""
    for r in range(1, rows + 1):
        for i in range(r * stride + WIDTH, (r + 1) * stride, WIDTH):
            value = load(e, i)
            store(total, i, add(load(total, i), value))
            for j in range(8):
                store(grad[j], i, add(load(grad[j], i), times(value, load(h, i + shifts[j]))))


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _forward(x, kappa, out, shifts, stride, steps, room):
    """x, out (B, C, H, W); kappa (B, 8, C or 1, H, W); room (threads, 11, padded): kappa, kept, and two H."""
    batch, channels, height = x.shape[:3]
    for item in numba.prange(batch * channels):
        b, c = item // channels, item % channels
        mine = room[numba.get_thread_id()]
        for j in range(8):
            _enter(kappa[b, j, c if kappa.shape[2] > 1 else 0], mine[j], stride)
        _enter(x[b, c], mine[9], stride)
        _keep(mine[:8], mine[9], mine[8], height, stride)
        for t in range(steps):
            _step(mine[:8], mine[8], mine[9 + t % 2], mine[10 - t % 2], shifts, height, stride)
        _leave(mine[9 + steps % 2], out[b, c], stride)


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _backward(grad, x, kappa, dx, dkappa, shifts, stride, steps, parts, room):
    """dkappa (parts or 1, B, 8, C or 1, H, W): channels that share kappa are summed in `parts` parts.

    room (threads, 20 + steps, padded): kappa, its gradient, kept, total, two E, and every H_t before the last.
    """
    batch, channels, height = x.shape[:3]
    shared = kappa.shape[2] < channels
    for item in numba.prange(batch * parts):
        b, part = item // parts, item % parts
        mine = room[numba.get_thread_id()]
        for c in range(part * channels // parts, (part + 1) * channels // parts):
            own = 0 if shared else c
            for j in range(8):
                _enter(kappa[b, j, own], mine[j], stride)
            if not shared or c == part * channels // parts:
                for j in range(8):
                    _clear(mine[8 + j])
            _clear(mine[17])
            _enter(x[b, c], mine[20], stride)
            _keep(mine[:8], mine[20], mine[16], height, stride)
            for t in range(steps - 1):
                _step(mine[:8], mine[16], mine[20 + t], mine[21 + t], shifts, height, stride)
            _enter(grad[b, c], mine[18 + steps % 2], stride)
            for t in range(steps - 1, -1, -1):
                now, before = mine[18 + (t + 1) % 2], mine[18 + t % 2]
                _gather(mine[8:16], mine[17], now, mine[20 + t], shifts, height, stride)
                _step_back(mine[:8], now, before, shifts, height, stride)
            _finish(mine, height, stride)
            _leave(mine[18], dx[b, c], stride)
            if not shared or c == (part + 1) * channels // parts - 1:
                for j in range(8):
                    _leave(mine[8 + j], dkappa[part if shared else 0, b, j, own], stride)


@_jit
def _finish(mine, rows, stride):
    """What H_0 takes part in directly: dkappa_j -= D H_0, and E_0 += (1 - sum_j kappa_j) D."""
    total, x, e = mine[17], mine[20], mine[18]
    _keep(mine[:8], total, mine[16], rows, stride)
    for r in range(1, rows + 1):
        for i in range(r * stride + WIDTH, (r + 1) * stride, WIDTH):
            store(e, i, add(load(e, i), load(mine[16], i)))
            value = times(load(total, i), load(x, i))
            for j in range(8):
                store(mine[8 + j], i, subtract(load(mine[8 + j], i), value))


def forward(
    settings: Diffusion, x: torch.Tensor, kappa: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """x (B, C, H, W), kappa (B, 8, C or 1, H, W) -> (B, C, H, W)."""
    x, kappa = x.contiguous(), kappa.contiguous()
    out = torch.empty_like(x)
    with CPU_LOCK:
        room, stride, shifts = _room(x, 11)
        _forward(*_arrays(x, kappa, out), shifts, stride, settings.steps, room)
    return out, (x, kappa)


def backward(
    settings: Diffusion, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x and kappa."""
    x, kappa = saved
    batch, channels = x.shape[:2]
    with CPU_LOCK:
        shared = kappa.shape[2] < channels
        parts = min(channels, -(-numba.get_num_threads() // batch)) if shared else channels
        dx, dkappa = torch.empty_like(x), torch.empty((parts if shared else 1, *kappa.shape))
        room, stride, shifts = _room(x, 20 + settings.steps)
        _backward(*_arrays(grad.contiguous(), x, kappa, dx, dkappa), shifts, stride, settings.steps, parts, room)
    summed = dkappa[0] if dkappa.shape[0] == 1 else dkappa.sum(0)
    return dx if needs[0] else None, summed if needs[1] else None


def _room(x: torch.Tensor, count: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Zeros for `count` padded planes of each thread, the padded width, and the eight offsets in such a plane.

    A row is WIDTH zeros and then whole vectors of values; a row of zeros lies above and below.
    """
    height, width = x.shape[2:]
    stride = WIDTH + width + -width % WIDTH
    room = np.zeros((numba.get_num_threads(), count, (height + 2) * stride + WIDTH), np.float32)
    return room, stride, _OFFSETS @ np.array([stride, 1])


def _arrays(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)
