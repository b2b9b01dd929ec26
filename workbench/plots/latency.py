"""Time against the number of positions, both logarithmic: measured now as solid lines, recorded elsewhere as dashed.

The colour and marker of a line say what was timed, its dashes on which device. Times of different devices are drawn
into one figure and never put together into one line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter

from workbench.analysis.latency_ops import OPERATORS

from .receptive_field import TOOLS
from .receptive_field_curves import LINES, Line

Columns = dict[str, Any]

#: The looks of what can be timed; no two share a marker, and each colour has 3 : 1 contrast on a white and a dark page.
STYLES = (
    *LINES,
    Line("#8560c8", (), "star"),
    Line("#2a8fd0", (), "plus"),
    Line("#b5403f", (), "square_pin"),
)

#: Dashes of recorded devices, in pixels.
DASHES = ((8, 4), (3, 3), (10, 3, 3, 3), (14, 4))

#: Names of the guides, and the power of the number of positions that they grow with.
GUIDES = {"linear in the positions": 1, "quadratic": 2}
GUIDE_COLOUR = "#7f7f7f"

#: Time axes end at whole half decades, so that they seldom move while a sweep goes on.
STEPS = 2

#: The least distance of two numbers below the axis, as a share of its length.
APART = 0.055

#: Seconds that an axis spans where nothing is measured yet.
EMPTY = (1e-4, 1e-1)

HEIGHT = 470

#: With more elements than this HoloViews draws no legend; every line has several.
MOST_LINES = 10_000


@dataclass(frozen=True)
class Recording:
    """A sweep that was recorded on some device, and what it is called in the legend."""

    label: str
    sweep: xr.Dataset


def style_of(name: str, others: Sequence[str] = ()) -> Line:
    """The look of an operator, always the same; of a model, by its place among the figure's models `others`."""
    known = list(OPERATORS)
    number = known.index(name) if name in known else len(known) + [o for o in others if o not in known].index(name)
    return STYLES[number % len(STYLES)]


def points(sweep: xr.Dataset | None, name: str) -> Columns:
    """The columns of what was measured of a name: positions, seconds, and the words of each point's tooltip."""
    rows: list[dict[str, Any]] = []
    if sweep is not None and name in sweep["what"].values:
        at = int(np.flatnonzero(sweep["what"].values == name)[0])
        values = {key: sweep[key].values[at] for key in ("median", "p20", "p80", "floor", "n", "noisy")}
        measured = np.flatnonzero(np.isfinite(values["median"]))
        about, sizes = {"name": name, "device": sweep.attrs["device"]}, sweep["size"].values
        rows = [about | _point(int(sizes[i]), {key: v[i] for key, v in values.items()}) for i in measured]
    numbers = {key: np.array([row[key] for row in rows], float) for key in NUMBERS}
    return numbers | {key: [row[key] for row in rows] for key in WORDS}


NUMBERS = ("positions", "seconds", "low", "high", "least", "noisy")
WORDS = ("name", "device", "side", "median", "spread", "runs", "floor", "share")


def _point(size: int, values: Mapping[str, Any]) -> dict[str, Any]:
    median, p20, p80, floor = (float(values[key]) for key in ("median", "p20", "p80", "floor"))
    return {
        "positions": size * size, "seconds": median, "low": p20, "high": p80, "least": floor,
        "noisy": values["noisy"], "side": f"{size} × {size}", "median": time_in_words(median),
        "spread": f"{time_in_words(p20)} to {time_in_words(p80)}",
        "runs": f"{int(values['n'])}{', noisy' if values['noisy'] else ''}", "floor": time_in_words(floor),
        "share": share_in_words(floor / median),
    }  # fmt: skip


def time_in_words(seconds: float) -> str:
    """Seconds, milliseconds or microseconds, to three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def share_in_words(share: float) -> str:
    """A share in percent, without more digits than a timing has."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def band(columns: Columns) -> Columns:
    """The outline of the band from p20 to p80, forth below and back above."""
    x, low, high = columns["positions"], columns["low"], columns["high"]
    return {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([low, high[::-1]])}


def elements(
    names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording], floors: bool
) -> dict[str, Columns]:
    """Every part of the figure that a new result changes, in order, with the columns of its Bokeh source."""
    parts: dict[str, Columns] = {}
    limits = axis_limits(names, sweep, recordings, floors)
    for guide, power in GUIDES.items():
        parts[f"guide {guide}"] = _guide(limits, power)
    for name in names:
        columns = points(sweep, name)
        parts[f"band {name}"] = band(columns)
        parts[f"floor {name}"] = _line(columns, "least") if floors else _line(points(None, name), "least")
        parts[f"line {name}"] = _line(columns)
        parts |= {f"points {name}": _marks(columns), f"noisy {name}": _marks(columns, noisy=True)}
    for n, recording in enumerate(recordings):
        for name in names:
            columns = points(recording.sweep, name)
            parts[f"recorded line {n} {name}"] = _line(columns)
            parts[f"recorded points {n} {name}"] = _marks(columns)
            parts[f"recorded noisy {n} {name}"] = _marks(columns, noisy=True)
    return parts


def _line(columns: Columns, y: str = "seconds") -> Columns:
    return {"positions": columns["positions"], "seconds": columns[y]}


def _marks(columns: Columns, noisy: bool = False) -> Columns:
    """The points that are noisy, or those that are not."""
    kept = columns["noisy"] == noisy
    numbers = {key: columns[key][kept] for key in ("positions", "seconds")}
    return numbers | {key: [word for word, keep in zip(columns[key], kept, strict=True) if keep] for key in WORDS}


def _guide(limits: tuple[tuple[float, float], tuple[float, float]], power: int) -> Columns:
    """A line from the lower left corner that grows with a power of the positions."""
    (left, right), (bottom, top) = limits
    end = min(right, left * (top / bottom) ** (1 / power))
    x = np.array([left, end])
    return {"positions": x, "seconds": bottom * (x / left) ** power}


def axis_limits(
    names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording], floors: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((left, right), (bottom, top)) of the figure: all sizes asked for, and all times so far."""
    sides = sizes_of(names, sweep, recordings)
    drawn = [points(s, name) for s in (sweep, *(r.sweep for r in recordings)) for name in names]
    kinds = ("low", "high", "least") if floors else ("low", "high")
    times = np.concatenate([columns[kind] for columns in drawn for kind in kinds] or [np.array([])])
    low, high = (times.min(), times.max()) if times.size else EMPTY
    bottom = np.floor(STEPS * np.log10(low * 0.93)) / STEPS
    top = np.ceil(STEPS * np.log10(high * 1.07)) / STEPS
    return (min(sides) ** 2 / 1.2, max(sides) ** 2 * 1.2), (float(10**bottom), float(10**top))


def sizes_of(names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording]) -> list[int]:
    """The sides that are asked for or were recorded of any of the names."""
    sides = set(sweep["size"].values.tolist()) if sweep is not None else set()
    for recording in recordings:
        if any(name in recording.sweep["what"].values for name in names):
            sides |= set(recording.sweep["size"].values.tolist())
    return sorted(sides) or [16, 64]


def ticks(sides: Sequence[int]) -> list[tuple[float, str]]:
    """Where the axis of positions has numbers: at sides, the largest first, as far as they have room."""
    span, shown = max(np.log(sides[-1] / sides[0]), 1e-9), [sides[-1]]
    for side in reversed(sides[:-1]):
        if np.log(shown[-1] / side) > APART * span:
            shown.append(side)
    return [(float(side * side), f"{side}²") for side in reversed(shown)]


def latency_figure(
    names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording] = (), floors: bool = False
) -> hv.Overlay:
    """Median seconds against positions with bands from p20 to p80, for every name; elements as in `elements`.

    Solid: the sweep. Dashed: recordings, by their device. Hollow marks are noisy. Dotted, thin: floors, and guides.
    """
    parts, layers = elements(names, sweep, recordings, floors), []
    for part, columns in parts.items():
        if part.startswith("guide"):
            label = part.removeprefix("guide ")
            dash = [1, 3] if GUIDES[label] == 1 else [1, 7]
            layers.append(_curve(columns, label).opts(color=GUIDE_COLOUR, line_dash=dash, line_width=1.5))
    for name in names:
        style = style_of(name, names)
        colour, marker, columns = style.colour, style.marker, points(sweep, name)
        area = hv.Area((columns["positions"], columns["high"], columns["low"]), "positions", ["seconds", "low"])
        layers += [
            area.relabel(name).opts(color=colour, fill_alpha=0.13, line_alpha=0),
            _curve(parts[f"floor {name}"], name).opts(color=colour, line_dash=[2, 2], line_width=1),
            _curve(parts[f"line {name}"], name).opts(color=colour, line_width=2),
            *_both(parts, "", name, size=9, color=colour, marker=marker),
        ]
    for n in range(len(recordings)):
        dash = list(DASHES[n % len(DASHES)])
        for name in names:
            style = style_of(name, names)
            line = _curve(parts[f"recorded line {n} {name}"], name)
            layers.append(line.opts(color=style.colour, line_dash=dash, line_width=1.5))
            layers += _both(parts, "recorded ", f"{n} {name}", size=6, color=style.colour, marker=style.marker)
    limits = axis_limits(names, sweep, recordings, floors)
    for n, recording in enumerate(recordings):  # a line of no length for the legend, which shows none without points
        empty = {"positions": np.full(2, limits[0][0]), "seconds": np.full(2, limits[1][0])}
        dash = list(DASHES[n % len(DASHES)])
        layers.append(_curve(empty, recording.label).opts(color=GUIDE_COLOUR, line_dash=dash, line_width=1.5))
    axes = hv.opts.Curve(logx=True, logy=True, xlim=limits[0], ylim=limits[1], default_tools=TOOLS)
    frame = _frame(ticks(sizes_of(names, sweep, recordings)))
    return hv.Overlay(layers).opts(axes, hv.opts.Area(logx=True, logy=True, default_tools=TOOLS), frame)


def _curve(columns: Columns, label: str) -> hv.Curve:
    return hv.Curve(columns, "positions", "seconds", label=label)


def _both(parts: dict[str, Columns], kind: str, of: str, **look: Any) -> list[hv.Points]:
    """Marks that say their numbers under the pointer, those that are noisy hollow."""
    label = of.partition(" ")[2] if kind else of
    return [
        _points(parts[f"{kind}points {of}"], label).opts(**look),
        _points(parts[f"{kind}noisy {of}"], label).opts(fill_alpha=0, line_width=1.5, **look),
    ]


def _points(columns: Columns, label: str) -> hv.Points:
    tips = [
        ("what", "@name"), ("on", "@device"), ("size", "@side"), ("median", "@median"), ("p20 to p80", "@spread"),
        ("runs n", "@runs"), ("floor", "@floor"), ("share of the floor reached", "@share"),
    ]  # fmt: skip
    return hv.Points(columns, ["positions", "seconds"], [*WORDS], label=label).opts(
        logx=True, logy=True, tools=["hover"], hover_tooltips=tips, default_tools=TOOLS
    )


def _frame(xticks: list[tuple[float, str]]) -> Any:
    return hv.opts.Overlay(
        responsive=True,
        height=HEIGHT,
        toolbar="above",
        default_tools=TOOLS,
        active_tools=["box_zoom"],
        backend_opts={"plot.toolbar.logo": None},
        show_grid=True,
        xticks=xticks,
        xlabel="positions (of a model's image: pixels)",
        ylabel="time of one run",
        yformatter=_ticks(),
        legend_position="right",
        legend_limit=MOST_LINES,
        legend_opts={
            "background_fill_alpha": 0.0, "border_line_color": None, "label_text_font_size": "9pt",
            "click_policy": "hide", "spacing": 0,
        },
        fontsize={"title": "10pt"},
    )  # fmt: skip


def _ticks() -> CustomJSTickFormatter:
    """Seconds, ms or µs; a document needs a formatter of its own."""
    code = """
    const digits = number => String(+number.toPrecision(3))
    return tick >= 0.9999 ? digits(tick) + " s" : tick >= 0.9999e-3 ? digits(1e3 * tick) + " ms"
                          : digits(1e6 * tick) + " µs"
    """
    return CustomJSTickFormatter(code=code)


def provenance(sweep: xr.Dataset) -> str:
    """On what, with what and how a sweep was measured."""
    a = sweep.attrs
    spec: Mapping[str, Any] = a["spec"]
    commit = f", commit {a['commit'][:10]}" if a.get("commit") else ""
    versions = ", ".join(f"{name} {a['versions'][name]}" for name in ("torch", "triton") if name in a["versions"])
    threads = f", {a['threads']} of {a['cores']} cores" if a["device_type"] == "cpu" else ""
    device = f"{a['device']} ({a['processor']}{threads})"
    return (
        f"{device}; {a['direction']}, batch {spec['batch']}, {spec['channels']} channels in operators, "
        f"{spec['dtype']}; {a['method']}; {versions}{commit}; {a['date']}"
    )


def caption(sweep: xr.Dataset | None, recordings: Sequence[Recording], floors: bool) -> str:
    """What the lines and marks are, and on what they were measured."""
    parts = ["Median and band from p20 to p80 of one run; both axes logarithmic; hollow marks: noisy"]
    if floors:
        parts.append(
            "thin dotted: floor of the solid lines, the larger of least bytes over measured bandwidth and operations "
            "over measured rate"
        )
    if sweep is not None:
        parts.append(f"solid: measured on this machine, {provenance(sweep)}")
    parts += [f"dashed, recorded as {r.label!r}: {provenance(r.sweep)}" for r in recordings]
    return "; ".join(parts) + "."
