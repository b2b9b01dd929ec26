"""`workbench latency --baselines`: ratios to other implementations, as a table and a file."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .latency import progress_bar, refusing

if TYPE_CHECKING:
    import xarray as xr


def measure_baselines(
    names: list[str] | None,
    batch: int,
    rounds: int,
    budget: float,
    device: str | None,
    out: Path | None,
    commit: str | None,
) -> None:
    """Measure, print a table, and write the same rows to a file."""
    from workbench.analysis.latency_baselines import latency_baselines
    from workbench.analysis.latency_baselines_file import write_baselines

    found: list[xr.Dataset] = []
    with refusing(out), progress_bar(found, out, commit, write_baselines, "ratio") as progress:
        latency_baselines(names or None, batch=batch, rounds=rounds, budget=budget, device=device, progress=progress)
    _report(found[-1])
    if out is not None:
        typer.echo(f"Written to {out}.")


def _report(result: "xr.Dataset") -> None:
    """A line for each row, and what the columns mean."""
    from workbench.analysis.latency_contests import AGAINST

    attrs = result.attrs
    spec = attrs["spec"]
    typer.echo(
        f"{attrs['device']} ({attrs['processor']}), {attrs['dtype']}, batch {spec['batch']}, {attrs['method']}, "
        f"{spec['rounds']} rounds in turns"
    )
    shapes = max(map(len, result["shape"].values))
    columns = " ".join(f"{name:>9}" for name in ("ours ms", "other ms"))
    typer.echo(f"{'what':15} {'shape':{shapes}}    {'against':12} {columns} {'ratio':>7} {'p20':>7} {'p80':>7}")
    for i in range(result.sizes["row"]):
        row = result.isel(row=i)
        both = "fb" if row["direction"].item() != "forward" else "f"
        start = f"{row['what'].item():15} {row['shape'].item():{shapes}} {both:2} {row['against'].item():12}"
        if reason := row["reason"].item():
            typer.echo(f"{start} left out: {reason}")
            continue
        times = " ".join(f"{1e3 * float(row[name]):>9.4g}" for name in ("ours", "other"))
        spread = " ".join(f"{float(row[name]):>7.2f}" for name in ("ratio", "p20", "p80"))
        typer.echo(f"{start} {times} {spread}{'  noisy' if row['noisy'] else ''}")
    typer.echo("f: forward, fb: forward and backward; ratio: other / ours, above 1 where ours is faster.")
    for name in dict.fromkeys(result["against"].values):
        typer.echo(f"{name}: {AGAINST[name]}.")
