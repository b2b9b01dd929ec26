"""The words and numbers of the Latency page, which screen readers read."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from workbench.analysis.latency_sweep import PENDING
from workbench.plots.latency import Recording, provenance, share_in_words, time_in_words

from .latency_request import LatencyDrawing
from .tables import html_table

if TYPE_CHECKING:
    from .latency_layers import LayersDrawing

#: How far an exponent may be from 1 or 2 to be called by that name.
NEAR = 0.15

#: With a larger residual the times are too far from a line for its slope to mean something.
STRAIGHT = 0.25

#: Before anything was measured.
NOTHING = "Nothing has been measured yet."

COMPILING = "<b>Waiting</b>: the CPU kernels are being compiled, which would disturb the timing; it begins after that."
RATES = "<b>Waiting</b> for the lane, then measuring this machine's copy bandwidth and matrix rate"
PRESS = "Press <b>Measure</b> to time what is chosen on the left."


def exponent_in_words(exponent: float, residual: float) -> str:
    """What an exponent of the number of positions means, if the times lie on a line at all."""
    if math.isnan(exponent):
        return "needs two sizes"
    if residual > STRAIGHT:
        return "no power law"
    for power, name in ((1, "linear"), (2, "quadratic")):
        if abs(exponent - power) <= NEAR:
            return name
    if exponent < 1:
        return "less than linear"
    return "between linear and quadratic" if exponent < 2 else "more than quadratic"


def progress_line(drawing: LatencyDrawing, waiting: str, changed: bool) -> str:
    """How far the sweep is and what is timed now; `waiting`: what it waits for; `changed`: settings since."""
    if waiting:
        return _small(waiting)
    if drawing.sweep is None:
        return _small(f"{NOTHING} {PRESS}")
    of = f"{drawing.measured} of {drawing.planned} points"
    if drawing.running:
        point = drawing.next_point()
        now = f"; now {html.escape(point[0])} at {point[1]} × {point[1]}" if point else ""
        return _small(f"<b>Measuring</b>: {of}{now}")
    if not drawing.complete:
        return _small(f"<b>Stopped</b>: {of}. Files hold what was measured. {PRESS}")
    if drawing.quick:
        return _small(f"<b>A first look</b>: {of}, a tenth of a second each. {PRESS}")
    return _small(f"<b>Finished</b>: {of}.{f' The settings have changed since. {PRESS}' if changed else ''}")


def _small(text: str) -> str:
    return f"<div style='font-size: 12px'>{text}</div>"


def status_line(drawing: LatencyDrawing) -> str:
    """How time grows with the positions, in words: announced to screen readers when it changes."""
    text = NOTHING if drawing.sweep is None else _growth(drawing.sweep, drawing.running)
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{text}</div>"


def _growth(sweep: xr.Dataset, running: bool) -> str:
    if running:
        return f"Measuring {', '.join(html.escape(name) for name in sweep['what'].values)} …"
    fitted, unfit = [], []
    for n, name in enumerate(sweep["what"].values):
        exponent, residual = (float(sweep[key].values[n]) for key in ("exponent", "residual"))
        if residual <= STRAIGHT:
            told = exponent_in_words(exponent, residual)
            fitted.append(f"<b>{html.escape(name)}</b> {exponent:.2f} ({told})")
        elif not math.isnan(residual):
            unfit.append(html.escape(name))
    if not fitted and not unfit:
        return "No exponent can be fitted: that needs two measured sizes."
    sentences = [f"Time grows with the positions to the power of: {'; '.join(fitted)}."] if fitted else []
    return " ".join([*sentences, *([f"No power law, or too noisy for one: {', '.join(unfit)}."] if unfit else [])])


def numbers_table(sweep: xr.Dataset | None, label: str) -> str:
    """Each name's medians with the share of its floor that it reaches, and its fitted exponent."""
    if sweep is None:
        return ""
    sides = [f"{size}²" for size in sweep["size"].values]
    rows = []
    for name in sweep["what"].values:
        of = sweep.sel(what=name)
        cells = [_cell(of.isel(size=i)) for i in range(len(sides))]
        exponent, residual = float(of["exponent"]), float(of["residual"])
        two = int(of["median"].notnull().sum()) == 2  # which a line always meets
        fit = ["–", "–"] if math.isnan(exponent) else [f"{exponent:.2f}", "two sizes" if two else f"{residual:.2f}"]
        rows.append([name, *cells, *fit, exponent_in_words(exponent, residual)])
    table = html_table([label, *sides, "exponent", "residual", "in words"], rows, label)
    return f"<div style='overflow-x: auto'>{table}</div>"


def _cell(cell: xr.Dataset) -> str:
    median = float(cell["median"])
    if math.isnan(median):
        return "…" if cell["reason"] == PENDING else "left out"
    return _cell_of(cell)


TABLE_NOTE = (
    "Median of one run (share of the floor reached; above 100 % the data stays in a cache). Exponent: slope of log "
    "time against log positions by least squares, 1 is linear and 2 quadratic in the number of positions or pixels; "
    "residual: root mean square distance from that line in log time, 0.1 is about 10 %. Less than linear: fixed costs "
    f"still weigh at these sizes; no power law: a residual above {STRAIGHT:g}."
)


def left_out(sweep: xr.Dataset | None) -> str:
    """Why there is no time of a name and size, a line for each."""
    if sweep is None:
        return ""
    reasons = [
        f"<li>{html.escape(str(name))} at {size} × {size}: {html.escape(reason)}</li>"
        for name in sweep["what"].values
        for size in sweep["size"].values
        if (reason := str(sweep["reason"].sel(what=name, size=size).item())) and reason != PENDING
    ]
    return _small(f"Left out:<ul style='margin: 0'>{''.join(reasons)}</ul>") if reasons else ""


def machine_line(sweep: xr.Dataset | None) -> str:
    """The machine that the live numbers are of, and its measured rates."""
    if sweep is None:
        return ""
    a = sweep.attrs
    text = (
        f"Measured on this machine: {a['device']}, {a['processor']}, {a['cores']} cores; torch "
        f"{a['versions']['torch']}, {a['method']}; copy bandwidth {float(sweep['bandwidth']) / 1e9:.3g} GB/s, matrix "
        f"rate {float(sweep['matmul']) / 1e9:.3g} GFLOP/s in {a['spec']['dtype']}, both measured; {a['direction']}, "
        f"batch {a['spec']['batch']}, {a['spec']['channels']} channels in operators."
    )
    return f"<div style='font-size: 12px'>{html.escape(text)}</div>"


def recorded_tables(recordings: Sequence[Recording], names: Sequence[str]) -> str:
    """The numbers of every recording that is shown, each by itself, with its device and where it is from."""
    parts = []
    for recording in recordings:
        known = [name for name in recording.sweep["what"].values if name in names]
        if known:
            table = numbers_table(recording.sweep.sel(what=known), f"recorded: {recording.label}")
            parts.append(f"{table}{_small(html.escape(provenance(recording.sweep)))}")
    return "".join(parts)


def layers_line(drawing: "LayersDrawing | None", waiting: str, changed: bool) -> str:
    """How far the layers are; `waiting`: what they wait for; `changed`: the choice since."""
    press = "Press <b>Measure the layers</b> to time what is chosen on the left."
    if waiting or drawing is None:
        return _small(waiting or f"{NOTHING} {press}")
    of = f"{drawing.done} of {drawing.total} layers of {html.escape(drawing.request.model)}"
    if drawing.running:
        return _small(f"<b>Measuring</b>: {of}")
    state = "Finished" if drawing.done == drawing.total else "Stopped"
    return _small(f"<b>{state}</b>: {of}.{f' The choice has changed since. {press}' if changed else ''}")


def layers_table(result: xr.Dataset) -> str:
    """The numbers of the bars: every layer, its mixing step, and what is left of the model's time."""
    whole, rows = float(result["model_median"]), []
    for name in result["layer"].values:
        of = result.sel(layer=name)
        mixing, layer = of.sel(part="mixing"), of.sel(part="layer")
        if math.isnan(float(layer["median"])):
            continue
        grid = f"{int(of['rows'])} × {int(of['cols'])}"
        share = f"{100 * float(layer['median']) / whole:.3g} %"
        rows.append([str(name), str(of["kind"].item()), grid, _cell_of(mixing), _cell_of(layer), share])
    rest = float(result["rest"])
    if not math.isnan(rest):
        rows.append(
            ["everything else", "", "", "", time_in_words(rest) if rest > 0 else "–", f"{100 * rest / whole:.3g} %"]
        )
    rows.append(["whole model", "", "", "", time_in_words(whole), "100 %"])
    head = ["layer", "kind", "grid", "mixing step", "whole layer", "share of the model's time"]
    return f"<div style='overflow-x: auto'>{html_table(head, rows, 'time of each layer')}</div>"


def _cell_of(part: xr.Dataset) -> str:
    noisy = ", noisy" if part["noisy"] else ""
    share = share_in_words(float(part["floor"] / part["median"]))
    # A narrow cell may break between time and share, not within them.
    time, share = (text.replace(" ", "\N{NO-BREAK SPACE}") for text in (time_in_words(float(part["median"])), share))
    return f"{time} ({share}{noisy})"
