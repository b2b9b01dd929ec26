"""Neighbourhood attention on a GPU: launches the Triton kernels of `gpu_kernels`, forward and backward."""

import contextlib
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton

from kernels.backends import BackendUnavailable

from . import Attention
from .gpu_kernels import bias_kernel, forward_kernel, key_value_kernel, query_kernel
from .pattern import Cells, Pattern, swin

#: A program holds whole rows of channels in registers.
MOST_CHANNELS = 128
#: The partial sums of the bias gradient: at most so many groups of cells, and so much memory.
MOST_GROUPS = 64
PARTIAL_BYTES = 64 * 2**20


class Call(NamedTuple):
    """What the launches of one attention have in common."""

    inputs: tuple[torch.Tensor, ...]  # q, k, v in one layout; bias
    numbers: tuple[Any, ...]  # the arguments from `rows` to `sh` of every kernel
    constants: dict[str, int | bool]
    items: int  # (image, cell) pairs


def forward(
    settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Output (B, H, W, heads, d), and what `backward` needs."""
    batch, height, width, heads, _ = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty(batch, heads, height, width, dtype=torch.float32)
    call = _prepare(settings, q, k, v, bias)
    _launch(forward_kernel, call, call.items * _tiles(call, "Q") * heads, out, lse)
    return out, (q, k, v, bias, out, lse)


def backward(
    settings: Attention, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of q, k, v and the bias; None for those not needed."""
    q, k, v, bias, out, lse = saved
    heads = q.shape[3]
    call = _prepare(settings, q, k, v, bias)
    known = (out, lse, grad.contiguous())
    written = (needs[0], needs[1], needs[1] or needs[2])
    dq, dk, dv = (q.new_empty(q.shape if w else 0) for w in written)
    if needs[0]:
        _launch(query_kernel, call, call.items * _tiles(call, "Q") * heads, *known, dq)
    if needs[1] or needs[2]:
        _launch(key_value_kernel, call, call.items * _tiles(call, "K") * heads, *known, dk, dv, WANT_K=needs[1])
    dbias = _bias_gradient(settings.pattern, call, heads, *known).to(bias.dtype) if needs[3] else None
    return tuple(g if needed else None for g, needed in zip((dq, dk, dv, dbias), needs, strict=True))


def _bias_gradient(
    pattern: Pattern, call: Call, heads: int, out: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """Sum the logits' gradient over images and cells slot by slot, then over slots that are equally far apart."""
    queries, keys = call.constants["QUERIES"], call.constants["KEYS"]
    groups = max(1, min(call.items, MOST_GROUPS, PARTIAL_BYTES // (4 * heads * queries * keys)))
    share = triton.cdiv(call.items, groups)
    groups = triton.cdiv(call.items, share)
    partial = lse.new_empty(groups, heads, queries, keys)
    programs = groups * _tiles(call, "Q") * _tiles(call, "K") * heads
    _launch(bias_kernel, call, programs, out, lse, grad, partial, last=(call.items, share))
    kh, kw = pattern.rows.kernel, pattern.cols.kernel
    pairs = partial.sum(0).view(heads, kh, kw, kh, kw).transpose(2, 3)  # heads, rows of query and key, columns of both
    by_col = _sum_by_distance(pairs).movedim(3, 1)
    return _sum_by_distance(by_col).transpose(1, 2).contiguous()


def _sum_by_distance(pairs: torch.Tensor) -> torch.Tensor:
    """(..., n, n) of (query slot, key slot) -> (..., 2 n - 1), entry e the sum where query - key = e - (n - 1).

    With the keys reversed these are sums along antidiagonals. Rows padded to 2 n and read back as rows of 2 n - 1 are
    shifted by one more for each row, which turns antidiagonals into columns.
    """
    n = pairs.shape[-1]
    shifted = F.pad(pairs.flip(-1), (0, n)).flatten(-2)[..., :-n]
    return shifted.unflatten(-1, (n, 2 * n - 1)).sum(-2)


def _prepare(settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> Call:
    batch, height, width, heads, channels = q.shape
    if channels > MOST_CHANNELS:
        raise BackendUnavailable(
            f"backend='triton' takes at most {MOST_CHANNELS} channels a head; got {channels}: use backend='reference'."
        )
    if not (q.stride() == k.stride() == v.stride() and q.stride(4) == 1):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    pattern = settings.pattern
    rows, cols = pattern.rows.cells(height), pattern.cols.cells(width)
    constants = _constants(pattern, rows, cols, channels, q.dtype) | {"HAS_BIAS": bias is not None}
    down, across = len(rows.table), len(cols.table)
    tables = _tables(pattern, (height, width), q.device)
    numbers = (*tables, settings.scale, height, width, heads, down, across, *q.stride()[:4])
    inputs = (q, k, v, q if bias is None else bias.contiguous())
    return Call(inputs, numbers, constants, batch * down * across)


@lru_cache(maxsize=64)
def _tables(pattern: Pattern, grid: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = pattern.rows.cells(grid[0]), pattern.cols.cells(grid[1])
    return torch.tensor(rows.table, device=device), torch.tensor(cols.table, device=device)


def _constants(pattern: Pattern, rows: Cells, cols: Cells, channels: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """The compile-time arguments of a kernel: slots, bias table and tiles."""
    _, table_rows, table = pattern.bias_shape(1)
    queries, keys = rows.queries * cols.queries, rows.keys * cols.keys
    block_d = max(16, triton.next_power_of_2(channels))
    # The largest tiles that were seen to compile without spilling registers, on sm_90 at 16 to 128 channels.
    most_queries, most_keys = 64, 64
    if dtype == torch.float32:
        most_queries, most_keys = (64, 32) if block_d <= 64 else (32, 16)
    return {
        "QUERIES": queries,
        "QUERY_COLS": cols.queries,
        "KEYS": keys,
        "KEY_COLS": cols.keys,
        "TABLE": table,
        "CENTRE": (pattern.rows.kernel - 1) * table + pattern.cols.kernel - 1,
        "TABLE_SIZE": table_rows * table,
        "D": channels,
        "BLOCK_D": block_d,
        "BLOCK_Q": min(most_queries, max(16, triton.next_power_of_2(queries))),
        "BLOCK_K": min(most_keys, max(16, triton.next_power_of_2(keys))),
    }


def _options(kernel: Any, constants: dict[str, int | bool], dtype: torch.dtype) -> tuple[dict[str, int | bool], int]:
    """The compile-time arguments for one kernel, and its warps."""
    # Loops that carry two tiles of sums, or a large one, have no registers to spare for tiles on their way.
    stages = 1 if kernel in (key_value_kernel, bias_kernel) else 3
    light = dtype != torch.float32 and constants["BLOCK_D"] <= 32 and kernel is not bias_kernel
    return constants | {"STAGES": stages}, 4 if light else 8


def _tiles(call: Call, side: str) -> int:
    """Tiles of the queries ("Q") or keys ("K") of a cell."""
    slots = call.constants["QUERIES" if side == "Q" else "KEYS"]
    return triton.cdiv(slots, call.constants[f"BLOCK_{side}"])


def _launch(
    kernel: Any, call: Call, programs: int, *tensors: torch.Tensor, last: tuple[int, ...] = (), **constants: bool
) -> None:
    device, dtype = call.inputs[0].device, call.inputs[0].dtype
    fixed, warps = _options(kernel, call.constants | constants, dtype)
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*call.inputs, *tensors, *call.numbers, *last, **fixed, num_warps=warps)


def compile_specs() -> list[dict[str, Any]]:
    """Representative configurations for ahead-of-time compilation (kernels/inspect.py): window 7 and 32 channels."""
    pattern = swin(7)
    rows, cols = pattern.rows.cells(56), pattern.cols.cells(56)
    specs = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        constants = _constants(pattern, rows, cols, 32, dtype) | {"HAS_BIAS": True}
        for kernel in (forward_kernel, query_kernel, key_value_kernel, bias_kernel):
            own = constants | ({"WANT_K": True} if kernel is key_value_kernel else {})
            fixed, warps = _options(kernel, own, dtype)
            signature = {argument: _type(argument, name, fixed) for argument in kernel.arg_names}
            aligned = [i for i, (n, t) in enumerate(signature.items()) if t[0] == "*" or n in ("sb", "sr", "sc", "sh")]
            specs.append({
                "op": "attention",
                "name": f"{kernel.__name__} {name}",
                "fn": kernel,
                "signature": signature,
                "constexprs": fixed,
                "attrs": {(i,): [["tt.divisibility", 16]] for i in aligned},
                "num_warps": warps,
            })  # fmt: skip
    return specs


def _type(argument: str, dtype: str, constants: dict[str, int | bool]) -> str:
    """The type of a kernel's argument in Triton's notation."""
    if argument in constants:
        return "constexpr"
    if argument in ("q", "k", "v", "bias", "out", "grad", "dq", "dk", "dv"):
        return f"*{dtype}"
    known = {"lse": "*fp32", "partial": "*fp32", "rows": "*i32", "cols": "*i32", "scale": "fp32"}
    return known.get(argument, "i32")
