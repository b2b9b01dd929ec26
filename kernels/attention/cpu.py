"""Neighbourhood attention on the CPU: lists each cell's members and calls the numba kernels of `cpu_kernels`."""

import math
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import torch

from kernels.backends import CPU_LOCK

from . import Attention
from .cpu_kernels import LANES, backward_kernel, forward_kernel
from .pattern import Cells, Pattern


class Members(NamedTuple):
    """The queries, or the keys, of every cell that lie on the map: cell n has those from start[n] to start[n + 1].

    A token is a position row * W + col. The bias of a pair is at relative[query] - relative[key] of a head's table.
    """

    start: np.ndarray
    token: np.ndarray
    relative: np.ndarray


class Plan(NamedTuple):
    """The members of a pattern's cells on one grid, and how many the largest cell has."""

    queries: Members
    keys: Members
    most_queries: int
    most_keys: int


def forward(
    settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs."""
    batch, height, width, heads, channels = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty(batch, heads, height * width)
    plan = _plan(settings.pattern, (height, width))
    memory, strides = _tokens(q, k, v, out)
    scratch = _scratch(plan, channels, rows_of_keys=2, rows_of_queries=1, columns=1, weights=1)
    members, scale = (*plan.queries, *plan.keys), np.float32(settings.scale)
    with CPU_LOCK:
        forward_kernel(*memory, strides, lse.numpy(), _by_head(bias, heads), *members, channels, scale, scratch)
    return out, (q, k, v, bias, out, lse)


def backward(
    settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v and the bias; None for those not needed."""
    q, k, v, bias, out, lse = saved
    batch, height, width, heads, channels = q.shape
    plan, table = _plan(settings.pattern, (height, width)), _by_head(bias, heads)
    # Cells run at the same time, so each has a bias gradient of its own; they are added in a fixed order at the end.
    dbias = q.new_empty(batch * (len(plan.queries.start) - 1), *table.shape)
    dq, dk, dv = (q.new_empty(q.shape if needed else (0,) * 5) for needed in needs[:3])
    memory, strides = _tokens(q, k, v, out, grad, dq, dk, dv)
    scratch = _scratch(plan, channels, rows_of_keys=4, rows_of_queries=3, columns=2, weights=2)
    wanted, members, scale = np.array(needs), (*plan.queries, *plan.keys), np.float32(settings.scale)
    with CPU_LOCK:
        backward_kernel(*memory, dbias.numpy(), wanted, strides, lse.numpy(), table, *members, channels, scale, scratch)
    grads = (dq, dk, dv, dbias.sum(0).view(bias.shape) if needs[3] else None)
    return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def _tokens(*tensors: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """Tensors (B, H, W, heads, d) as their memory in one axis, and their strides (tensor, (image, token, head)).

    In this form numba compiles one version of a kernel, whatever views it is given.
    """
    memory, strides = [], []
    for tensor in tensors:
        t = tensor.detach().flatten(1, 2)
        if t.stride(3) != 1:
            t = t.contiguous()
        if t.is_contiguous():
            memory.append(t.view(-1).numpy())
        else:
            extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            memory.append(t.as_strided((extent,), (1,)).numpy())
        strides.append(t.stride()[:3])
    return memory, np.array(strides)


def _by_head(bias: torch.Tensor | None, heads: int) -> np.ndarray:
    """The bias as (heads, entries), without entries if there is none."""
    return np.empty((heads, 0), np.float32) if bias is None else bias.detach().contiguous().flatten(1).numpy()


def _scratch(
    plan: Plan, channels: int, rows_of_keys: int, rows_of_queries: int, columns: int, weights: int
) -> np.ndarray:
    """Memory for the tables of a cell in every thread, given how many there are of each kind, and for two lane sums."""
    keys, queries = math.ceil(plan.most_keys / 4) * 4, min(LANES, math.ceil(plan.most_queries / 4) * 4)
    rows = math.ceil(channels / LANES) * (rows_of_keys * keys + rows_of_queries * queries)
    rows += columns * math.ceil(channels / 4) * 4 + weights * keys + 2
    return torch.empty(numba.get_num_threads(), rows, LANES, dtype=torch.float32, device="cpu").numpy()


@lru_cache(maxsize=64)
def _plan(pattern: Pattern, grid: tuple[int, int]) -> Plan:
    rows, cols = pattern.rows.cells(grid[0]), pattern.cols.cells(grid[1])
    width = 2 * pattern.cols.kernel - 1
    centre = (pattern.rows.kernel - 1) * width + pattern.cols.kernel - 1
    queries = _cross(_query_slots(rows), _query_slots(cols), grid, width)
    keys = _cross(_key_slots(rows), _key_slots(cols), grid, width)
    most_queries, most_keys = (int(np.diff(members.start).max()) for members in (queries, keys))
    return Plan(queries._replace(relative=queries.relative + np.uint32(centre)), keys, most_queries, most_keys)


def _query_slots(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """(cells, slots): the position of every query slot, and its distance in steps from the cell's key slot 0."""
    first, key, step = (cells.table[:, [i]] for i in range(3))
    slots = np.arange(cells.queries)
    return first + step * slots, (first - key) // step + slots


def _key_slots(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """(cells, slots): the position of every key slot, and its distance in steps from key slot 0."""
    _, key, step = (cells.table[:, [i]] for i in range(3))
    slots = np.arange(cells.keys)
    return key + step * slots, np.broadcast_to(slots, (len(key), cells.keys))


def _cross(
    rows: tuple[np.ndarray, np.ndarray], cols: tuple[np.ndarray, np.ndarray], grid: tuple[int, int], width: int
) -> Members:
    """Cross the slots of the rows with those of the columns and drop what lies outside the map."""
    (row, down), (col, right) = ([a[:, None, :, None] for a in rows], [a[None, :, None, :] for a in cols])
    inside = (row >= 0) & (row < grid[0]) & (col >= 0) & (col < grid[1])
    members = inside.reshape(-1, inside.shape[2] * inside.shape[3]).sum(1)
    start = np.concatenate([[0], np.cumsum(members)])
    return Members(start, (row * grid[1] + col)[inside], (down * width + right)[inside].astype(np.uint32))
