"""Compile every CPU kernel once, or load it from numba's cache on disk.

`python -m kernels.warm` fills the cache from a process of its own, so that a server can go on answering meanwhile.
"""

import torch

from kernels.attention import attend, full, swin
from kernels.isotropic import diffuse
from kernels.propagation import DIRECTIONS, mix, normalise_gates, propagate
from kernels.slice_convolution import slice_convolve


def warm() -> None:
    """Run each CPU kernel forward and backward on a tiny input."""
    logits = torch.zeros(4, 3, 1, 1, 2, 2, requires_grad=True)
    x, lam = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(4, 1, 1, 2, 2, requires_grad=True)
    gates = normalise_gates(logits, DIRECTIONS, backend="cpu")
    propagate(x, gates, lam, backend="cpu").sum().backward()
    for channels in (1, 2):  # gates of every channel's own, and shared ones
        v = torch.zeros(1, channels, 2, 2, requires_grad=True)
        mix(v, logits, lam, lam, lam, torch.zeros(4), backend="cpu").sum().backward()
    diffuse(x, torch.zeros(1, 8, 1, 2, 2, requires_grad=True), steps=1, backend="cpu").sum().backward()
    slice_convolve(x, torch.zeros(4, 1, 1, 1, requires_grad=True), backend="cpu").sum().backward()
    for grid, pattern in ((2, 2), swin(2, 1)), ((9, 16), full()):  # tiles that share no keys, and tiles that do
        q, k, v = (torch.zeros(1, *grid, 1, 16, requires_grad=True) for _ in range(3))
        bias = torch.zeros(pattern.bias_shape(1, grid), requires_grad=True)
        attend(q, k, v, pattern, bias, backend="cpu").sum().backward()


if __name__ == "__main__":
    warm()
