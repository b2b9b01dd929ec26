"""Gate normalisation in Triton: three logits in, three gates out, one pass; fp32 arithmetic for every storage dtype."""

import torch
import triton
import triton.language as tl

from .reference import SMALLEST_SUM

_SMALLEST: tl.constexpr = tl.constexpr(SMALLEST_SUM)
_BLOCK = 256


@triton.jit
def _weights(logits, at, stride, inside, first, last):
    """The three sigmoids, 0 for the neighbour that does not exist, and their clamped sum."""
    s0 = tl.sigmoid(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32))
    s1 = tl.sigmoid(tl.load(logits + at + stride, mask=inside, other=0.0).to(tl.float32))
    s2 = tl.sigmoid(tl.load(logits + at + 2 * stride, mask=inside, other=0.0).to(tl.float32))
    s0 = tl.where(first, 0.0, s0)
    s2 = tl.where(last, 0.0, s2)
    return s0, s1, s2, s0 + s1 + s2


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
def normalise(logits, gates, horizontal, planes, height, width, BLOCK: tl.constexpr):
    """gates = sigmoid / sum over the neighbours that exist."""
    at, stride, inside, first, last = _positions(horizontal, planes, height, width, BLOCK)
    s0, s1, s2, total = _weights(logits, at, stride, inside, first, last)
    inverse = 1.0 / tl.maximum(total, _SMALLEST)
    tl.store(gates + at, (s0 * inverse).to(gates.dtype.element_ty), mask=inside)
    tl.store(gates + at + stride, (s1 * inverse).to(gates.dtype.element_ty), mask=inside)
    tl.store(gates + at + 2 * stride, (s2 * inverse).to(gates.dtype.element_ty), mask=inside)


@triton.jit
def normalise_gradient(grad, logits, out, horizontal, planes, height, width, BLOCK: tl.constexpr):
    """out = (grad - sum_j grad_j gate_j) s (1 - s) / S; the subtracted sum is 0 where S was clamped."""
    at, stride, inside, first, last = _positions(horizontal, planes, height, width, BLOCK)
    s0, s1, s2, total = _weights(logits, at, stride, inside, first, last)
    inverse = 1.0 / tl.maximum(total, _SMALLEST)
    d0 = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    d1 = tl.load(grad + at + stride, mask=inside, other=0.0).to(tl.float32)
    d2 = tl.load(grad + at + 2 * stride, mask=inside, other=0.0).to(tl.float32)
    mean = tl.where(total > _SMALLEST, (d0 * s0 + d1 * s1 + d2 * s2) * inverse, 0.0)
    tl.store(out + at, ((d0 - mean) * inverse * s0 * (1 - s0)).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + stride, ((d1 - mean) * inverse * s1 * (1 - s1)).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + 2 * stride, ((d2 - mean) * inverse * s2 * (1 - s2)).to(out.dtype.element_ty), mask=inside)


def forward(directions: tuple[str, ...], logits: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(K, 3, B, G, H, W) logits -> gates."""
    logits = logits.contiguous()
    gates = torch.empty_like(logits)
    grid, sizes = _launch(logits)
    normalise[grid](logits, gates, _horizontal(directions, logits.device), *sizes, BLOCK=_BLOCK)
    return gates, (logits,)


def backward(
    directions: tuple[str, ...], needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None]:
    """The gradient of the logits."""
    (logits,) = saved
    out = torch.empty_like(logits)
    grid, sizes = _launch(logits)
    table = _horizontal(directions, logits.device)
    normalise_gradient[grid](grad.contiguous(), logits, out, table, *sizes, BLOCK=_BLOCK)
    return (out,)


def _launch(logits: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int, int]]:
    directions, _, batch, groups, height, width = logits.shape
    planes = batch * groups
    return (directions * planes, triton.cdiv(height * width, _BLOCK)), (planes, height, width)


def _horizontal(directions: tuple[str, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([d in ("left_right", "right_left") for d in directions], dtype=torch.int32, device=device)
