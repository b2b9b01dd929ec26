"""Slice-by-slice convolution on the CPU: numba, float32, forward and backward.

A pass runs on a copy of the map in the frame of its scan, (B, lines, C, cross), whose lines have zeros on both sides.
The sum over C k inputs of a line is a small matrix product: eight output channels of one vector of positions are
accumulated in registers, while the inputs are read at k shifts of the same line, so nothing is unfolded. A position
takes 2 C C k operations, so what the copies move does not count. Images run in parallel; the lines of one image do not.

Backward: with E_t the gradient of X'_t and G_t = E_t where the ReLU is active, lines in the opposite order,

    E_{t-1}[i, n] += sum over o, j of weight[o, i, j] G_t[o, n - j + h],

which is the same product with the weight transposed and mirrored; dx = E, and
dweight[o, i, j] = sum over images, lines and n of G_t[o, n] X'_{t-1}[i, n + j - h], one product over all lines.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F

from kernels.backends import CPU_LOCK
from kernels.propagation.reference import to_image_frame, to_scan_frame
from kernels.vectormath import WIDTH, add, load, splat, store, times, zeros

from . import Slices

#: Output channels whose sums are in registers at the same time.
ROWS = 8

_ZERO = np.float32(0)
_jit = numba.njit(cache=True, fastmath={"contract"})


@_jit
def _product(line, stride, weight, blocks, channels, size, out, vectors):
    """out[o, n] = sum over i, j of weight[o, i, j] line[i, n + j], all flat.

    line: `channels` rows of `stride`; weight as `_packed`; out: ROWS blocks rows of `vectors` WIDTH values.
    """
    for b in range(blocks):
        for n in range(vectors):
            a0, a1, a2, a3 = zeros(), zeros(), zeros(), zeros()
            a4, a5, a6, a7 = zeros(), zeros(), zeros(), zeros()
            for i in range(channels):
                for j in range(size):
                    v = load(line, i * stride + n * WIDTH + j)
                    w = ((b * channels + i) * size + j) * ROWS
                    a0 = add(a0, times(splat(weight[w]), v))
                    a1 = add(a1, times(splat(weight[w + 1]), v))
                    a2 = add(a2, times(splat(weight[w + 2]), v))
                    a3 = add(a3, times(splat(weight[w + 3]), v))
                    a4 = add(a4, times(splat(weight[w + 4]), v))
                    a5 = add(a5, times(splat(weight[w + 5]), v))
                    a6 = add(a6, times(splat(weight[w + 6]), v))
                    a7 = add(a7, times(splat(weight[w + 7]), v))
            at, step = (b * ROWS * vectors + n) * WIDTH, vectors * WIDTH
            store(out, at, a0)
            store(out, at + step, a1)
            store(out, at + 2 * step, a2)
            store(out, at + 3 * step, a3)
            store(out, at + 4 * step, a4)
            store(out, at + 5 * step, a5)
            store(out, at + 6 * step, a6)
            store(out, at + 7 * step, a7)


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _forward(state, weight, active, given, cross, size, products):
    """state (B, lines, C, stride) in place; active (B, lines, C, cross): read if it is `given`, else written."""
    batch, lines, channels, stride = state.shape
    blocks, vectors, border = products.shape[1] // ROWS, products.shape[2] // WIDTH, size // 2
    for b in numba.prange(batch):
        product = products[b]
        for t in range(1, lines):
            _product(state[b, t - 1].reshape(-1), stride, weight, blocks, channels, size, product.reshape(-1), vectors)
            for o in range(channels):
                line, convolved, passed = state[b, t, o], product[o], active[b, t, o]
                if not given:
                    for n in range(cross):
                        passed[n] = convolved[n] > _ZERO
                for n in range(cross):
                    line[border + n] += convolved[n] if passed[n] else _ZERO


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _backward(grad, weight, active, cross, size, products, passed_back):
    """grad (B, lines, C, stride): the gradient of the result, which becomes that of the input, in place.

    weight: transposed and mirrored; passed_back (B, C, stride): zeros, room for G.
    """
    batch, lines, channels, stride = grad.shape
    blocks, vectors, border = products.shape[1] // ROWS, products.shape[2] // WIDTH, size // 2
    for b in numba.prange(batch):
        product, masked = products[b], passed_back[b]
        for t in range(lines - 1, 0, -1):
            for o in range(channels):
                line, passed, target = grad[b, t, o], active[b, t, o], masked[o]
                for n in range(cross):
                    target[border + n] = line[border + n] if passed[n] else _ZERO
            _product(masked.reshape(-1), stride, weight, blocks, channels, size, product.reshape(-1), vectors)
            for i in range(channels):
                line, convolved = grad[b, t - 1, i], product[i]
                for n in range(cross):
                    line[border + n] += convolved[n]


def forward(
    slices: Slices, x: torch.Tensor, weight: torch.Tensor, active: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """x (B, C, H, W), weight (K, C, C, k), active (K, B or 1, C, H, W) bool or None -> (B, C, H, W)."""
    weight, x = weight.detach(), x.detach()
    states, masks = [], []
    for k, direction in enumerate(slices.directions):
        state = _padded(_to_lines(x, direction), weight.shape[-1])
        batch, lines, channels, _ = state.shape
        cross = x.shape[-2] * x.shape[-1] // lines
        mask = torch.zeros((batch, lines, channels, cross), dtype=torch.bool)
        if active is not None:
            mask.copy_(_to_lines(active[k], direction))
        with CPU_LOCK:
            _forward(
                state.numpy(), _packed(weight[k]), mask.numpy(), active is not None, cross, weight.shape[-1],
                _products(state, cross),
            )  # fmt: skip
        x = _from_lines(_inside(state, cross, weight.shape[-1]), direction)
        states.append(state)
        masks.append(mask)
    return x.clone(memory_format=torch.contiguous_format), (weight, *states, *masks)


def backward(
    slices: Slices, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x and weight that `needs` asks for."""
    weight, count = saved[0], len(slices.directions)
    states, masks = saved[1 : 1 + count], saved[1 + count :]
    size = weight.shape[-1]
    weight_grad = torch.empty_like(weight) if needs[1] else None
    for k in range(count - 1, -1, -1):
        state, mask, direction = states[k], masks[k], slices.directions[k]
        cross = mask.shape[-1]
        lines = _padded(_to_lines(grad, direction), size)
        room = torch.zeros((lines.shape[0], *lines.shape[2:]))
        with CPU_LOCK:
            _backward(
                lines.numpy(), _packed(weight[k].transpose(0, 1).flip(-1)), mask.numpy(), cross, size,
                _products(lines, cross), room.numpy(),
            )  # fmt: skip
        inside = _inside(lines, cross, size)
        if weight_grad is not None:
            weight_grad[k] = _weight_gradient((inside * mask)[:, 1:], state[:, :-1], size)
        grad = _from_lines(inside, direction)
    return grad.contiguous() if needs[0] else None, weight_grad, None


def activity(slices: Slices, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Where the ReLU of every pass lets its argument through: (K, B, C, H, W) bool."""
    _, saved = forward(slices, x, weight, None)
    masks = saved[1 + len(slices.directions) :]
    return torch.stack([_from_lines(mask, d) for mask, d in zip(masks, slices.directions, strict=True)])


def _weight_gradient(passed: torch.Tensor, before: torch.Tensor, size: int) -> torch.Tensor:
    """(B, lines, C, cross) and the padded lines before them, (B, lines, C, stride) -> (C, C, size)."""
    channels, cross = passed.shape[2:]
    shifted = before.unfold(-1, cross, 1)[:, :, :, :size].permute(2, 3, 0, 1, 4).flatten(2).flatten(0, 1)
    product = passed.transpose(1, 2).transpose(0, 1).flatten(1) @ shifted.T
    return product.unflatten(1, (channels, size))


def _to_lines(maps: torch.Tensor, direction: str) -> torch.Tensor:
    """(B, C, H, W) in image coordinates -> (B, lines, C, cross)."""
    return to_scan_frame(maps, direction).transpose(1, 2)


def _from_lines(lines: torch.Tensor, direction: str) -> torch.Tensor:
    """The inverse of `_to_lines`."""
    return to_image_frame(lines.transpose(1, 2), direction)


def _padded(lines: torch.Tensor, size: int) -> torch.Tensor:
    """Half a kernel of zeros before each line, and after it zeros up to whole vectors and half a kernel."""
    border = size // 2
    return F.pad(lines, (border, -lines.shape[-1] % WIDTH + border)).contiguous()


def _inside(state: torch.Tensor, cross: int, size: int) -> torch.Tensor:
    return state[..., size // 2 : size // 2 + cross]


def _packed(weight: torch.Tensor) -> np.ndarray:
    """(out, in, k) -> flat (blocks of ROWS outputs, in, k, ROWS), with zeros for the outputs that fill the last."""
    filled = F.pad(weight, (0, 0, 0, 0, 0, -weight.shape[0] % ROWS))
    return filled.unflatten(0, (-1, ROWS)).permute(0, 2, 3, 1).flatten().numpy()


def _products(state: torch.Tensor, cross: int) -> np.ndarray:
    """Room for the product of one line of each image: (B, C in whole blocks, cross in whole vectors)."""
    batch, _, channels, _ = state.shape
    return np.empty((batch, channels + -channels % ROWS, cross + -cross % WIDTH), np.float32)
