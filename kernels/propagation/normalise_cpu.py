"""Gate normalisation on the CPU: numba, float32, forward and backward.

Each plane (one channel of one image and direction) is finished while it is in the cache; every pass over it touches few
arrays at a time, which is what lets LLVM vectorise it.
"""

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK
from kernels.vectormath import exp32

from .reference import SMALLEST_SUM

_ONE, _SMALLEST = np.float32(1), np.float32(SMALLEST_SUM)
_jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")


@_jit
def _sigmoids(logits, weights, width, horizontal):
    """weights[j] = sigmoid(logits[j]) for three flat planes, 0 where gate j's neighbour lies outside the map."""
    for j in range(3):
        source, target = logits[j], weights[j]
        for i in range(target.size):
            target[i] = _ONE / (_ONE + exp32(-source[i]))
    if horizontal:
        weights[0][:width], weights[2][weights[2].size - width :] = 0, 0
    else:
        weights[0][::width], weights[2][width - 1 :: width] = 0, 0


@_jit
def _inverse_sum(weights, inverse):
    """inverse = 1 / max(sum of the three weights, 1e-7)."""
    a, b, c = weights
    for i in range(inverse.size):
        inverse[i] = _ONE / max(a[i] + b[i] + c[i], _SMALLEST)


@_jit
def _three(planes, k, p):
    return planes[k, 0, p], planes[k, 1, p], planes[k, 2, p]


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
def _forward(logits, gates, width, horizontal, scratch):
    """logits, gates (K, 3, planes, H W); scratch (threads, H W)."""
    count, _, planes = gates.shape[:3]
    for item in numba.prange(count * planes):
        k, p = item // planes, item % planes
        mine, inverse = _three(gates, k, p), scratch[numba.get_thread_id()]
        _sigmoids(_three(logits, k, p), mine, width, horizontal[k])
        _inverse_sum(mine, inverse)
        for j in range(3):
            target = mine[j]
            for i in range(inverse.size):
                target[i] *= inverse[i]


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
def _backward(grad, logits, out, width, horizontal, scratch):
    """out = (grad - sum_j grad_j gate_j) s (1 - s) / S; the subtracted sum is 0 where S was clamped."""
    count, _, planes = out.shape[:3]
    for item in numba.prange(count * planes):
        k, p = item // planes, item % planes
        mine, dy = _three(out, k, p), _three(grad, k, p)
        inverse, mean = scratch[numba.get_thread_id(), 0], scratch[numba.get_thread_id(), 1]
        _sigmoids(_three(logits, k, p), mine, width, horizontal[k])
        _inverse_sum(mine, inverse)
        mean[:] = 0
        for j in range(3):
            source, weight = dy[j], mine[j]
            for i in range(mean.size):
                mean[i] += source[i] * weight[i] * inverse[i]
        for i in range(mean.size):
            mean[i] = mean[i] if inverse[i] < _ONE / _SMALLEST else np.float32(0)
        for j in range(3):
            source, weight = dy[j], mine[j]
            for i in range(mean.size):
                weight[i] = (source[i] - mean[i]) * inverse[i] * weight[i] * (_ONE - weight[i])


def forward(directions: tuple[str, ...], logits: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(K, 3, B, G, H, W) logits -> gates."""
    logits = logits.contiguous()
    gates = torch.empty_like(logits)
    with CPU_LOCK:
        scratch = torch.empty((numba.get_num_threads(), logits[0, 0, 0, 0].numel()))
        _forward(*_planes(logits, gates), logits.shape[-1], _horizontal(directions), scratch.numpy())
    return gates, (logits,)


def backward(
    directions: tuple[str, ...], needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None]:
    """The gradient of the logits."""
    (logits,) = saved
    out = torch.empty_like(logits)
    with CPU_LOCK:
        scratch = torch.empty((numba.get_num_threads(), 2, logits[0, 0, 0, 0].numel()))
        planes = _planes(grad.contiguous(), logits, out)
        _backward(*planes, logits.shape[-1], _horizontal(directions), scratch.numpy())
    return (out,)


def _planes(*tensors: torch.Tensor) -> list[np.ndarray]:
    """(K, 3, B, G, H, W) -> (K, 3, B G, H W)."""
    return [t.detach().flatten(4).flatten(2, 3).numpy() for t in tensors]


def _horizontal(directions: tuple[str, ...]) -> np.ndarray:
    return np.array([d in ("left_right", "right_left") for d in directions])
