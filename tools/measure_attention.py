"""Check and time the Triton attention kernels on a GPU, and write what was found as JSON.

Run `.venv/bin/python tools/measure_attention.py attention.json` on a machine with a GPU. First every pattern of the
family is compared with the reference in float64; then Swin-T's four stages are timed, batch 64, bfloat16, plain and
shifted windows, forward and forward with backward:

    ours      kernels.attention.attend(backend="triton")
    eager     Swin's own construction in PyTorch: roll, cut into windows, softmax with bias and mask, roll back
    sdpa      the same windows through scaled_dot_product_attention, bias and mask as one tensor
    flex      torch.compile of flex_attention with a block mask over the whole map
    floor     the least bytes of the operator over the measured bandwidth of a copy

A comparison that cannot run on the machine is reported with its error instead of a time. Every time is the median of
REPEATS, each between two CUDA events, with the level 2 cache overwritten before it and all its launches queued. sdpa
takes a mask for every window of every image, and the copy that this needs is part of its time.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import kernels  # noqa: F401, I001  (first: it sets what OpenMP reads when torch loads it)
import torch
import torch.nn.functional as F

from kernels import attention as a

WINDOW, CHANNELS, BATCH = 7, 32, 64
REPEATS, WARM_UP = 50, 10
#: How long the GPU waits before each run, so that the host is ahead of it: about a millisecond.
AHEAD_CYCLES = 2_000_000
COPY_BYTES = 2**30
#: Overwritten before each run, so that inputs come from memory: more than the level 2 cache of any GPU.
FLUSH_BYTES = 256 * 2**20


class Stage(NamedTuple):
    """A stage of Swin-T at 224 pixels: positions a side, and heads of 32 channels."""

    side: int
    heads: int


STAGES = (Stage(56, 3), Stage(28, 6), Stage(14, 12), Stage(7, 24))


def patterns(side: int) -> list[a.Pattern]:
    """Every pattern of the family, on a map of side x side."""
    return [
        a.swin(7), a.swin(7, 3), a.block(2), a.neighborhood(7), a.neighborhood(6, 3), a.neighborhood(5, dilation=2),
        a.neighborhood(7, causal=True), a.halo(7, 3), a.halo(7, 3, "clamp"), a.grid(7, side), a.stripe(4), a.cross(7),
        a.axial(0), a.axial(1), a.disc(6), a.power(64, 2, 1), a.full(), a.heads(a.swin(7), a.neighborhood(7)),
    ]  # fmt: skip


def bias_for(pattern: a.Pattern, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the pattern's bias for q of a shape, or None if it has no one table."""
    try:
        return pattern.bias_shape(shape[3], (shape[1], shape[2]))
    except ValueError:
        return None


def allowed(dtype: torch.dtype) -> float:
    """The relative error that a dtype may have: float32 sums many terms, the others lose more where they are stored."""
    return (40 if dtype == torch.float32 else 8) * torch.finfo(dtype).eps


def check(pattern: a.Pattern, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> dict[str, Any]:
    """The largest relative error (Frobenius norm) of the output and the gradients, and whether it is allowed."""
    tables = bias_for(pattern, shape)
    shapes = [shape] * 3 + ([] if tables is None else [tables])
    stored = [torch.randn(s, device=device).to(dtype) for s in shapes]
    grad, found = torch.randn(shape, device=device).to(dtype), []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in stored]
        out = a.attend(*leaves[:3], pattern, *leaves[3:], backend=backend)
        found.append([out, *torch.autograd.grad(out, leaves, grad.to(kind))])
    errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(*found, strict=True)]
    return {
        "pattern": pattern.name,
        "dtype": str(dtype),
        "error": max(errors),
        "allowed": allowed(dtype),
        "passed": max(errors) <= allowed(dtype),
    }


def windows(tokens: torch.Tensor, shift: int) -> torch.Tensor:
    """(B, H, W, heads, d) -> (B windows, heads, 49, d), after Swin's roll."""
    batch, height, width, heads, channels = tokens.shape
    tokens = tokens.roll((-shift, -shift), (1, 2)) if shift else tokens
    cut = tokens.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, heads, channels)
    return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, WINDOW * WINDOW, channels)


def unwindowed(tokens: torch.Tensor, like: torch.Tensor, shift: int) -> torch.Tensor:
    """The inverse of `windows`."""
    batch, height, width, heads, channels = like.shape
    cut = tokens.view(batch, height // WINDOW, width // WINDOW, heads, WINDOW, WINDOW, channels)
    whole = cut.permute(0, 1, 4, 2, 5, 3, 6).reshape(like.shape)
    return whole.roll((shift, shift), (1, 2)) if shift else whole


@lru_cache(maxsize=8)
def forbidden(side: int, shift: int, device: torch.device) -> torch.Tensor:
    """-inf where positions of a rolled window lie in different cells, else 0: (windows, 1, 49, 49), bfloat16."""
    place = (torch.arange(side, device=device) + WINDOW - shift) // WINDOW
    own = windows((place[:, None] * side + place)[None, :, :, None, None], shift).flatten(1)
    mask = torch.zeros(own.shape[0], 1, WINDOW**2, WINDOW**2, device=device, dtype=torch.bfloat16)
    return mask.masked_fill(own[:, None, :, None] != own[:, None, None, :], -torch.inf)


def added(bias: torch.Tensor, side: int, shift: int) -> torch.Tensor:
    """Bias and mask of the windows of an image, or of every window: (windows or 1, heads, 49, 49)."""
    at = torch.arange(WINDOW, device=bias.device)
    row, col = (t.flatten() for t in torch.meshgrid(at, at, indexing="ij"))
    table = bias[:, row[:, None] - row + WINDOW - 1, col[:, None] - col + WINDOW - 1][None]
    return table + forbidden(side, shift, bias.device).to(bias.dtype) if shift else table


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, shift: int) -> torch.Tensor:
    """Swin's window attention out of PyTorch's own operators."""
    own_q, own_k, own_v = (windows(t, shift) for t in (q, k, v))
    logits = own_q * CHANNELS**-0.5 @ own_k.transpose(-1, -2)
    logits = (logits.unflatten(0, (q.shape[0], -1)) + added(bias, q.shape[1], shift)).flatten(0, 1)
    return unwindowed(logits.softmax(-1) @ own_v, q, shift)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, shift: int) -> torch.Tensor:
    """The same windows through PyTorch's fused attention."""
    mask = added(bias, q.shape[1], shift)
    mask = mask.repeat(q.shape[0], 1, 1, 1) if shift else mask
    out = F.scaled_dot_product_attention(*(windows(t, shift) for t in (q, k, v)), attn_mask=mask)
    return unwindowed(out, q, shift)


def flex(q: torch.Tensor, shift: int) -> Callable[..., torch.Tensor]:
    """A compiled flex_attention for the grid of q: one sequence of positions, masked to the windows."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    side, positions = q.shape[1], q.shape[1] * q.shape[2]

    def cell(i: torch.Tensor) -> torch.Tensor:
        return (i // side + WINDOW - shift) // WINDOW * side + (i % side + WINDOW - shift) // WINDOW

    mask = create_block_mask(
        lambda b, h, i, j: cell(i) == cell(j), None, None, positions, positions, device=q.device.type
    )

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        def score(value: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            down = (i // side - j // side + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
            right = (i % side - j % side + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
            return value + bias[h, down, right]

        flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
        out = flex_attention(*flat, score_mod=score, block_mask=mask)
        assert isinstance(out, torch.Tensor)
        return out.transpose(1, 2).view(q.shape)

    # Every configuration compiles the same function anew; a fall back to eager would be timed as if compiled.
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(attend, dynamic=False, fullgraph=True)


def time_of(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Median, 20th and 80th percentile of a run in milliseconds, from CUDA events, with a cold level 2 cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    for _ in range(WARM_UP):
        run()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for begin, end in pairs:
        flush.zero_()
        torch.cuda._sleep(AHEAD_CYCLES)  # the host queues the whole run meanwhile, so launches do not count
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    times = torch.tensor([begin.elapsed_time(end) for begin, end in pairs])
    p20, median, p80 = times.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80}


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the GPU's memory."""
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (time_of(lambda: target.copy_(source), device)["median_ms"] / 1000)


def least_bytes(stage: Stage, backward: bool) -> int:
    """Bytes of q, k, v and out once each; with the backward pass also those of it: out, grad, q, k, v, dq, dk, dv."""
    tensor = BATCH * stage.side**2 * stage.heads * CHANNELS * 2
    return tensor * (12 if backward else 4)


def both_ways(
    function: Callable[..., torch.Tensor], leaves: list[torch.Tensor], grad: torch.Tensor
) -> Callable[[], Any]:
    """Forward and backward of a function of its leaves."""
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def measure(stage: Stage, shift: int, speed: float, device: torch.device) -> list[dict[str, Any]]:
    """The times of every way to compute one stage, and its floor."""
    shape, pattern = (BATCH, stage.side, stage.side, stage.heads, CHANNELS), a.swin(WINDOW, shift)
    drawn = [
        torch.randn(s, device=device, dtype=torch.bfloat16) for s in [shape] * 3 + [pattern.bias_shape(stage.heads)]
    ]
    leaves, grad = [t.requires_grad_() for t in drawn], torch.randn(shape, device=device, dtype=torch.bfloat16)
    ways: dict[str, Callable[[], Callable[..., torch.Tensor]]] = {
        "ours": lambda: lambda *t: a.attend(*t[:3], pattern, t[3], backend="triton"),
        "eager": lambda: partial(eager, shift=shift),
        "sdpa": lambda: partial(sdpa, shift=shift),
        "flex": lambda: flex(leaves[0], shift),
    }
    rows = []
    for backward in (False, True):
        row = {"side": stage.side, "heads": stage.heads, "shift": shift, "backward": backward}
        rows.append(row | {"method": "floor", "median_ms": 1000 * least_bytes(stage, backward) / speed})
        for name, make in ways.items():
            try:
                function = make()
                with torch.set_grad_enabled(backward):
                    run = both_ways(function, leaves, grad) if backward else partial(function, *leaves)
                    rows.append(row | {"method": name} | time_of(run, device))
            except Exception as error:  # another library's limits must not cost the other numbers
                rows.append(row | {"method": name, "error": f"{type(error).__name__}: {error}"[:500]})
    return rows


def described(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and method."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "device": torch.cuda.get_device_name(device),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "cuda": torch.version.cuda,
        "commit": commit,
        "uncommitted_changes": bool(changed),
        "method": f"median of {REPEATS} runs after {WARM_UP}, CUDA events, level 2 cache overwritten before each run",
        "batch": BATCH,
        "dtype": "bfloat16",
    }


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the JSON file to write")
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        parser.error("there is no GPU on this machine (torch.cuda.is_available() is False).")
    device = torch.device("cuda")
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    checks = [check(pattern, dtype, device, (2, 28, 28, 4, 32)) for pattern in patterns(28) for dtype in dtypes]
    result = described(device) | {"checks": checks}
    output.write_text(json.dumps(result, indent=1))
    failed = [f"{row['pattern']} {row['dtype']}: {row['error']:.2g}" for row in checks if not row["passed"]]
    if failed:
        sys.exit("wrong results, nothing was timed:\n" + "\n".join(failed))
    speed = bandwidth(device)
    rows = [row for stage in STAGES for shift in (0, 3) if stage.side > WINDOW or not shift
            for row in measure(stage, shift, speed, device)]  # fmt: skip
    output.write_text(json.dumps(result | {"copy_bytes_per_second": speed, "times": rows}, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
