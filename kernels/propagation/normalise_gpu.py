"""Gate normalisation in Triton: three logits in, three gates out, one pass; fp32 arithmetic for every storage dtype.

The rule (`NORMALISATIONS`, by number) is known at compile time; normalise_cpu.py has its formulas.
"""

import torch
import triton
import triton.language as tl

from . import NORMALISATIONS, Normalisation
from .reference import SMALLEST_SUM

_SMALLEST: tl.constexpr = tl.constexpr(SMALLEST_SUM)
_SIGMOID: tl.constexpr = tl.constexpr(0)
_SOFTMAX: tl.constexpr = tl.constexpr(1)
_ABSOLUTE: tl.constexpr = tl.constexpr(2)
_TANH: tl.constexpr = tl.constexpr(3)
_BLOCK = 256


@triton.jit
def _tanh(x):
    """tanh; below 0.625 by Cephes' polynomial, because 1 - exp would cancel there."""
    inverse = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - inverse) / (1.0 + inverse)
    square = x * x
    poly = ((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square
    small = ((poly + 1.33314422036e-1) * square - 3.33332819422e-1) * square * x + x
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x > 0, large, -large))


@triton.jit
def _weights(logits, at, stride, inside, first, last, RULE: tl.constexpr):
    """`weigh`, of logits in memory."""
    l0 = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    l1 = tl.load(logits + at + stride, mask=inside, other=0.0).to(tl.float32)
    l2 = tl.load(logits + at + 2 * stride, mask=inside, other=0.0).to(tl.float32)
    return weigh(l0, l1, l2, first, last, RULE)


@triton.jit
def weigh(s0, s1, s2, first, last, RULE: tl.constexpr):
    """From logits the three weights, 0 for a neighbour that does not exist, and their sum, or that of magnitudes."""
    if RULE == _SIGMOID:
        s0, s1, s2 = tl.sigmoid(s0), tl.sigmoid(s1), tl.sigmoid(s2)
    elif RULE == _SOFTMAX:
        low = tl.where(first, s1, s0)
        high = tl.where(last, s1, s2)
        largest = tl.maximum(tl.maximum(low, s1), high)
        # A missing neighbour takes the middle one's place, so that its exp cannot overflow; it is cleared below.
        s0, s1, s2 = tl.exp(low - largest), tl.exp(s1 - largest), tl.exp(high - largest)
    elif RULE == _TANH:
        s0, s1, s2 = _tanh(s0), _tanh(s1), _tanh(s2)
    s0 = tl.where(first, 0.0, s0)
    s2 = tl.where(last, 0.0, s2)
    if RULE == _ABSOLUTE:
        return s0, s1, s2, tl.abs(s0) + tl.abs(s1) + tl.abs(s2)
    else:
        return s0, s1, s2, s0 + s1 + s2


@triton.jit
def inverse_of(total, RULE: tl.constexpr):
    """1 / S: the sum, kept from 0 (a softmax's is at least 1), or max(1, sum of magnitudes)."""
    if RULE == _ABSOLUTE:
        return 1.0 / tl.maximum(total, 1.0)
    else:
        return 1.0 / tl.maximum(total, _SMALLEST)


@triton.jit
def _depends(total, RULE: tl.constexpr):
    """Whether S is the sum, and not what it is clamped to."""
    if RULE == _ABSOLUTE:
        return total >= 1.0
    else:
        return total > _SMALLEST


@triton.jit
def _positions(horizontal, planes, height, width, BLOCK: tl.constexpr):
    """Element offsets of gate 0 at BLOCK positions of a plane; the stride between gates; and who is at which border."""
    item = tl.program_id(0)
    k, plane = (item // planes).to(tl.int64), item % planes
    count = height * width
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cross = tl.where(tl.load(horizontal + k) != 0, i // width, i % width)
    last = tl.where(tl.load(horizontal + k) != 0, height, width) - 1
    return (k * 3 * planes + plane) * count + i, planes.to(tl.int64) * count, i < count, cross == 0, cross == last


@triton.jit
def normalise(logits, gates, horizontal, planes, height, width, RULE: tl.constexpr, BLOCK: tl.constexpr):
    """gates = the rule's weights over their S."""
    at, stride, inside, first, last = _positions(horizontal, planes, height, width, BLOCK)
    s0, s1, s2, total = _weights(logits, at, stride, inside, first, last, RULE)
    if RULE < _TANH:
        inverse = inverse_of(total, RULE)
        s0, s1, s2 = s0 * inverse, s1 * inverse, s2 * inverse
    tl.store(gates + at, s0.to(gates.dtype.element_ty), mask=inside)
    tl.store(gates + at + stride, s1.to(gates.dtype.element_ty), mask=inside)
    tl.store(gates + at + 2 * stride, s2.to(gates.dtype.element_ty), mask=inside)


@triton.jit
def _gradient(d, s, mean, inverse, RULE: tl.constexpr):
    """The gradient of one logit from that of its gate."""
    if RULE == _SIGMOID:
        return (d - mean) * inverse * s * (1 - s)
    elif RULE == _SOFTMAX:
        return (d - mean) * inverse * s
    elif RULE == _ABSOLUTE:
        return (d - tl.where(s > 0, mean, tl.where(s < 0, -mean, 0.0))) * inverse
    elif RULE == _TANH:
        return d * (1 - s * s)
    else:
        return d


@triton.jit
def logit_gradients(d0, d1, d2, s0, s1, s2, total, inverse, first, last, RULE: tl.constexpr):
    """The gradients of three logits from those of their gates; the weights and their sum are from `weigh`."""
    mean = (d0 * s0 + d1 * s1 + d2 * s2) * inverse
    # Where S is clamped it is a constant; at 1 itself torch's clamp, the reference's, lets the gradient pass.
    mean = tl.where(_depends(total, RULE), mean, 0.0)
    d0 = tl.where(first, 0.0, _gradient(d0, s0, mean, inverse, RULE))
    d1 = _gradient(d1, s1, mean, inverse, RULE)
    d2 = tl.where(last, 0.0, _gradient(d2, s2, mean, inverse, RULE))
    return d0, d1, d2


@triton.jit
def normalise_gradient(grad, logits, out, horizontal, planes, height, width, RULE: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of the logits; the mean gradient is subtracted where S is not a constant."""
    at, stride, inside, first, last = _positions(horizontal, planes, height, width, BLOCK)
    s0, s1, s2, total = _weights(logits, at, stride, inside, first, last, RULE)
    inverse = inverse_of(total, RULE)
    d0 = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    d1 = tl.load(grad + at + stride, mask=inside, other=0.0).to(tl.float32)
    d2 = tl.load(grad + at + 2 * stride, mask=inside, other=0.0).to(tl.float32)
    d0, d1, d2 = logit_gradients(d0, d1, d2, s0, s1, s2, total, inverse, first, last, RULE)
    tl.store(out + at, d0.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + stride, d1.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + 2 * stride, d2.to(out.dtype.element_ty), mask=inside)


def forward(settings: Normalisation, logits: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(K, 3, B, G, H, W) logits -> gates."""
    logits = logits.contiguous()
    gates = torch.empty_like(logits)
    grid, sizes = _launch(logits)
    table = _horizontal(settings.directions, logits.device)
    normalise[grid](logits, gates, table, *sizes, RULE=rule_number(settings.rule), BLOCK=_BLOCK)
    return gates, (logits,)


def backward(
    settings: Normalisation, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None]:
    """The gradient of the logits."""
    (logits,) = saved
    out = torch.empty_like(logits)
    grid, sizes = _launch(logits)
    table = _horizontal(settings.directions, logits.device)
    rule = rule_number(settings.rule)
    normalise_gradient[grid](grad.contiguous(), logits, out, table, *sizes, RULE=rule, BLOCK=_BLOCK)
    return (out,)


def rule_number(rule: str) -> int:
    """The compile-time option RULE of a name out of `NORMALISATIONS`."""
    return list(NORMALISATIONS).index(rule)


def _launch(logits: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int, int]]:
    directions, _, batch, groups, height, width = logits.shape
    planes = batch * groups
    return (directions * planes, triton.cdiv(height * width, _BLOCK)), (planes, height, width)


def _horizontal(directions: tuple[str, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([d in ("left_right", "right_left") for d in directions], dtype=torch.int32, device=device)
