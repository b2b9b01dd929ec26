"""Gate normalisation on the CPU: numba, float32, forward and backward, for every rule of `NORMALISATIONS`.

A rule makes a weight of every logit (its sigmoid, exp, tanh, or itself), 0 for a neighbour that does not exist; all but
"tanh" and "none" then divide the three weights of a position by S: their sum, or max(1, sum of magnitudes).

Each plane (one channel of one image and direction) is finished while it is in the cache; every pass over it touches few
arrays at a time, which is what lets LLVM vectorise it.
"""

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK
from kernels.vectormath import exp32, tanh32

from . import NORMALISATIONS, Normalisation
from .reference import SMALLEST_SUM

_SIGMOID, _SOFTMAX, _ABSOLUTE, _TANH, _NONE = range(len(NORMALISATIONS))
_ZERO, _ONE, _SMALLEST = np.float32(0), np.float32(1), np.float32(SMALLEST_SUM)
_jit = numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")


@_jit
def _fill_missing(planes, value, shape, horizontal):
    """Set planes[j] to `value` where gate j's neighbour lies outside the map; flat maps of `shape`, one or several."""
    first, last = planes[0], planes[2]
    height, width = shape
    if horizontal:
        for start in range(0, first.size, height * width):
            for i in range(start, start + width):
                first[i] = value
                last[i + (height - 1) * width] = value
    else:
        for i in range(0, first.size, width):
            first[i] = value
            last[i + width - 1] = value


@_jit
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@_jit
def weigh(logits, weights, inverse, rule, shape, horizontal):
    """Make the weights of flat logits, which are one plane of `shape` for each gate, or several one after the other.

    weights[j] is 0 where gate j's neighbour lies outside the map; inverse is 1 / S, or left alone if the rule does not
    divide by S.
    """
    for j in range(3):
        source, target = logits[j], weights[j]
        if rule == _SIGMOID:
            for i in range(target.size):
                target[i] = _ONE / (_ONE + exp32(-source[i]))
        elif rule == _TANH:
            for i in range(target.size):
                target[i] = tanh32(source[i])
        else:
            _copy(source, target)
    if rule == _SOFTMAX:
        _fill_missing(weights, np.float32(-np.inf), shape, horizontal)
        a, b, c = weights
        for i in range(inverse.size):
            inverse[i] = max(max(a[i], b[i]), c[i])  # for now the largest, until 1 / S takes its place
        for j in range(3):
            target = weights[j]
            for i in range(target.size):
                target[i] = exp32(target[i] - inverse[i])
    _fill_missing(weights, _ZERO, shape, horizontal)
    if rule < _TANH:
        _inverse_sum(weights, inverse, rule)


@_jit
def _inverse_sum(weights, inverse, rule):
    """inverse = 1 / S of the rule; S of a softmax is at least 1, so the clamp of the sigmoid's does nothing to it."""
    a, b, c = weights
    if rule == _ABSOLUTE:
        for i in range(inverse.size):
            inverse[i] = _ONE / max(abs(a[i]) + abs(b[i]) + abs(c[i]), _ONE)
    else:
        for i in range(inverse.size):
            inverse[i] = _ONE / max(a[i] + b[i] + c[i], _SMALLEST)


@_jit
def divide(weights, gates, inverse, rule):
    """gates[j] = weights[j] / S, in other memory; a plain copy under a rule that does not divide."""
    for j in range(3):
        source, target = weights[j], gates[j]
        if rule < _TANH:
            for i in range(inverse.size):
                target[i] = source[i] * inverse[i]
        else:
            _copy(source, target)


@_jit
def _three(planes, k, p):
    return planes[k, 0, p], planes[k, 1, p], planes[k, 2, p]


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
def _forward(logits, gates, rule, shape, horizontal, scratch):
    """logits, gates (K, 3, planes, H W); scratch (threads, H W)."""
    count, _, planes = gates.shape[:3]
    for item in numba.prange(count * planes):
        k, p = item // planes, item % planes
        mine, inverse = _three(gates, k, p), scratch[numba.get_thread_id()]
        weigh(_three(logits, k, p), mine, inverse, rule, shape, horizontal[k])
        if rule < _TANH:
            for j in range(3):
                target = mine[j]
                for i in range(inverse.size):
                    target[i] *= inverse[i]


@_jit
def _mean_gradient(dy, weights, inverse, mean, rule):
    """mean = sum_j grad_j gate_j, what dividing by S takes off each gradient; 0 where S is a constant."""
    for i in range(mean.size):
        mean[i] = _ZERO
    for j in range(3):
        source, weight = dy[j], weights[j]
        for i in range(mean.size):
            mean[i] += source[i] * weight[i] * inverse[i]
    if rule == _SIGMOID:
        for i in range(mean.size):
            mean[i] = mean[i] if inverse[i] < _ONE / _SMALLEST else _ZERO
    elif rule == _ABSOLUTE:
        a, b, c = weights
        for i in range(mean.size):
            mean[i] = mean[i] if abs(a[i]) + abs(b[i]) + abs(c[i]) >= _ONE else _ZERO


@_jit
def _divided(source, weight, inverse, mean, rule):
    """The gradient of one gate's logit in place of its weight, for the rules that divide by S."""
    if rule == _SIGMOID:
        for i in range(mean.size):
            weight[i] = (source[i] - mean[i]) * inverse[i] * weight[i] * (_ONE - weight[i])
    elif rule == _SOFTMAX:
        for i in range(mean.size):
            weight[i] = (source[i] - mean[i]) * inverse[i] * weight[i]
    else:
        for i in range(mean.size):
            signed = mean[i] if weight[i] > _ZERO else (-mean[i] if weight[i] < _ZERO else _ZERO)
            weight[i] = (source[i] - signed) * inverse[i]


@_jit
def logit_gradient(dy, weights, inverse, mean, rule, shape, horizontal):
    """Put the gradients of three planes of logits in place of their weights, given those of the gates.

    With w the weight and m the mean gradient of `_mean_gradient`: sigmoid (dy_j - m) w_j (1 - w_j) / S,
    softmax (dy_j - m) w_j / S, absolute (dy_j - m sign(w_j)) / S, tanh dy_j (1 - w_j w_j), none dy_j; and 0 where the
    neighbour does not exist.
    """
    if rule < _TANH:
        _mean_gradient(dy, weights, inverse, mean, rule)
    for j in range(3):
        source, weight = dy[j], weights[j]
        if rule < _TANH:
            _divided(source, weight, inverse, mean, rule)
        elif rule == _TANH:
            for i in range(mean.size):
                weight[i] = source[i] * (_ONE - weight[i] * weight[i])
        else:
            _copy(source, weight)
    if rule >= _ABSOLUTE:
        _fill_missing(weights, _ZERO, shape, horizontal)


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy", parallel=True)
def _backward(grad, logits, out, rule, shape, horizontal, scratch):
    """grad, logits, out (K, 3, planes, H W); scratch (threads, 2, H W)."""
    count, _, planes = out.shape[:3]
    for item in numba.prange(count * planes):
        k, p = item // planes, item % planes
        mine, inverse, mean = _three(out, k, p), scratch[numba.get_thread_id(), 0], scratch[numba.get_thread_id(), 1]
        weigh(_three(logits, k, p), mine, inverse, rule, shape, horizontal[k])
        logit_gradient(_three(grad, k, p), mine, inverse, mean, rule, shape, horizontal[k])


def rule_number(rule: str) -> int:
    """What the kernels call a rule."""
    return list(NORMALISATIONS).index(rule)


def forward(settings: Normalisation, logits: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(K, 3, B, G, H, W) logits -> gates."""
    logits = logits.contiguous()
    gates = torch.empty_like(logits)
    with CPU_LOCK:
        scratch = torch.empty((numba.get_num_threads(), logits[0, 0, 0, 0].numel()))
        _forward(*_planes(logits, gates), *_rules(settings, logits), scratch.numpy())
    return gates, (logits,)


def backward(
    settings: Normalisation, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None]:
    """The gradient of the logits."""
    (logits,) = saved
    out = torch.empty_like(logits)
    with CPU_LOCK:
        scratch = torch.empty((numba.get_num_threads(), 2, logits[0, 0, 0, 0].numel()))
        planes = _planes(grad.contiguous(), logits, out)
        _backward(*planes, *_rules(settings, logits), scratch.numpy())
    return (out,)


def _planes(*tensors: torch.Tensor) -> list[np.ndarray]:
    """(K, 3, B, G, H, W) -> (K, 3, B G, H W)."""
    return [t.detach().flatten(4).flatten(2, 3).numpy() for t in tensors]


def _rules(settings: Normalisation, logits: torch.Tensor) -> tuple[int, tuple[int, int], np.ndarray]:
    """The number of the rule, the shape of the map, and which directions are horizontal."""
    horizontal = np.array([d in ("left_right", "right_left") for d in settings.directions])
    return rule_number(settings.rule), (logits.shape[-2], logits.shape[-1]), horizontal
