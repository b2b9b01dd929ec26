"""The command line: `workbench serve | models | erf | latency | kernels`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .erf import erf
from .latency import latency

app = typer.Typer(no_args_is_help=True, help="See which pixels a vision model lets talk to which.")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5006,
) -> None:
    """Serve the dashboard."""
    from pathlib import Path

    import panel as pn

    from workbench.views.show import PAGES

    dashboard = Path(__file__).parents[2] / "apps" / "dashboard.py"
    typer.echo(f"GSPN workbench at http://{host}:{port}  (Ctrl-C stops it)")
    pn.serve(
        {page.route: dashboard for page in PAGES.values()},
        address=host,
        port=port,
        show=False,
        title="GSPN workbench",
        websocket_origin=[f"{host}:{port}", f"localhost:{port}", f"127.0.0.1:{port}"],
    )


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?.")] = "*") -> None:
    """List the models, their parameters and their mixing layers."""
    from workbench.models import list_models
    from workbench.models.registry import variant

    for name in list_models(pattern):
        model = variant(name).build({})  # shapes without storage: nothing is drawn
        parameters = sum(p.numel() for p in model.parameters())
        layers = model.layers()
        grids = ", ".join(dict.fromkeys(f"{r}x{c}" for r, c in (layer.grid for layer in layers)))
        line = f"{name:14} {parameters:>12,} parameters  {len(layers):>3} mixing layers on {grids}"
        typer.echo(f"{line}  at {model.input_size} pixels")


app.command()(erf)
app.command()(latency)


@app.command()
def kernels(
    target: Annotated[list[str] | None, typer.Option(help="A GPU target; all when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    plans: Annotated[bool, typer.Option(help="Only print how attention is tiled, and compile nothing.")] = False,
    warm: Annotated[bool, typer.Option(help="Only compile the CPU kernels into numba's cache.")] = False,
) -> None:
    """Compile every Triton kernel for every target, without a GPU; print what each uses and how attention is tiled."""
    if warm:
        from kernels.warm import warm as compile_cpu_kernels

        compile_cpu_kernels()
        typer.echo("The CPU kernels are compiled.")
        return
    from kernels.inspect import TARGETS

    unknown = [name for name in target or [] if name not in TARGETS]
    if unknown:
        raise typer.BadParameter(f"targets are {', '.join(TARGETS)}; got {', '.join(unknown)}")
    if not plans:
        _print_compiled(target or list(TARGETS), as_json)
    _print_plans(as_json)


def _print_compiled(targets: list[str], as_json: bool) -> None:
    """A line for each kernel and target: registers and spilled bytes a thread, bytes of shared memory, warps."""
    from kernels.inspect import compile_kernels

    if not as_json:
        typer.echo(f"{'op':12} {'kernel':44} {'target':8} {'registers':>9} {'spills':>7} {'shared':>7} {'warps':>6}")
    for k in compile_kernels(targets):
        if as_json:
            typer.echo(json.dumps(asdict(k)))
        else:
            typer.echo(
                f"{k.op:12} {k.name:44} {k.target:8} {k.registers:>9} {k.spills:>7} {k.shared:>7} {k.num_warps:>6}"
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
