"""The fused GSPN mixer in Triton: fp32, fp16 or bf16 storage, fp32 state, forward and backward.

A program takes a block of channels of one image (one, more on small maps, and four that share their gates) and walks
directions one after the other, horizontal ones first. It reads the logits once, makes the gates and h in registers, and
adds u h + skip v into its own part of the output; the first line of a vertical chunk reads no logits. Nothing else is
written. Where images and channels alone keep a GPU busy, a program walks all directions, so that v and the output are
still in a cache when the next one starts; otherwise every direction, and every span of whole chunks, is a program of
its own with float32 sums of its own, which `add_parts` adds in their order. There are no atomics: results are the same
in every run.

The backward pass keeps nothing but its inputs. For each direction a program makes gates and h again, h into a float32
scratch of its own, and walks back (mix_gpu_adjoint.py). Gradients of what channels share are summed over the program's
channels, and then over blocks of channels.

Maps of more than `LIMIT` rows or columns do not fit: a horizontal scan holds four columns of all operands in registers,
and 65,536 registers a multiprocessor are not enough. `mix` composes the unfused kernels for them. At `LIMIT` the
backward pass already spills about a hundred bytes a thread on sm_90; up to 512 nothing spills.
"""

from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
import triton

from . import Mix
from .mix_gpu_kernels import add_parts, mix_backward, mix_forward
from .mix_gpu_lines import ABSENT, OWN, SHARED
from .normalise_gpu import rule_number

#: The largest height and width.
LIMIT = 1024
#: Warps that should keep an H200 busy: 16 on each of its 132 multiprocessors. An estimate; no GPU has measured it yet.
_ENOUGH_WARPS = 2112
#: Lines that one program walks at least when a map is cut into chunks.
_LINES_PER_PROGRAM = 32
#: Channels that share their gates, taken by one program.
_SHARING = 4
#: Positions that a program of `add_parts` takes.
_ADDED = 1024


class Plan(NamedTuple):
    """How a launch cuts the work: programs are (image blocks, spans, parts); sizes and options are the kernel's."""

    grid: tuple[int, int, int]
    sizes: tuple[int, ...]
    options: dict[str, Any]

    @property
    def parts(self) -> int:
        return self.grid[2]


def fits(v: torch.Tensor) -> bool:
    """Whether the lines of the map (B, C, H, W) fit the registers of a program."""
    return max(v.shape[-2:]) <= LIMIT


def plan(settings: Mix, shape: tuple[int, ...], shared: bool) -> Plan:
    """The cut of a map (B, C, H, W) whose channels share gates or not."""
    batch, channels, height, width = shape
    entries = len(settings.directions)
    rows, cols = (max(8, triton.next_power_of_2(side)) for side in (height, width))
    longest = max(rows, cols)
    most = _SHARING if shared else max(1, 32 // longest)
    together = min(most, triton.next_power_of_2(channels))
    # 32 positions a warp; 64 of them, at twice the registers, are still one warp, which needs no exchange with others.
    warps = 1 if together * longest == 64 else max(1, together * longest // 32)
    blocks = triton.cdiv(channels, together)
    parts = 1 if batch * blocks * warps >= _ENOUGH_WARPS else entries
    spans = [_span(settings.chunk, lines, parts) for lines in (height, width)]
    pieces = max(triton.cdiv(lines, span) for lines, span in zip((height, width), spans, strict=True))
    chunks = [min(settings.chunk or lines, lines) for lines in (height, width)]
    per, horizontals = entries // parts, sum(d in ("left_right", "right_left") for d in settings.directions)
    whole = gcd(width, 8)
    options = {
        "CB": together, "ROWS": rows, "COLS": cols, "WHOLE": whole, "num_warps": min(warps, 32),
        "ALIGNED": whole >= 4 and spans[1] % 4 == 0, "DRAIN": torch.version.hip is not None,
    }  # fmt: skip
    sizes = (batch, channels, height, width, *chunks, *spans, horizontals, entries, per)
    return Plan((batch * blocks, pieces, parts), sizes, options)


def _span(chunk: int | None, lines: int, parts: int) -> int:
    """Lines of a program: all of them where it walks all directions, which need not agree on a smaller span."""
    if chunk is None or parts == 1:
        return lines
    step = chunk * 4 // gcd(chunk, 4)
    return min(lines, triton.cdiv(_LINES_PER_PROGRAM, step) * step)


def forward(
    settings: Mix,
    v: torch.Tensor,
    logits: torch.Tensor,
    lam: torch.Tensor | None,
    u: torch.Tensor | None,
    skip: torch.Tensor | None,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """v (B, C, H, W), logits (K, 3, B, C or 1, H, W), lam, u, skip (K, B, C or 1, H, W) or None, weight (K,) -> y."""
    v, logits, weight = v.contiguous(), logits.contiguous(), weight.contiguous()
    maps = [None if t is None else t.contiguous() for t in (lam, u, skip)]
    kinds = _kinds(v, logits, *maps)
    cut = plan(settings, v.shape, kinds["LOGITS"] == SHARED.value)
    y = torch.empty_like(v)
    sums, finish = _sums(y, cut.parts)
    mix_forward[cut.grid](
        v, logits, *(v if t is None else t for t in maps), weight, sums, y, _table(settings.directions, v.device),
        *cut.sizes, **kinds, RULE=rule_number(settings.rule), FINISH=finish, **cut.options,
    )  # fmt: skip
    _add(sums, y, cut.parts)
    return y, (v, logits, *maps, weight)


def backward(
    settings: Mix, needs: tuple[bool, ...], grad: torch.Tensor, saved: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of v, logits, lam, u, skip and weight that `needs` asks for, shaped as they are."""
    v, *maps, weight = saved
    kinds = _kinds(v, *maps)
    cut = plan(settings, v.shape, kinds["LOGITS"] == SHARED.value)
    wanted = [need and t is not None for need, t in zip(needs[1:5], maps, strict=True)]
    blocks = cut.grid[0] // v.shape[0]
    found = [_unsummed(t, v, blocks) if w else None for w, t in zip(wanted, maps, strict=True)]
    dv = torch.empty_like(v)
    sums, finish = _sums(dv, cut.parts)
    scratch = torch.empty((cut.parts, *v.shape), dtype=torch.float32, device=v.device)
    programs = cut.grid[0] * cut.grid[1]
    dweight = torch.empty((programs, len(weight)), dtype=torch.float32, device=v.device)
    bits = sum(need << i for i, need in enumerate((needs[0], *wanted, needs[5])))
    mix_backward[cut.grid](
        grad.contiguous(), v, *(v if t is None else t for t in maps), weight, scratch, sums, dv,
        *(v if t is None else t for t in found), dweight, _table(settings.directions, v.device), *cut.sizes, **kinds,
        RULE=rule_number(settings.rule), NEEDS=bits, FINISH=finish, **cut.options,
        **_registers(cut.options["num_warps"], v.device),
    )  # fmt: skip
    if needs[0]:
        _add(sums, dv, cut.parts)
    return (
        dv if needs[0] else None,
        *(t if t is None or t.shape == m.shape else t.sum(0).to(v.dtype) for t, m in zip(found, maps, strict=True)),
        dweight.sum(0, dtype=torch.float64).to(v.dtype) if needs[5] else None,
    )


def _kinds(v: torch.Tensor, *maps: torch.Tensor | None) -> dict[str, int]:
    """What logits, lam, u and skip are to the compiler."""
    return {name: _kind(v, tensor) for name, tensor in zip(("LOGITS", "LAM", "U", "SKIP"), maps, strict=True)}


def _kind(v: torch.Tensor, tensor: torch.Tensor | None) -> int:
    if tensor is None:
        return ABSENT.value
    return OWN.value if tensor.shape[-3] == v.shape[1] else SHARED.value


def _sums(target: torch.Tensor, parts: int) -> tuple[torch.Tensor, bool]:
    """Where programs add, in float32, the target itself where it can be; and whether the last adds into the target."""
    if parts > 1:
        return torch.empty((parts, *target.shape), dtype=torch.float32, device=target.device), False
    if target.dtype == torch.float32:
        return target, False
    return torch.empty_like(target, dtype=torch.float32), True


def _add(sums: torch.Tensor, target: torch.Tensor, parts: int) -> None:
    if parts > 1:
        count = target.numel()
        add_parts[(triton.cdiv(count, _ADDED),)](sums, target, parts, count, BLOCK=_ADDED)


def _unsummed(tensor: torch.Tensor, v: torch.Tensor, blocks: int) -> torch.Tensor:
    """Room for a gradient: what channels share has one for each block of channels, in float32."""
    if blocks == 1 or tensor.shape[-3] == v.shape[1]:
        return torch.empty_like(tensor)
    return torch.empty((blocks, *tensor.shape), dtype=torch.float32, device=tensor.device)


def _registers(warps: int, device: torch.device) -> dict[str, int]:
    """All registers for the backward kernel from sm_100 on, where ptxas spills a few values to fit more programs."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (10, 0):
        return {}
    return most_registers(warps)


def most_registers(warps: int) -> dict[str, int]:
    """The option that gives a thread as many registers as a program of so many warps can have."""
    return {"maxnreg": min(255, 65536 // (32 * warps))}


@lru_cache(maxsize=64)
def _table(directions: tuple[str, ...], device: torch.device) -> torch.Tensor:
    """(K, 2): the number of a pass and whether it is reversed, horizontal passes first."""
    horizontal = ("left_right", "right_left")
    order = sorted(range(len(directions)), key=lambda k: directions[k] not in horizontal)
    rows = [[k, int(directions[k] in ("right_left", "bottom_top"))] for k in order]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def configurations() -> list[tuple[Any, str, str, dict[str, Any], int]]:
    """For ahead-of-time compilation: kernels with a name for the variant, storage, constants and warps.

    The widest and the narrowest maps of GSPN-T at 224 pixels, gates shared by channels, and several warps a line.
    """
    found: list[tuple[Any, str, str, dict[str, Any], int]] = []
    for storage, side, shared in (("bf16", 56, False), ("bf16", 7, False), ("bf16", 64, True), ("fp32", 256, False)):
        options = plan(Mix(("left_right", "top_bottom"), None, "sigmoid"), (1, 64, side, side), shared).options
        options |= dict.fromkeys(("LAM", "U", "SKIP"), OWN.value) | {"LOGITS": (SHARED if shared else OWN).value}
        options |= {"RULE": rule_number("sigmoid"), "FINISH": storage != "fp32"}
        warps = options.pop("num_warps")
        variant = f"{storage} {side} wide{' shared' if shared else ''}"
        found += [(mix_forward, variant, storage, options, warps)]
        found += [(mix_backward, variant, storage, options | {"NEEDS": 63}, warps)]
    return [*found, (add_parts, "bf16", "bf16", {"BLOCK": _ADDED}, 4)]
