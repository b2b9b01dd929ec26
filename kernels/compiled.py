"""Compile Triton kernels ahead of time, without a GPU, in processes of their own, and read what each one uses.

The compiler and the tools that read its output come in Triton's wheel, so this runs on any Linux machine. The workers
start afresh: a forked copy of a process with torch's threads may hang, and one that interprets Triton's kernels cannot
compile them, so TRITON_INTERPRET is taken away before a worker imports Triton.
"""

import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kernels.backends import BackendUnavailable
from kernels.costs import Cost, cost, ridge
from kernels.instructions import count_amd, count_cuda, wide_share
from kernels.occupancy import Occupancy, occupancy

#: Name -> (backend, architecture, warp size) as Triton's GPUTarget takes them.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}

OPS = ("propagation", "attention")

#: Processes that compile: each holds torch and Triton, some 400 MB.
WORKERS = min(os.cpu_count() or 1, 8)

#: Kernels that a worker compiles before it disassembles them together.
TOGETHER = 16

MISSING = (
    "Kernels cannot be compiled here because Triton is not installed; its wheels are for Linux: "
    "on Linux, `pip install triton`."
)


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel compiled for one target: registers and bytes of spills a thread, bytes of shared memory, warps.

    tensor: columns of tensor memory (sm_100). mix: kind of instruction -> how many, see `instructions.KINDS`.
    constants: the compile-time arguments, which hold the tile plan.
    """

    op: str
    name: str
    target: str
    registers: int
    spills: int
    shared: int
    num_warps: int
    tensor: int
    mix: dict[str, int]
    constants: dict[str, int | bool]

    @property
    def occupancy(self) -> Occupancy | None:
        """What a multiprocessor holds at once; None where the target's limits are not known."""
        return occupancy(self.target, self.registers, self.shared, self.num_warps, self.tensor)

    @property
    def cost(self) -> Cost | None:
        """Operations and least bytes; None without a formula."""
        return cost(self.op, self.name)

    def row(self) -> dict[str, Any]:
        """Every number by its name, as `workbench kernels --json` prints them; None for what is not known."""
        held, needed = self.occupancy, self.cost
        fields = ("op", "name", "target", "registers", "spills", "shared", "num_warps", "tensor")
        return {name: getattr(self, name) for name in fields} | {
            "programs": held and held.programs, "warps": held and held.warps, "most_warps": held and held.most,
            "occupancy": held and held.share, "limit": held and held.limit,
            **cost_row(needed), "ridge": ridge(self.target, self.name),
            "load_16_share": wide_share(self.mix), "mix": self.mix,
            "constants": self.constants,
        }  # fmt: skip


def cost_row(needed: Cost | None) -> dict[str, Any]:
    """The part of a row that nothing has to be compiled for."""
    return {
        "shape": needed and needed.shape, "flops": needed and needed.flops, "bytes": needed and needed.bytes,
        "intensity": needed and needed.intensity,
    }  # fmt: skip


@lru_cache(maxsize=1)
def specs() -> list[dict[str, Any]]:
    """The configurations that every op gives for compilation.

    Raises:
        BackendUnavailable: Triton is not installed.
    """
    if not has_triton():
        raise BackendUnavailable(MISSING)
    return [spec for op in OPS for spec in import_module(f"kernels.{op}.gpu").compile_specs()]


def spec_for(number: int, target: str) -> dict[str, Any]:
    """A configuration as it is compiled for a target: some have other options there."""
    spec = specs()[number]
    return spec | spec.get("targets", {}).get(target, {})


def has_triton() -> bool:
    """Whether Triton is installed."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # it is not to be imported
        return False


class Compiler:
    """Worker processes that compile kernels by their numbers in `specs`; they start with the first request."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, numbers: Iterable[int], target: str) -> Future[list[CompiledKernel]]:
        """Compile kernels for a target."""
        return self._run(_compile, tuple(numbers), target)

    def listing(self, number: int, target: str) -> Future[str]:
        """A kernel's PTX, or AMD's assembly."""
        return self._run(_listing, number, target)

    def _run(self, work: Any, *args: Any) -> Future[Any]:
        specs()  # which says whether Triton is there
        try:
            return self._workers().submit(work, *args)
        except BrokenProcessPool:  # a worker was killed
            self._pool = None
            return self._workers().submit(work, *args)

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(WORKERS, context, initializer=_begin)
        return self._pool

    def close(self) -> None:
        """Start nothing more, and wait for what is under way."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def compile_kernels(
    targets: Iterable[str] = tuple(TARGETS), names: Iterable[str] | None = None
) -> Iterator[CompiledKernel]:
    """Compile kernels for every target, in `WORKERS` processes at a time, yielding them in order.

    names: of kernels, as `specs` has them; None for all.

    Raises:
        ValueError: a target or a name is unknown.
        BackendUnavailable: Triton is not installed.
    """
    targets, numbers = known_targets(targets), numbers_of(names)
    groups = [numbers[n : n + TOGETHER] for n in range(0, len(numbers), TOGETHER)]
    compiler = Compiler()
    try:
        for futures in [[compiler.submit(group, target) for target in targets] for group in groups]:
            results = [future.result() for future in futures]
            for kernel in zip(*results, strict=True):
                yield from kernel
    finally:
        compiler.close()


def known_targets(targets: Iterable[str]) -> tuple[str, ...]:
    """The targets; raises ValueError with the known ones where one is not among them."""
    targets = tuple(targets)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ValueError(f"targets must be among {', '.join(TARGETS)}; got {', '.join(unknown)}.")
    return targets


def numbers_of(names: Iterable[str] | None) -> list[int]:
    """The numbers of kernels in `specs`; raises ValueError for a name that is not there."""
    known = [spec["name"] for spec in specs()]
    if names is None:
        return list(range(len(known)))
    names = list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"There is no kernel named {unknown[0]!r}; `workbench kernels` lists them.")
    return [known.index(name) for name in names]


# In a worker


def _begin() -> None:
    """Compile, even where the parent interprets; leave the parent its processor and its Ctrl-C, and end with it."""
    os.environ.pop("TRITON_INTERPRET", None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, because it holds an end of its own queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _compile(numbers: tuple[int, ...], target: str) -> list[CompiledKernel]:
    built = [_build(number, target) for number in numbers]
    nvidia = TARGETS[target][0] == "cuda"
    if nvidia:
        cubins = [each.asm["cubin"] for each in built]
        mixes, usages = count_cuda(cubins, target, _tool("nvdisasm")), [_cuda_usage(cubin) for cubin in cubins]
    else:
        texts = [each.asm["amdgcn"] for each in built]
        mixes, usages = [count_amd(text) for text in texts], [_amd_usage(text) for text in texts]
    found = []
    for number, each, mix, usage in zip(numbers, built, mixes, usages, strict=True):
        spec, kept = spec_for(number, target), each.metadata
        tensor = int(getattr(kept, "tmem_size", 0) or 0) if nvidia else 0
        constants = {name: value for name, value in spec["constexprs"].items() if isinstance(value, int)}
        held = int(kept.shared), kept.num_warps, tensor
        found.append(CompiledKernel(spec["op"], spec["name"], target, *usage, *held, mix, constants))
    return found


def _listing(number: int, target: str) -> str:
    asm = _build(number, target).asm
    return str(asm["ptx"] if "ptx" in asm else asm["amdgcn"])


def _build(number: int, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = spec_for(number, target)
    source = ASTSource(
        fn=spec["fn"], signature=spec["signature"], constexprs=spec["constexprs"], attrs=spec.get("attrs")
    )
    options = {"num_warps": spec["num_warps"], "enable_fp_fusion": True}
    options |= {name: spec[name] for name in ("maxnreg",) if name in spec}
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def _tool(name: str) -> Path:
    """The path of a tool in Triton's wheel."""
    import triton.backends.nvidia as nvidia

    return Path(os.path.dirname(nvidia.__file__)) / "bin" / name


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes a thread, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool("cuobjdump")), "--dump-resource-usage", file.name]
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
