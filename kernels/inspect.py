"""Look at GPU code without a GPU: compile every Triton kernel ahead of time and read what it uses.

The compiler and the tools that read its output come in Triton's wheel, so this runs on any Linux machine.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
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


def specs() -> list[dict[str, Any]]:
    """The configurations that every op gives for compilation."""
    return [spec for op in OPS for spec in import_module(f"kernels.{op}.gpu").compile_specs()]


def compile_kernels(targets: Iterable[str] = tuple(TARGETS)) -> Iterator[CompiledKernel]:
    """Compile every kernel for every target, yielding each as it is done.

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
    for spec in specs():
        for target in targets:
            yield _compile(spec, target)


def _compile(spec: dict[str, Any], target: str) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
