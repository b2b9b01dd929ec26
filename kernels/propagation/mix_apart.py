"""The fused mixer on the CPU where no map is shared by channels and the rule is the sigmoid's, as in GSPN's own models.

A run is as many planes of one image as fill the level 1 cache, or one large plane. Each direction of a run is taken
whole: gates and lambda v into a scratch, the scans of its planes there, and the merge; and on the way back the adjoint
scans and all gradients. So every map is read once in the forward pass, and once more in the backward pass, which keeps
nothing but its inputs and writes every gradient once.
"""

import numba
import numpy as np
import torch

from kernels.vectormath import WIDTH

from . import Mix, Scan
from .cpu import adjoint_columns, adjoint_lines, arrays, rules, scan_columns, scan_lines, scratch_lines
from .mix_flat import (
    ADJOINT,
    GATES,
    GRAD,
    ROWS_BACKWARD,
    ROWS_FORWARD,
    SOURCE,
    STATE,
    logit_gradients,
    map_gradients,
    merge,
    neighbour_masks,
    prepare,
    prepare_back,
)
from .mix_narrow import adjoint_narrow, scan_narrow

#: Positions of a run of small planes: its scratch and maps fit the level 1 cache.
_RUN = 1024

_jit = numba.njit(cache=True, fastmath={"contract"})


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _forward(v, logits, lam, u, skip, weight, out, masks, runs, shape, margin, horizontal, reverse, chunk,
             scratch, turned):  # fmt: skip
    """Maps are (rows, C H W), as `mix_flat.prepare` takes them; every plane is narrow."""
    batch, count, (height, width) = v.shape[0], len(weight), shape
    plane = height * width
    channels = v.shape[1] // plane
    for item in numba.prange(batch * runs):
        b, run, thread = item // runs, item % runs, numba.get_thread_id()
        begin, end = run * channels // runs, (run + 1) * channels // runs
        at, size, mine = begin * plane, (end - begin) * plane, scratch[thread]
        for k in range(count):
            row, first = k * batch + b, 3 * k * batch + b
            prepare(logits, first, first + batch, first + 2 * batch, masks[k], lam, row, v, b, at, mine, margin, size)
            for i in range(end - begin):
                scan_narrow(mine, margin + i * plane, height, width, horizontal[k], reverse[k], chunk, turned[thread])
            merge(u, skip, row, v, b, at, weight[k], out, 1 if k == 0 else 0, mine, margin, size)


@_jit
def _map(scratch, row, start, shape):
    return scratch[row, start : start + shape[0] * shape[1]].reshape(shape)


@_jit
def _there_and_back(scratch, start, shape, horizontal, reverse, chunk, strips, columns, rows):
    """h and E of one plane of any size at `start` of the scratch."""
    g0, g1 = _map(scratch, GATES, start, shape), _map(scratch, GATES + 1, start, shape)
    g2 = _map(scratch, GATES + 2, start, shape)
    x, h = _map(scratch, SOURCE, start, shape), _map(scratch, STATE, start, shape)
    dh, e = _map(scratch, GRAD, start, shape), _map(scratch, ADJOINT, start, shape)
    if horizontal:
        scan_columns(x, g0, g1, g2, x, False, h, columns, strips, reverse, chunk)
        adjoint_columns(dh, g0, g1, g2, e, columns, strips, reverse, chunk)
    else:
        lines = shape[0]
        scan_lines(x, g0, g1, g2, x, False, h, rows, lines, 0, reverse, chunk)
        adjoint_lines(dh, g0, g1, g2, e, rows, lines, 0, lines, reverse, chunk)


@numba.njit(cache=True, fastmath={"contract"}, parallel=True)
def _backward(dy, v, logits, lam, u, skip, weight, dv, dlogits, dlam, du, dskip, dweight, masks, runs, shape, margin,
              horizontal, reverse, chunk, scratch, turned, sums, strips, columns, rows):  # fmt: skip
    batch, count, (height, width) = v.shape[0], len(weight), shape
    plane, narrow = height * width, max(height, width) <= WIDTH
    channels = v.shape[1] // plane
    for item in numba.prange(batch * runs):
        b, run, thread = item // runs, item % runs, numba.get_thread_id()
        begin, end = run * channels // runs, (run + 1) * channels // runs
        at, size, mine = begin * plane, (end - begin) * plane, scratch[thread]
        for k in range(count):
            row, l0, across, back, w = k * batch + b, 3 * k * batch + b, horizontal[k], reverse[k], weight[k]
            l1, l2 = l0 + batch, l0 + 2 * batch
            prepare_back(logits, l0, l1, l2, masks[k], lam, row, v, b, at, mine, margin, u, dy, w, size)
            for i in range(end - begin):
                start = margin + i * plane
                if narrow:
                    scan_narrow(mine, start, height, width, across, back, chunk, turned[thread])
                    adjoint_narrow(mine, start, height, width, across, back, chunk, turned[thread])
                else:
                    _there_and_back(
                        mine, start, shape, across, back, chunk, strips[thread], columns[thread], rows[thread]
                    )
            dweight[item, k] = map_gradients(
                lam, u, skip, row, v, dy, b, at, w, dv, 1 if k == 0 else 0, dlam, du, dskip, sums[thread], mine, margin,
                size,
            )  # fmt: skip
            line, cross = (1, width) if across else (width, 1)
            before = line if back else -line
            logit_gradients(
                masks[k], before - cross, before, before + cross, l0, l1, l2, at, dlogits, mine, margin, size
            )


def apart(settings: Mix, *inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The inputs if this file has the case, the sigmoid rule and maps for every channel; otherwise nothing."""
    found = tuple(t for t in inputs if t is not None)
    channels = found[0].shape[1]
    own = len(found) == len(inputs) and all(t.shape[-3] == channels for t in found[1:-1])
    return found if own and settings.rule == "sigmoid" else ()


def is_narrow(v: torch.Tensor) -> bool:
    """Whether a line fits a register in both axes."""
    return max(v.shape[-2:]) <= WIDTH


def forward(settings: Mix, out: torch.Tensor, inputs: tuple[torch.Tensor, ...], threads: int) -> None:
    """Write y of contiguous inputs, whose planes are narrow."""
    v, logits, lam, u, skip, weight = inputs
    runs, count = _runs(v, threads)
    margin, length = _scratch(v.shape[-2:], count)
    _forward(
        *_flat(v, logits, lam, u, skip), weight.detach().numpy(), *_flat(out), *_layout(settings, v, count), runs,
        tuple(v.shape[-2:]), margin, *_walk(settings), *arrays(torch.empty(threads, ROWS_FORWARD, length),
        torch.empty(threads, ROWS_FORWARD, WIDTH * WIDTH)),
    )  # fmt: skip


def backward(
    settings: Mix, grad: torch.Tensor, inputs: tuple[torch.Tensor, ...], threads: int
) -> tuple[torch.Tensor, ...]:
    """All gradients, given that of y, contiguous."""
    v, logits, lam, u, skip, weight = inputs
    runs, count = _runs(v, threads)
    margin, length = _scratch(v.shape[-2:], count)
    gradients = [torch.empty_like(t) for t in (v, logits, lam, u, skip)]
    dweight = torch.empty((v.shape[0] * runs, len(weight)), dtype=torch.float64)
    _backward(
        *_flat(grad, v, logits, lam, u, skip), weight.detach().numpy(), *_flat(*gradients), dweight.numpy(),
        *_layout(settings, v, count), runs, tuple(v.shape[-2:]), margin, *_walk(settings),
        *arrays(torch.empty(threads, ROWS_BACKWARD, length), torch.empty(threads, ROWS_BACKWARD, WIDTH * WIDTH),
                torch.empty(threads, 1, WIDTH), *scratch_lines(threads, *v.shape[-2:])),
    )  # fmt: skip
    return (*gradients, dweight.sum(0).float())


def _runs(v: torch.Tensor, threads: int) -> tuple[int, int]:
    """Runs of an image, and the most planes of one: enough runs for the threads, of about as many planes each."""
    batch, channels, height, width = v.shape
    most = max(1, min(_RUN // (height * width), -(-batch * channels // threads), channels))
    runs = -(-channels // most)
    return runs, -(-channels // runs)


def _scratch(shape: torch.Size, count: int) -> tuple[int, int]:
    """What lies before a run in the scratch, at least a line and a vector; and the length of its rows.

    Behind it lies what turning the last plane reads and writes beyond its end.
    """
    height, width = shape
    margin = -(-(width + 1) // WIDTH) * WIDTH + WIDTH
    return margin, margin + count * height * width + WIDTH * (min(width, WIDTH) + 1) + margin


def _flat(*tensors: torch.Tensor) -> list[np.ndarray]:
    """(..., C, H, W) -> (rows, C H W)."""
    return [t.detach().flatten(-3).flatten(0, -2).numpy() for t in tensors]


def _layout(settings: Mix, v: torch.Tensor, count: int) -> list[np.ndarray]:
    chunk = settings.chunk or max(v.shape[-2:])
    return [neighbour_masks(settings.directions, chunk, *v.shape[-2:], count)]


def _walk(settings: Mix) -> tuple[np.ndarray, np.ndarray, int]:
    return rules(Scan(settings.directions, settings.chunk))
