"""What the lane does for the Kernels page: it waits for the processes that compile, a few kernels at a turn.

While kernels compile nobody's timing runs, because timings take turns in the same lane. What is compiled is remembered
for every session of this process.
"""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from typing import Any, NamedTuple

from kernels.compiled import WORKERS
from kernels.costs import cost, examples
from kernels.inspect import TARGETS, CompiledKernel, Compiler, cost_row, has_triton, python_source, specs

from .lane import Job
from .state import Recent

#: Seconds between two looks at whether a job was cancelled.
GLANCE = 0.1
#: Kernels that one process compiles in a turn: they are disassembled together.
BATCH = 3

#: A kernel for a target.
Pair = tuple[str, str]

COMPILER = Compiler()
_compiled: dict[Pair, CompiledKernel] = {}
_listings = Recent(40)


class Listing(NamedTuple):
    """The texts of a kernel for a target: its Python, and its PTX or AMD assembly."""

    name: str
    target: str
    python: str
    assembly: str


def kernel_names() -> list[tuple[str, str]]:
    """(op, name) of all kernels; without Triton, of one configuration of each kernel that has a formula of its cost."""
    return [(spec["op"], spec["name"]) for spec in specs()] if has_triton() else examples()


def row_of(op: str, name: str, target: str) -> dict[str, Any]:
    """`CompiledKernel.row`, or its part that is known before the kernel is compiled."""
    found = _compiled.get((name, target))
    return found.row() if found else {"op": op, "name": name, "target": target, **cost_row(cost(op, name))}


def is_compiled(pair: Pair) -> bool:
    return pair in _compiled


def compile_pairs(pairs: Iterable[Pair], job: Job) -> Generator[list[CompiledKernel], None, None]:
    """Compile what is not yet, yielding the kernels of every turn.

    Raises:
        BackendUnavailable: Triton is not installed.
    """
    numbers = {spec["name"]: number for number, spec in enumerate(specs())}
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in _compiled]
    by_target = {target: [numbers[name] for name, own in missing if own == target] for target in TARGETS}
    batches = [(all_[n : n + BATCH], target) for target, all_ in by_target.items() for n in range(0, len(all_), BATCH)]
    for n in range(0, len(batches), WORKERS):
        if job.cancelled.is_set():
            return
        futures = [COMPILER.submit(own, target) for own, target in batches[n : n + WORKERS]]
        found = [kernel for result in wait_for(futures, job) for kernel in result]
        _compiled.update({(kernel.name, kernel.target): kernel for kernel in found})
        yield found


def listing(name: str, target: str, job: Job) -> Listing | None:
    """The texts of a kernel; None where the job was cancelled meanwhile."""

    def make() -> Listing:
        number = next(n for n, spec in enumerate(specs()) if spec["name"] == name)
        (assembly,) = wait_for([COMPILER.listing(number, target)], job)
        return Listing(name, target, python_source(name), assembly)

    try:
        return _listings.get((name, target), make)
    except ValueError:
        if job.cancelled.is_set():
            return None
        raise


def wait_for(futures: Sequence[Future[Any]], job: Job) -> list[Any]:
    """The results; fewer where the job was cancelled, then without waiting for those that are under way."""
    results = []
    for future in futures:
        while not job.cancelled.is_set():
            with suppress(NotYet):
                results.append(future.result(GLANCE))
                break
        else:
            future.cancel()
    return results


def show_kernel(
    name: str, targets: Sequence[str], target: str, job: Job
) -> Generator[list[CompiledKernel] | Listing, None, None]:
    """Compile one kernel, for the target that is looked at first, and yield its texts for that one."""
    yield from compile_pairs([(name, target)], job)
    found = listing(name, target, job)
    if found is not None:
        yield found
    yield from compile_pairs([(name, each) for each in targets], job)
