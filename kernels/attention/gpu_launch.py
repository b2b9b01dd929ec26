"""One set of tensors for the Triton kernels of neighbourhood attention: arguments by name, options, launches."""

import contextlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton

from .gpu_backward import bias_kernel, key_value_kernel
from .gpu_plans import Arrangement, arrange
from .gpu_window import window_kernel
from .parts import Attention
from .pattern import Pattern
from .tiles import Side


class Call:
    """What the launches for one set of tensors have in common. q, k, v and bias are as `parts.Engine` gives them."""

    def __init__(
        self, settings: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        if q.stride(4) != 1:
            q = q.contiguous()
        if k.stride() != v.stride() or k.stride(4) != 1:
            k, v = k.contiguous(), v.contiguous()
        self.pattern, self.device = settings.pattern, q.device
        self.batch, self.heads, self.channels = q.shape[0], q.shape[3], q.shape[4]
        self.grid, self.keys = (q.shape[1], q.shape[2]), (k.shape[1], k.shape[2])
        self.single = q.dtype == torch.float32
        (H, W), (KH, KW) = self.grid, self.keys
        (sb, sr, sc, sh), (kb, kr, kc, kh) = q.stride()[:4], k.stride()[:4]
        self.values: dict[str, Any] = {
            "q": q, "k": k, "v": v, "bias": q if bias is None else bias.contiguous(), "HAS_BIAS": bias is not None,
            "scale": settings.scale, "H": H, "W": W, "KH": KH, "KW": KW, "batch": self.batch, "heads": self.heads,
            "sb": sb, "sr": sr, "sc": sc, "sh": sh, "kb": kb, "kr": kr, "kc": kc, "kh": kh, "so": out.stride(2),
        }  # fmt: skip

    def arranged(self, side: Side) -> Arrangement:
        """The tiles and blocks of a side."""
        return arrange(self.pattern, self.grid, self.keys, side, self.channels, self.single)

    def tiled(self, side: Side) -> tuple[int, dict[str, Any]]:
        """How many programs treat the tiles of a side for one head, and the arguments that describe these."""
        constants = self.arranged(side).constants
        own = tables(self.pattern, self.grid, self.keys, side, self.channels, self.single, self.device)
        down, across = len(own["rows"]), len(own["cols"])
        chunks = triton.cdiv(constants["QUERIES"], constants["BLOCK_Q"])
        steps = triton.cdiv(constants["KEYS"], constants["BLOCK_K"])
        if side == "key":
            chunks, steps = steps, chunks
        sizes = {"down": down, "across": across, "steps": steps}
        return self.batch * down * across * chunks, {**own, **sizes, **constants}

    def launch(self, kernel: Any, programs: int, **more: Any) -> None:
        """Run so many programs for every head, with arguments besides those of the call."""
        values = self.values | more
        fixed, warps = options(kernel, values, self.single, multiplies_in_groups(self.device))
        arguments = {name: (values | fixed)[name] for name in kernel.arg_names}
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            kernel[(programs * self.heads,)](**arguments, num_warps=warps)


@lru_cache(maxsize=256)
def tables(
    pattern: Pattern, grid: tuple[int, int], keys: tuple[int, int], side: Side, channels: int, single: bool,
    device: torch.device,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The tables of an arrangement, on the device."""
    arranged = arrange(pattern, grid, keys, side, channels, single)
    (rows, cols), (row_table, col_table) = arranged.plan[:2], arranged.tables
    groups = [[*row[1:], *col[1:]] for row in arranged.groups[0] for col in arranged.groups[1]]
    found = {"rows": row_table, "cols": col_table, "row_spans": rows.spans, "col_spans": cols.spans}
    found["groups"] = np.array(groups, np.int32)
    return {name: torch.tensor(table, device=device) for name, table in found.items()}


def options(kernel: Any, values: dict[str, Any], single: bool, grouped: bool) -> tuple[dict[str, int], int]:
    """The compile-time options of a kernel, besides what describes its tiles, and its warps; `grouped` as below."""
    # Loops that carry two tiles of sums, or a large one, have no registers to spare for tiles on their way; nor has any
    # 16-bit loop where products are not made by groups of warps.
    carries = kernel in (key_value_kernel, bias_kernel) or (single and kernel is window_kernel)
    stages = 1 if carries or not (single or grouped) else 2
    # A product of 64 rows occupies one group of four warps; further ones would only repeat it.
    heavy = single or values["BLOCK_D"] > 64 or kernel is bias_kernel or not grouped
    return {"STAGES": stages}, 8 if heavy else 4


def multiplies_in_groups(device: torch.device) -> bool:
    """Whether four warps make a matrix product together, as on sm_90; AMD's wide warps (gfx942 is 9.4) count too."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9
