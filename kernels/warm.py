"""Compile every CPU kernel once, or load it from numba's cache on disk.

`python -m kernels.warm` fills the cache from a process of its own, so that a server can go on answering meanwhile.
"""

import torch

from kernels.attention import attend, swin
from kernels.propagation import DIRECTIONS, normalise_gates, propagate


def warm() -> None:
    """Run each CPU kernel forward and backward on a tiny input."""
    logits = torch.zeros(4, 3, 1, 1, 2, 2, requires_grad=True)
    x, lam = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(4, 1, 1, 2, 2, requires_grad=True)
    gates = normalise_gates(logits, DIRECTIONS, backend="cpu")
    propagate(x, gates, lam, backend="cpu").sum().backward()
    q, k, v = (torch.zeros(1, 2, 2, 1, 16, requires_grad=True) for _ in range(3))
    bias = torch.zeros(1, 3, 3, requires_grad=True)
    attend(q, k, v, swin(2, 1), bias, backend="cpu").sum().backward()


if __name__ == "__main__":
    warm()
