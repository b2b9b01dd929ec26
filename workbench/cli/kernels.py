"""`workbench kernels`: what every Triton kernel uses and does on each GPU, compiled without one, and its texts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from kernels.inspect import CompiledKernel

#: Exit status: an argument is wrong, or kernels cannot be compiled here.
REFUSED = 2

#: The target whose code is printed where none is named.
USUAL = "sm_90"


def kernels(
    target: Annotated[list[str] | None, typer.Option(help="A GPU target, may be repeated; all if left out.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="A kernel's name, may be repeated; all if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, with all numbers.")] = False,
    plans: Annotated[bool, typer.Option(help="Only print how attention is tiled, and compile nothing.")] = False,
    source: Annotated[bool, typer.Option("--source", help="Only print the Python of the named kernels.")] = False,
    ptx: Annotated[bool, typer.Option("--ptx", help="Only print PTX (AMD: assembly) of the named kernels.")] = False,
    warm: Annotated[bool, typer.Option(help="Only compile the CPU kernels into numba's cache.")] = False,
) -> None:
    """Compile every Triton kernel for every target, without a GPU; print what each uses and how attention is tiled.

    A line for each kernel and target has registers and spilled bytes a thread,
    bytes of shared memory and warps of a program, the warps that a
    multiprocessor holds and what allows no more, operations and least bytes at
    a representative shape, and the share of loads that are 16 bytes wide.
    """
    if warm:
        from kernels.warm import warm as compile_cpu_kernels

        compile_cpu_kernels()
        typer.echo("The CPU kernels are compiled.")
        return
    from kernels.inspect import TARGETS

    unknown = [name for name in target or [] if name not in TARGETS]
    if unknown:
        raise typer.BadParameter(f"targets are {', '.join(TARGETS)}; got {', '.join(unknown)}")
    if source or ptx:
        if not kernel:
            _refuse("--source and --ptx print the texts of one kernel or a few: name them with --kernel.")
        with _refusing():
            _print_texts(kernel, target or [USUAL], source, ptx)
        return
    if not plans:
        with _refusing():
            _print_compiled(target or list(TARGETS), kernel, as_json)
    if plans or not kernel:
        _print_plans(as_json)


def _print_texts(names: list[str], targets: list[str], source: bool, ptx: bool) -> None:
    from kernels.inspect import Compiler, numbers_of, python_source

    numbers = numbers_of(names)
    if source:
        for name in names:
            typer.echo(python_source(name))
    compiler = Compiler()
    try:
        for future in [compiler.listing(n, target) for n in numbers for target in targets] if ptx else []:
            typer.echo(future.result())
    finally:
        compiler.close()


def _print_compiled(targets: list[str], names: list[str] | None, as_json: bool) -> None:
    """A line for each kernel and target."""
    from kernels.inspect import compile_kernels

    if not as_json:
        typer.echo(
            f"{'op':12} {'kernel':44} {'target':8} {'registers':>9} {'spills':>7} {'shared':>7} {'warps':>6} "
            f"{'held':>7} {'limited by':22} {'MFLOP':>8} {'MB':>8} {'FLOP/B':>7} {'16 B':>5}"
        )
    for compiled in compile_kernels(targets, names):
        typer.echo(json.dumps(compiled.row()) if as_json else _line(compiled))


def _line(k: "CompiledKernel") -> str:
    row = k.row()
    held = "–" if k.occupancy is None else f"{k.occupancy.warps}/{k.occupancy.most}"
    cost = ["–"] * 3 if k.cost is None else [f"{row['flops'] / 1e6:.4g}", f"{row['bytes'] / 1e6:.4g}"]
    cost += [] if k.cost is None else [f"{row['intensity']:.3g}"]
    wide = "–" if row["load_16_share"] is None else f"{row['load_16_share']:.0%}"
    return (
        f"{k.op:12} {k.name:44} {k.target:8} {k.registers:>9} {k.spills:>7} {k.shared:>7} {k.num_warps:>6} "
        f"{held:>7} {row['limit'] or 'not known':22} {cost[0]:>8} {cost[1]:>8} {cost[2]:>7} {wide:>5}"
    )


def _print_plans(as_json: bool) -> None:
    """A line for each pattern, map and side of its tiles; sizes are rows x columns."""
    from kernels.inspect import plans

    if not as_json:
        typer.echo(
            f"\n{'plan':36} {'map':7} {'side':6} {'queries':>9} {'keys':>9} {'parts':>5} {'slots':>9} {'masked':>7}"
        )
    for p in plans():
        if as_json:
            typer.echo(json.dumps(asdict(p)))
        else:
            sizes = [f"{rows}x{cols}" for rows, cols in (p.map, p.queries, p.keys)]
            line = f"{p.plan:36} {sizes[0]:7} {p.side:6} {sizes[1]:>9} {sizes[2]:>9}"
            typer.echo(f"{line} {p.parts:>5} {p.slots:>9} {p.masked:>7.1%}")


@contextmanager
def _refusing() -> Iterator[None]:
    """What is wrong is one sentence and an exit status."""
    from kernels.backends import BackendUnavailable

    try:
        yield
    except (ValueError, BackendUnavailable) as error:
        _refuse(str(error))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(REFUSED)
