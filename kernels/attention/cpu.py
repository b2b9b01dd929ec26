"""Neighbourhood attention on the CPU: prepares memory and work lists, and calls the numba kernels of `cpu_kernels`."""

from functools import lru_cache

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK
from kernels.vectormath import WIDTH

from . import parts
from .cpu_kernels import Tensors, forward_kernel, key_kernel, query_kernel
from .cpu_plan import LANES, Layout, layout
from .cpu_tables import room_size
from .parts import Attention, Gradients, Maybe

#: Fewer tiles than this are cut smaller, though tiles that share no keys need one pass less: they could keep few cores
#: busy. It does not depend on the number of cores, so that results do not either.
SPREAD = 16
_NOTHING = np.empty(0, np.float32)
_NO_STRIDES = (0, 0, 0)


class _Cpu:
    """The engine that `parts` asks for."""

    def attend(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:  # fmt: skip
        """Write the output and the logsumexp of every query."""
        plan, channels = _layout(settings, q, k, "query"), q.shape[4]
        tensors, strides = _memory(q, k, v, out)
        with CPU_LOCK:
            forward_kernel(
                tensors, strides, plan, _by_head(bias, q), _by_token(lse), channels, np.float32(settings.scale),
                *_scratch(plan, channels),
            )  # fmt: skip

    def differentiate(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Maybe, out: torch.Tensor,
        lse: torch.Tensor, grad: torch.Tensor, gradients: Gradients,
    ) -> None:  # fmt: skip
        """Write the gradients that are asked for."""
        channels, scale = q.shape[4], np.float32(settings.scale)
        plan = _layout(settings, q, k, "both")
        if not plan.apart or len(plan.items) * q.shape[3] < SPREAD:
            plan = _layout(settings, q, k, "query")
        tensors, strides = _memory(q, k, v, out, grad, gradients.q, gradients.k, gradients.v)
        table, levels = _by_head(bias, q), _by_token(lse)
        delta = torch.empty_like(lse)
        dbias = q.new_empty(q.shape[3] * plan.chunks if gradients.bias is not None else 1, max(1, table.shape[1]))
        wanted = tuple(g is not None for g in (gradients.q, gradients.k, gradients.v, gradients.bias))
        here = wanted if plan.apart else (wanted[0], False, False, wanted[3])
        with CPU_LOCK:
            query_kernel(
                tensors, strides, plan, table, levels, _by_token(delta), dbias.numpy(), here, channels, scale,
                *_scratch(plan, channels),
            )  # fmt: skip
        if gradients.bias is not None:
            torch.sum(dbias.view(q.shape[3], plan.chunks, -1), 1, out=gradients.bias.view(q.shape[3], -1))
        if plan.apart or not (wanted[1] or wanted[2]):
            return
        plan = _layout(settings, q, k, "key")
        with CPU_LOCK:
            key_kernel(
                tensors, strides, plan, table, levels, _by_token(delta), wanted, channels, scale,
                *_scratch(plan, channels),
            )  # fmt: skip


_ENGINE = _Cpu()


def forward(
    settings: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: Maybe,
    extra_k: Maybe,
    extra_v: Maybe,
) -> tuple[torch.Tensor, tuple[Maybe, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs."""
    return parts.forward(_ENGINE, settings, q, k, v, bias, extra_k, extra_v)


def backward(
    settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[Maybe, ...]
) -> tuple[Maybe, ...]:
    """Gradients of q, k, v, the bias and the extra keys and values; None for those not needed."""
    return parts.backward(_ENGINE, settings, needs, grad, saved)


def _layout(settings: Attention, q: torch.Tensor, k: torch.Tensor, tiles: str) -> Layout:
    batch, height, width, heads, channels = q.shape
    return layout(settings.pattern, (height, width), (k.shape[1], k.shape[2]), batch, heads, channels, tiles)


def _memory(*tensors: Maybe) -> tuple[Tensors, np.ndarray]:
    """Tensors (B, H, W, heads, d) as their memory in one axis, and their strides (tensor, (image, token, head)).

    In this form numba compiles one version of a kernel, whatever views it is given.
    """
    memory, strides = [_NOTHING] * len(Tensors._fields), [_NO_STRIDES] * len(Tensors._fields)
    for n, tensor in enumerate(tensors):
        if tensor is None:
            continue
        t = tensor
        if t.stride(4) != 1 or (t.shape[1] > 1 and t.stride(1) != t.shape[2] * t.stride(2)):
            t = t.contiguous()
        image, _, token, head, _ = t.stride()
        extent = 1 + sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True))
        memory[n] = t.as_strided((extent,), (1,)).numpy()
        strides[n] = (image, token, head)
    return Tensors(*memory), np.array(strides)


def _by_head(bias: Maybe, q: torch.Tensor) -> np.ndarray:
    """The bias as (heads, entries), without entries if there is none."""
    return np.empty((q.shape[3], 0), np.float32) if bias is None else bias.detach().contiguous().flatten(1).numpy()


def _by_token(numbers: torch.Tensor) -> np.ndarray:
    """(heads, B, H, W) -> (heads, B, N)."""
    return numbers.flatten(2).numpy()


def _scratch(plan: Layout, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Every thread's tables, and its places of the own and the other side of a tile; only for holders of CPU_LOCK."""
    depth = -(-channels // WIDTH) * WIDTH
    return _zeros(numba.get_num_threads(), room_size(depth, plan.lanes, plan.block), max(plan.block, LANES))


@lru_cache(maxsize=4)
def _zeros(threads: int, floats: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory that is kept: lanes that a tile leaves empty are computed, too, and what lies in fresh memory may
    be denormal numbers, which are a hundred times slower.
    """
    return np.zeros((threads, floats), np.float32), np.zeros((threads, 3, 8, places), np.int32)
