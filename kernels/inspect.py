"""Look at GPU code without a GPU: compile every Triton kernel ahead of time and read what it uses, and how it is tiled.

The compiler and the tools that read its output come in Triton's wheel, so this runs on any Linux machine.
"""

import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from kernels.backends import BackendUnavailable, interpreting

#: Name -> (backend, architecture, warp size) as Triton's GPUTarget takes them.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}

OPS = ("propagation", "attention")


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel compiled for one target: registers a thread, bytes of spills a thread, bytes of shared memory."""

    op: str
    name: str
    target: str
    registers: int
    spills: int
    shared: int
    num_warps: int


@dataclass(frozen=True)
class TilePlan:
    """How attention cuts a pattern on a map into tiles: boxes of (rows, cols) queries and keys, all slots of a tile.

    side: what a tile owns, "query" for the output and the gradient of q, "key" for those of k and v. slots: queries
    times keys of a tile. masked: the share of these pairs that the pattern forbids or that lie outside the map.
    """

    plan: str
    map: tuple[int, int]
    side: str
    queries: tuple[int, int]
    keys: tuple[int, int]
    parts: int
    slots: int
    masked: float


#: The sides of the maps for which plans are shown: the stages of a model for images of 224 pixels.
MAPS = (56, 28, 14)
#: Channels of a head in the models.
HEAD = 32


def plans() -> Iterator[TilePlan]:
    """The tiles of every pattern of the family on representative maps, for both sides, for 16-bit storage."""
    from kernels.attention.gpu_plans import arrange

    for side in MAPS:
        for pattern in _family(side):
            for part, owner in product(pattern.groups, ("query", "key")):
                grid = part.on((side, side))
                rows, cols, masked = arrange(part, grid, grid, owner, HEAD, False).plan
                queries, keys = (rows.queries, cols.queries), (rows.keys, cols.keys)
                slots, parts = queries[0] * queries[1] * keys[0] * keys[1], rows.table.shape[1] * cols.table.shape[1]
                yield TilePlan(part.name, (side, side), owner, queries, keys, parts, slots, masked)


def _family(side: int) -> list[Any]:
    """The patterns of the family, at the sizes of the published models, on a map of side x side."""
    from kernels import attention as a

    return [
        a.swin(7), a.swin(7, 3), a.block(2), a.neighborhood(7), a.neighborhood(7, dilation=2), a.neighborhood(8, 4),
        a.neighborhood(7, causal=True), a.halo(7, 3), a.halo(7, 3, "clamp"), a.grid(7, side), a.cross(7), a.axial(0),
        a.axial(1), a.disc(8), a.power(64, 2, 1), a.full(),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def specs() -> list[dict[str, Any]]:
    """The configurations that every op gives for compilation."""
    return [spec for op in OPS for spec in import_module(f"kernels.{op}.gpu").compile_specs()]


def compile_kernels(targets: Iterable[str] = tuple(TARGETS)) -> Iterator[CompiledKernel]:
    """Compile every kernel for every target, in as many processes as there are processors, yielding them in order.

    Raises:
        ValueError: a target is unknown.
        BackendUnavailable: Triton kernels are being interpreted in this process.
    """
    targets = tuple(targets)
    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        raise ValueError(f"targets must be among {', '.join(TARGETS)}; got {', '.join(unknown)}.")
    if interpreting():
        raise BackendUnavailable("Kernels cannot be compiled while TRITON_INTERPRET=1 is set: start Python without it.")
    # A forked copy of a process with torch's threads may hang, so the workers start afresh and find their kernel again.
    context = multiprocessing.get_context("spawn")
    numbers, chosen = zip(*product(range(len(specs())), targets), strict=True)
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        yield from pool.map(_compile_number, numbers, chosen, chunksize=4)


def _compile_number(number: int, target: str) -> CompiledKernel:
    return _compile(specs()[number], target)


def _compile(spec: dict[str, Any], target: str) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = spec | spec.get("targets", {}).get(target, {})  # a spec may have other options for some targets
    source = ASTSource(
        fn=spec["fn"], signature=spec["signature"], constexprs=spec["constexprs"], attrs=spec.get("attrs")
    )
    options = {"num_warps": spec["num_warps"], "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    usage = _cuda_usage(built.asm["cubin"]) if "cubin" in built.asm else _amd_usage(built.asm["amdgcn"])
    return CompiledKernel(spec["op"], spec["name"], target, *usage, int(built.metadata.shared), spec["num_warps"])


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes a thread, as cuobjdump prints them."""
    import triton.backends.nvidia as nvidia

    tool = Path(os.path.dirname(nvidia.__file__)) / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _amd_usage(assembly: str) -> tuple[int, int]:
    """Vector registers and scratch bytes a thread, from the assembly's metadata."""
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    scratch = re.search(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    if registers is None or scratch is None:
        raise RuntimeError("Triton's AMD assembly no longer states .vgpr_count and .private_segment_fixed_size.")
    return int(registers[1]), int(scratch[1])
