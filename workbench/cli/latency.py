"""`workbench latency`: time operators and models at several sizes into a file, compare two such files, or baselines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    import xarray as xr

#: Exit statuses: an argument is wrong or a file cannot be read or written; Ctrl-C, as shells count it.
REFUSED, INTERRUPTED = 2, 130


#: What a run of baselines decides itself.
OF_SWEEPS = ("sizes", "channels", "dtype", "backward", "compare")


def latency(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Models, or operators such as 'gspn global'.")] = None,
    sizes: Annotated[str, typer.Option(help="Sides in pixels, an operator's in positions, as 64,128.")] = "32,64,128",
    batch: Annotated[int, typer.Option(help="Images.")] = 1,
    channels: Annotated[int, typer.Option(help="Channels of operators.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward together.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; left out: the GPU if there is one.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds for each name and size, or each contest.")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="The .json file for the results.")] = None,
    commit: Annotated[str | None, typer.Option(help="Of the code that is measured, noted in the file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two files, A and B, to compare in place of measuring.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Measure against other implementations, in turns: ratios.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Of --baselines: how often the contestants take turns.")] = 5,
) -> None:
    """Time operators and models at several sizes.

    Names are those that `workbench models` lists and the operators: gspn global,
    gspn local, full attention, window attention, neighborhood attention, axial
    attention, linear attention, depthwise 7x7 and depthwise 31x31. The file is
    replaced after every time; Ctrl-C leaves it with what was measured so far.

    With --baselines: operators at the shapes of gspn_tiny and swin_tiny, and
    these models, against eager PyTorch, a copy of the least bytes, the unfused
    kernels and transformers. Names are normalise_gates, propagate, mix, attend
    and models of the families gspn and swin; without names, all of them.
    """
    sources = {name: context.get_parameter_source(name) for name in (*OF_SWEEPS, "rounds")}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if baselines:
        if wrong := [f"--{name}" for name in given if name != "rounds"]:
            _refuse(f"--baselines has its own shapes and measures float32: leave {', '.join(wrong)} out.")
        from .latency_baselines import measure_baselines

        measure_baselines(names, batch, rounds, budget, device, out, commit)
        return
    if "rounds" in given:
        _refuse("--rounds belongs to --baselines.")
    if compare is not None:
        if names:
            _refuse("--compare takes two files and measures nothing: leave the names out.")
        _compare(*compare)
        return
    if not names:
        _refuse("Give the names of models or operators to time, or --compare with two files.")
    from workbench.analysis.latency_file import write_latency
    from workbench.analysis.latency_sweep import latency_sweep

    found: list[xr.Dataset] = []
    with refusing(out), progress_bar(found, out, commit, write_latency, "median") as progress:
        latency_sweep(
            names,
            _sizes(sizes),
            batch=batch,
            channels=channels,
            dtype=dtype,
            backward=backward,
            device=device,
            budget=budget,
            progress=progress,
        )
    _report(found[-1])
    if out is not None:
        typer.echo(f"Written to {out}.")


@contextmanager
def progress_bar(
    found: "list[xr.Dataset]", out: Path | None, commit: str | None, write: Callable[..., None], numbers: str
) -> Iterator[Callable[["xr.Dataset"], None]]:
    """A progress bar; every result so far is kept and written, and Ctrl-C ends with what there is.

    found: where the last result is kept; write: writes one to a file; numbers: the variable with an entry for all that
    is to be measured.
    """
    from tqdm import tqdm

    from workbench.analysis.latency_sweep import PENDING

    bars: list[tqdm] = []

    def show(result: "xr.Dataset") -> None:
        found[:] = [result]
        if out is not None:
            write(result, out, commit=commit)
        if not bars:
            bars.append(tqdm(total=result[numbers].size, desc="latency", unit=numbers))
        bars[0].update(int((result["reason"] != PENDING).sum()) - bars[0].n)

    try:
        yield show
    except KeyboardInterrupt:
        for bar in bars:
            bar.close()
        kept = f"; {out} has what was measured so far" if found and out is not None else ""
        typer.echo(f"Stopped{kept}.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for bar in bars:
            bar.close()


def _report(sweep: "xr.Dataset") -> None:
    """A line for each name and size, and the exponents."""
    attrs = sweep.attrs
    typer.echo(f"{attrs['device']} ({attrs['processor']}), {attrs['direction']}, {attrs['method']}")
    typer.echo(f"{'what':24} {'size':>6} {'median ms':>10} {'p20':>10} {'p80':>10} {'runs':>6} {'floor ms':>10}")
    for what in sweep["what"].values:
        for size in sweep["size"].values:
            cell = sweep.sel(what=what, size=size)
            if reason := cell["reason"].item():
                typer.echo(f"{what:24} {size:>6} left out: {reason}")
                continue
            times = " ".join(f"{1e3 * float(cell[name]):>10.4g}" for name in ("median", "p20", "p80"))
            line = f"{what:24} {size:>6} {times} {int(cell['n']):>6} {1e3 * float(cell['floor']):>10.4g}"
            typer.echo(f"{line}{'  noisy' if cell['noisy'] else ''}")
    for what in sweep["what"].values:
        slope, residual = (float(sweep[name].sel(what=what)) for name in ("exponent", "residual"))
        if slope == slope:  # NaN with fewer than two sizes
            typer.echo(f"{what}: time ~ pixels^{slope:.2f}, residual {residual:.2g}")


def _compare(a: Path, b: Path) -> None:
    from workbench.analysis.latency_compare import compare
    from workbench.analysis.latency_file import read_latency

    with refusing(None):
        found = compare(read_latency(a), read_latency(b))
    if found.attrs["note"]:
        typer.echo(found.attrs["note"])
    typer.echo(f"{'what':24} {'size':>6} {'A ms':>10} {'B ms':>10} {'B / A':>8}")
    for what in found["what"].values:
        for size in found["size"].values:
            cell = found.sel(what=what, size=size)
            if not float(cell["ratio"]) > 0:  # NaN: one of the two has no time
                typer.echo(f"{what:24} {size:>6} not in both")
                continue
            times = " ".join(f"{1e3 * float(cell[name]):>10.4g}" for name in ("a", "b"))
            noisy = "  noisy" if cell["noisy"] else ""
            typer.echo(f"{what:24} {size:>6} {times} {float(cell['ratio']):>8.3f}{noisy}")


def _sizes(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) <= 6 for word in words):
        raise ValueError(f"--sizes takes whole numbers, several as 64,128; got {text!r}.")
    return list(map(int, words))


@contextmanager
def refusing(out: Path | None) -> Iterator[None]:
    """What is wrong with the arguments or the files is one sentence and an exit status."""
    try:
        yield
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"The results cannot be written to {str(out)!r}: {error.strerror or error}.")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(REFUSED)
