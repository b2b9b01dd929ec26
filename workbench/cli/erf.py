"""`workbench erf`: receptive fields of models over a folder of images, in runs that may be stopped and go on."""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from . import erf_request as request

if TYPE_CHECKING:
    import xarray as xr

    from workbench.analysis.resumable import Outcome

#: Exit statuses: no file could be read; an argument is wrong, or the results cannot be written.
NOTHING_READ, REFUSED = 1, 2

#: Inches: the width of a figure of one map and of several.
COLUMN, PAGE = 3.5, 7.0


def erf(
    models: Annotated[list[str], typer.Argument(help="Names of models; `workbench models` lists them.")],
    images: Annotated[Path, typer.Option(help="The folder of images; subfolders are read, too.")],
    out: Annotated[Path, typer.Option(help="The folder for the results; made if it is missing.")],
    layer: Annotated[str | None, typer.Option(help="Such as stage2.block1; left out: the last of each model.")] = None,
    unit: Annotated[str, typer.Option(help="centre, a cell ROW,COL of the layer's map, or a grid as 3x3.")] = "centre",
    size: Annotated[str | None, typer.Option(help="Pixels: a side, or ROWSxCOLS; left out: the model's own.")] = None,
    channels: Annotated[str, typer.Option(help="relu_sum, sum, mean, abs_sum or 'channel 5'.")] = "relu_sum",
    gradient: Annotated[str, typer.Option(help="relu, abs, square or relu_of_sum.")] = "relu",
    weights: Annotated[str, typer.Option(help="random, trained, or a file.")] = "random",
    seed: Annotated[list[str] | None, typer.Option(help="Of random weights, 0 if left out; several as 0,1,2.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the model as KEY=VALUE; may be repeated.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, reference, cpu or triton.")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Images of one pass; left out: few for large ones.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many files at most, evenly spread over the folder.")] = None,
) -> None:
    """Average effective receptive fields over a folder of images.

    Each model and seed gives a result: a .nc file with everything in it, a .csv
    table of the numbers and a .png figure; several give a comparison as well. A
    run that was stopped or killed goes on where it was when the same command is
    given again, and results that are there are left as they are. Files that
    cannot be read are listed and left out.
    """
    warnings.filterwarnings("ignore", module="PIL")  # about broken files, which are listed
    with _refusing(out):
        asked: dict[str, Any] = {"layer": layer, "unit": request.unit(unit), "size": request.size(size)}
        asked |= {"channels": channels, "gradient": gradient} | ({} if batch is None else {"batch": batch})
        jobs = request.jobs(models, request.configs(weights, seed, backend, setting), images, limit, out, **asked)
    results: list[xr.Dataset] = []
    new = False
    bad: dict[str, str] = {}
    with _stoppable() as stop:
        for job in jobs:
            outcome = _run(job, stop)
            bad |= dict(outcome.bad)
            if outcome.stopped:
                done = f"{outcome.files} of {len(job.folder)} files"
                typer.echo(f"{job}: stopped after {done}; the same command goes on from there.")
                raise typer.Exit(128 + stop.signal)
            if outcome.result is None:
                break
            results.append(outcome.result)
            new |= not outcome.found
    if len(results) > 1:
        with _refusing(out):
            _compare(results, out, new)
    _list(bad)
    if not results:
        typer.echo(f"None of the files in {str(images)!r} could be read.", err=True)
        raise typer.Exit(NOTHING_READ)


def _run(job: request.Job, stop: "_Stop") -> "Outcome":
    """Compute a result, or what is missing of it, with a progress bar."""
    from workbench.analysis.resumable import resumable_field

    with _refusing(job.path.parent):
        with _bar(job) as progress:
            outcome = resumable_field(
                job.load(),
                job.folder,
                job.spec,
                job.path,
                progress=progress,
                say=lambda sentence: typer.echo(f"{job}: {sentence}"),
                finish=lambda result: _draw([result], job.path),
                cancelled=stop.is_set,
            )
        if outcome.result is None:
            return outcome
        if outcome.found and not _drawn(job.path):
            _draw([outcome.result], job.path)
    _tell(job, outcome)
    return outcome


def _tell(job: request.Job, outcome: "Outcome") -> None:
    """A line about a result, and one if there is something to be careful about."""
    result = cast("xr.Dataset", outcome.result)
    state = "was done before and is left as it is" if outcome.found else "done"
    count, left_out = int(result["count"]), int(result["nonfinite"])
    without = f", without {left_out} whose gradient is not finite" if left_out else ""
    typer.echo(f"{job}: {state}, {count} images of {outcome.files} files{without}: {job.path}")
    if result.attrs["note"]:
        typer.echo(f"{job}: {result.attrs['note']}")


@contextmanager
def _bar(job: request.Job) -> Iterator[Callable[[int], None]]:
    """A progress bar over the files of a job, shown from the first call on."""
    from tqdm import tqdm

    bars: list[tqdm] = []

    def show(done: int) -> None:
        if not bars:
            bars.append(tqdm(total=len(job.folder), initial=done, desc=str(job), unit="file"))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _draw(results: "Sequence[xr.Dataset]", path: Path) -> None:
    """The table and the figure of results, under a path's name; every unit of one result, the middle one of several."""
    from workbench.analysis.export import save, write
    from workbench.plots.receptive_field_paper import figure, png

    save(results, path.with_suffix(".csv"))
    panels = list(results)
    if len(panels) == 1 and "unit" in panels[0].dims:
        panels = [panels[0].isel(unit=number) for number in range(panels[0].sizes["unit"])]
    write(path.with_suffix(".png"), png(figure(panels, width=COLUMN if len(panels) == 1 else PAGE)))


def _drawn(path: Path) -> bool:
    return all(path.with_suffix(suffix).exists() for suffix in (".csv", ".png"))


def _compare(results: "list[xr.Dataset]", out: Path, new: bool) -> None:
    """A table and a figure of several results, named after which they are, if one is new or they are missing."""
    from workbench.analysis.spec import spec_hash

    path = out / f"comparison_{spec_hash({'runs': [result.attrs['run'] for result in results]})}.csv"
    if new or not _drawn(path):
        _draw(results, path)
    typer.echo(f"Comparison of {len(results)} results: {path}")


def _list(bad: dict[str, str]) -> None:
    if bad:
        typer.echo(f"Could not be read and left out: {len(bad)} {'file' if len(bad) == 1 else 'files'}")
    for name, sentence in bad.items():
        typer.echo(f"  {name}: {sentence}")


class _Stop(threading.Event):
    """Set by a signal that asks the process to end; holds its number."""

    signal = 0


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask for a stop, once; the second time they end the process as they always do."""
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        stop.signal = number
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    # Only the main thread may set handlers, and only there a signal is handled.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _refusing(out: Path) -> Iterator[None]:
    """What is wrong with the arguments, or with the folder of the results, is one sentence and an exit status."""
    from kernels.backends import BackendUnavailable

    try:
        yield
    except (ValueError, BackendUnavailable) as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"The results cannot be written to {str(out)!r}: {error.strerror or error}.")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(REFUSED)
