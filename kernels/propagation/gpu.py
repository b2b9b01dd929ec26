"""Line propagation in Triton: fp32, fp16 or bf16 storage, fp32 state, forward and backward.

One program walks one plane (a channel of one image in one direction), or some of its chunks, line by line; the state of
the line never leaves the program, and its neighbours are fetched by `tl.gather` (register shuffles when one warp holds
the line). Vertical directions read image rows, which are contiguous. Horizontal directions would read one element per
cache sector, so they load tiles of `TILE` columns, one wide load a row, and take the columns apart in
registers. Tiling was chosen over re-laying the maps out because a transposed copy of five operands and the result moves
three times the bytes.

Backward: the adjoint scan stores E (fp32), then two element-wise kernels form dx = sum_k lam E, dlam = sum_c x E and
dg_j[t, n] = sum_c E[t, n] h[t-1, n+j-1], where the sums are over directions that share x and channels that share gates.
"""

from functools import lru_cache
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from . import NORMALISATIONS, Scan
from .gpu_lines import TILE, adjoint_columns, adjoint_rows, scan_columns, scan_rows

#: Lines that one program walks at least when a map is cut into chunks.
_LINES_PER_PROGRAM = 32


@triton.jit
def gate_gradient(
    e, h, grad_gates, table, height, width, channels, planes, chunk, lines,
    SHARED: tl.constexpr, HORIZONTAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dg_j at BLOCK positions of one gate plane, summed over channels if they share it."""
    entry, plane = tl.program_id(0) // planes, tl.program_id(0) % planes
    k, reverse = tl.load(table + 2 * entry), tl.load(table + 2 * entry + 1)
    count = height * width
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    r, c = at // width, at % width
    t = tl.where(reverse != 0, lines - 1 - (c if HORIZONTAL else r), (c if HORIZONTAL else r))
    follows = inside & (t % chunk != 0)
    back = tl.where(reverse != 0, 1, -1)
    for j in tl.static_range(3):
        rr = r + (j - 1) if HORIZONTAL else r + back
        cc = c + back if HORIZONTAL else c + (j - 1)
        exists = follows & (rr >= 0) & (rr < height) & (cc >= 0) & (cc < width)
        there = rr * width + cc
        total = tl.zeros((BLOCK,), tl.float32)
        for i in range(channels if SHARED else 1):
            source = (k.to(tl.int64) * planes + plane) * (channels if SHARED else 1) + i
            # A shared gate's planes are (b), its sources (b, c); otherwise both are (b, c).
            e_value = tl.load(e + source * count + at, mask=inside, other=0.0)
            h_value = tl.load(h + source * count + there, mask=exists, other=0.0).to(tl.float32)
            total += tl.where(exists, e_value * h_value, 0.0)
        image = plane if SHARED else plane // channels
        channel = 0 if SHARED else plane % channels
        groups = 1 if SHARED else channels
        batch = planes // groups
        target = ((k.to(tl.int64) * 3 + j) * batch + image) * groups + channel
        tl.store(grad_gates + target * count + at, total.to(grad_gates.dtype.element_ty), mask=inside)


@triton.jit
def input_gradient(
    e, lam, dx, directions, batch, channels, count,
    HAS_LAM: tl.constexpr, LAM_SHARED: tl.constexpr, SUM_DIRECTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = lam E at BLOCK positions of one plane, summed over the directions that share x."""
    plane = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    planes = batch * channels
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(directions if SUM_DIRECTIONS else 1):
        source = plane + i * planes
        value = tl.load(e + source * count + at, mask=inside, other=0.0)
        if HAS_LAM:
            weight = source // channels if LAM_SHARED else source
            value *= tl.load(lam + weight * count + at, mask=inside, other=0.0).to(tl.float32)
        total += value
    tl.store(dx + plane * count + at, total.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient(
    e, x, dlam, batch, channels, count,
    X_PER_DIRECTION: tl.constexpr, LAM_SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dlam = x E at BLOCK positions of one plane of lam, summed over channels if they share it."""
    plane = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(channels if LAM_SHARED else 1):
        source = plane * channels + i if LAM_SHARED else plane
        x_plane = source if X_PER_DIRECTION else source % (batch * channels)
        value = tl.load(e + source * count + at, mask=inside, other=0.0)
        total += value * tl.load(x + x_plane * count + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dlam + plane * count + at, total.to(dlam.dtype.element_ty), mask=inside)


def forward(
    scan: Scan, x: torch.Tensor, gates: torch.Tensor, lam: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """x (K or 1, B, C, H, W), gates (K, 3, B, C or 1, H, W), lam (K, B, C or 1, H, W) or None -> h (K, B, C, H, W)."""
    x, gates = x.contiguous(), gates.contiguous()
    lam = None if lam is None else lam.contiguous()
    h = torch.empty((len(scan.directions), *x.shape[1:]), dtype=x.dtype, device=x.device)
    for horizontal, table in _tables(scan.directions, x.device):
        kernel = scan_columns if horizontal else scan_rows
        grid, sizes, options = _launch(scan, h.shape, horizontal, len(table))
        kernel[grid](
            x, gates, x if lam is None else lam, h, table, *sizes,
            HAS_LAM=lam is not None, X_PER_DIRECTION=x.shape[0] > 1, GATES_SHARED=gates.shape[3] < h.shape[2],
            LAM_SHARED=lam is not None and lam.shape[2] < h.shape[2], **options,
        )  # fmt: skip
    return h, (x, gates, lam, h)


def backward(
    scan: Scan, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of x, gates and lam that `needs` asks for, shaped as they are."""
    x, gates, lam, h = saved
    grad = grad.contiguous()
    directions, batch, channels, height, width = h.shape
    count, block = height * width, 256
    e = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    for horizontal, table in _tables(scan.directions, h.device):
        kernel = adjoint_columns if horizontal else adjoint_rows
        grid, sizes, options = _launch(scan, h.shape, horizontal, len(table))
        kernel[grid](grad, gates, e, table, *sizes, GATES_SHARED=gates.shape[3] < channels, **options)
    dx = dgates = dlam = None
    pieces = triton.cdiv(count, block)
    if needs[0]:
        dx = torch.empty_like(x)
        input_gradient[(x[..., 0, 0].numel(), pieces)](
            e, x if lam is None else lam, dx, directions, batch, channels, count, HAS_LAM=lam is not None,
            LAM_SHARED=lam is not None and lam.shape[2] < channels, SUM_DIRECTIONS=x.shape[0] < directions, BLOCK=block,
        )  # fmt: skip
    if needs[2] and lam is not None:
        dlam = torch.empty_like(lam)
        weight_gradient[(lam[..., 0, 0].numel(), pieces)](
            e, x, dlam, batch, channels, count, X_PER_DIRECTION=x.shape[0] > 1,
            LAM_SHARED=lam.shape[2] < channels, BLOCK=block,
        )  # fmt: skip
    if needs[1]:
        dgates = torch.empty_like(gates)
        planes = batch * gates.shape[3]
        for horizontal, table in _tables(scan.directions, h.device):
            lines = width if horizontal else height
            gate_gradient[(len(table) * planes, pieces)](
                e, h, dgates, table, height, width, channels, planes, min(scan.chunk or lines, lines), lines,
                SHARED=gates.shape[3] < channels, HORIZONTAL=horizontal, BLOCK=block,
            )  # fmt: skip
    return dx, dgates, dlam


def _launch(
    scan: Scan, shape: tuple[int, ...], horizontal: bool, entries: int
) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """The grid, the size arguments, and the compile-time options of a scan kernel."""
    _, batch, channels, height, width = shape
    lines, cross = (width, height) if horizontal else (height, width)
    chunk = min(scan.chunk or lines, lines)
    span = lines if chunk == lines else min(lines, triton.cdiv(_LINES_PER_PROGRAM, chunk) * chunk)
    block = max(triton.next_power_of_2(cross), 16)
    # One warp keeps a line in registers with no barrier up to 128 wide (64 in tiles); wider ones would spill.
    per_warp = (64 if block < 1024 else 32) if horizontal else 128
    warps = min(32, max(1, block // per_warp))
    grid = (entries * batch * channels, triton.cdiv(lines, span))
    sizes = (batch, channels, lines, cross, chunk, span)
    options: dict[str, Any] = {"BLOCK": block, "num_warps": warps}
    if horizontal:
        options["ALIGNED"] = width % TILE == 0 and span % TILE == 0
    return grid, sizes, options


@lru_cache(maxsize=64)
def _tables(directions: tuple[str, ...], device: torch.device) -> tuple[tuple[bool, torch.Tensor], ...]:
    """For the horizontal and the vertical passes: (horizontal, (entries, 2) table of pass number and reversal)."""
    tables = []
    for horizontal, names in ((True, ("left_right", "right_left")), (False, ("top_bottom", "bottom_top"))):
        rows = [[k, names.index(d)] for k, d in enumerate(directions) if d in names]
        if rows:
            tables.append((horizontal, torch.tensor(rows, dtype=torch.int32, device=device)))
    return tuple(tables)


def compile_specs() -> list[dict[str, Any]]:
    """Representative configurations of every kernel of this op, for ahead-of-time compilation (kernels/inspect.py)."""
    from .mix_gpu import configurations, mix_backward, most_registers
    from .normalise_gpu import normalise, normalise_gradient, rule_number

    specs: list[dict[str, Any]] = []
    for storage in ("fp32", "bf16"):
        for cross in (64, 256, 1024):
            specs += [_line_spec(kernel, storage, cross) for kernel in (scan_rows, scan_columns)]
            specs += [_line_spec(kernel, storage, cross) for kernel in (adjoint_rows, adjoint_columns)]
        for kernel in (gate_gradient, input_gradient, weight_gradient):
            specs.append(_flat_spec(kernel, storage))
    for kernel, rule in product((normalise, normalise_gradient), NORMALISATIONS):
        # Storage changes loads and stores only, which are the same code for every rule.
        for storage in ("fp32", "bf16") if rule == "sigmoid" else ("bf16",):
            specs.append(_spec(kernel, f"{rule} {storage}", storage, {"RULE": rule_number(rule), "BLOCK": 256}, 4))
    for kernel, variant, storage, constants, warps in configurations():
        specs.append(_spec(kernel, variant, storage, constants, warps))
        if kernel is mix_backward:
            specs[-1]["targets"] = dict.fromkeys(("sm_100", "sm_120"), most_registers(warps))
    return specs


def _line_spec(kernel: Any, storage: str, cross: int) -> dict[str, Any]:
    horizontal = kernel in (scan_columns, adjoint_columns)
    _, _, options = _launch(Scan(("left_right",), None), (1, 1, 1, cross, cross), horizontal, 1)
    warps = options.pop("num_warps")
    flags = {"HAS_LAM": True, "X_PER_DIRECTION": False, "GATES_SHARED": False, "LAM_SHARED": False}
    return _spec(kernel, f"{storage} {cross} wide", storage, flags | options, warps)


def _flat_spec(kernel: Any, storage: str) -> dict[str, Any]:
    flags = {
        "SHARED": False, "HORIZONTAL": True, "HAS_LAM": True, "LAM_SHARED": False, "SUM_DIRECTIONS": True,
        "X_PER_DIRECTION": False, "BLOCK": 256,
    }  # fmt: skip
    return _spec(kernel, storage, storage, flags, 4)


def _spec(kernel: Any, variant: str, storage: str, options: dict[str, Any], warps: int) -> dict[str, Any]:
    """Pointers are assumed to be 16-byte aligned, as torch's are; sizes are plain integers."""
    tables, states = ("table", "horizontal"), ("e", "sums", "scratch", "dweight")
    tensors = (
        "x", "gates", "lam", "h", "grad", "dx", "dlam", "grad_gates", "logits", "out", "v", "u", "skip", "weight", "y",
        "dv", "dlogits", "du", "dskip",
    )  # fmt: skip
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in options:
            signature[name], constants[name] = "constexpr", options[name]
        elif name in tables:
            signature[name] = "*i32"
        elif name in states:
            signature[name] = "*fp32"
        else:
            signature[name] = f"*{storage}" if name in tensors else "i32"
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    other = {"gfx942": {"constexprs": constants | {"DRAIN": True}}} if "DRAIN" in constants else {}
    return {
        "op": "propagation", "name": f"{kernel.__name__} {variant}", "fn": kernel, "signature": signature,
        "constexprs": constants, "attrs": {(i,): [["tt.divisibility", 16]] for i in aligned}, "num_warps": warps,
        "targets": other
    }  # fmt: skip
