"""The command line: `workbench serve | models | erf | latency | kernels`."""

from typing import Annotated

import typer

from .erf import erf
from .kernels import kernels
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
app.command()(kernels)
