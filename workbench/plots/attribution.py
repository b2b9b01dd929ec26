"""The figure of an attribution: what each pixel contributes to a score, over the picture.

A figure is built once; `map_data` then gives the columns of the Bokeh source that a new result of the same title and
size changes. Plot coordinates are those of the receptive fields: x runs right, y is minus the row, in pixels.
"""

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.analysis.attribution import BASELINES, METHODS, SIGNS

from .affinity import DIVERGING, SEQUENTIAL
from .receptive_field import HOVER_PLACE, Columns, background, cell, frame, hover_formatters, image
from .receptive_field_parts import block_means, block_side
from .receptive_field_words import blocks_in_words, weights_in_words

#: The parts of the figure, in the order of its elements.
PARTS = {"picture": 0, "map": 1, "cell": 2}

#: Options that a caption says in words of its own, or that change nothing but rounding.
SAID = ("baseline", "blur", "cam_layer", "batch")


def colour_range(sign: str) -> tuple[float, float]:
    """The range of displayed attributions: 0 to 1, or -1 to 1 where signs are shown."""
    return (-1.0, 1.0) if sign == "all" else (0.0, 1.0)


def map_data(result: xr.Dataset, shown: np.ndarray) -> Columns:
    """The columns of the map: the displayed attributions, and the attributions themselves, summed over the colours.

    Args:
        result: from `attribute`.
        shown: (H, W), from `displayed` of its attribution.
    """
    raw = result["attribution"]
    summed = raw.sum("colour", skipna=False) if "colour" in raw.dims else raw
    side = block_side(result.attrs["spec"]["size"])
    arrays = {"image": np.asarray(shown), "attribution": summed.values}
    return {name: [np.flipud(block_means(array, side)).astype(np.float32)] for name, array in arrays.items()}


def cell_data(result: xr.Dataset, grid: tuple[int, int] | None) -> Columns:
    """The columns of the explained unit's cell: none for a class, or where the grid of its layer is not given."""
    unit = result.attrs["spec"]["unit"]
    if unit is None or grid is None:
        return {side: [] for side in ("left", "bottom", "right", "top")}
    (row, col), (rows, cols) = unit, result.attrs["spec"]["size"]
    tall, wide = rows / grid[0], cols / grid[1]
    return {"left": [col * wide], "bottom": [-(row + 1) * tall], "right": [(col + 1) * wide], "top": [-row * tall]}


def attribution_figure(
    result: xr.Dataset,
    shown: np.ndarray,
    picture: np.ndarray | None,
    sign: str = "absolute_value",
    opacity: float = 0.7,
    grid: tuple[int, int] | None = None,
) -> hv.Overlay:
    """The displayed attributions over the picture; elements in the order of PARTS.

    Args:
        result: from `attribute`.
        shown: (H, W), from `displayed` of its attribution with the same sign.
        picture: (H, W, 3) uint8, what the model saw; None for a plain grey.
        sign: a name of `SIGNS`; "all" takes a diverging colour map, every other one a sequential map.
        opacity: of the map over the picture.
        grid: (rows, cols) of the map of the explained unit's layer, to outline its cell.
    """
    rows, cols = result.attrs["spec"]["size"]
    side = block_side((rows, cols))
    heat = image(map_data(result, shown), side).opts(
        cmap=DIVERGING if sign == "all" else SEQUENTIAL,
        clim=colour_range(sign),
        clabel=f"share of the top, {SIGNS[sign]}",
        alpha=1 if picture is None else opacity,
        hover_tooltips=[*HOVER_PLACE, ("shown", "@image{0.00}"), ("attribution", "@attribution{custom}")],
        hover_formatters=hover_formatters((rows, cols), side, "attribution"),
    )
    layers = [background((rows, cols), picture), heat, cell(cell_data(result, grid))]
    return hv.Overlay(layers).opts(*frame((rows, cols), title(result)))


def title(result: xr.Dataset) -> str:
    """Model, method, weights, and what is explained, on two lines."""
    a, spec = result.attrs, result.attrs["spec"]
    channel = "" if spec["channel"] is None else f", channel {spec['channel']}"
    what = f"class {spec['target']}" if spec["unit"] is None else f"unit {spec['unit']} of {spec['layer']}{channel}"
    return f"{a['model']}  {METHODS[spec['method']].title}  ({weights_in_words(result)})\n{what}"


def caption(result: xr.Dataset, sign: str, outlier_perc: float) -> str:
    """Method, target, scores, how the colours were made, how far the sum is off, where it was computed, warnings."""
    a, spec = result.attrs, result.attrs["spec"]
    method = METHODS[spec["method"]]
    rows, cols = spec["size"]
    parts = [
        f"{method.title}: {method.words} ({method.source})",
        f"explains {a['explains']}",
        *_scores(result),
        *_options(result),
        *_completeness(result),
        _colours(result, sign, outlier_perc),
        f"{rows} x {cols} pixels of {a['image']}",
        f"{a['model']}, {weights_in_words(result)}, SHA-256 {a['weights_sha256'][:12]}",
        f"{a['backend']} backend, {a['dtype']}, {a['device']}, Captum {a['captum']}",
    ]
    return "; ".join(parts) + "." + (f" {a['warning']}" if a["warning"] else "")


def _scores(result: xr.Dataset) -> list[str]:
    """The score at the picture, and at the baseline where there is one."""
    parts = [f"score {float(result['score']):.4g}"]
    if "baseline_score" in result:
        spec = result.attrs["spec"]
        words = BASELINES[spec["baseline"]]
        if spec["blur"] is not None:
            words = words.replace("`blur`", f"{spec['blur']:g}")
        parts.append(f"{float(result['baseline_score']):.4g} at the baseline, {words}")
    return parts


def _options(result: xr.Dataset) -> list[str]:
    """The method's options, and what it counted."""
    spec, a = result.attrs["spec"], result.attrs
    names = [name for name in METHODS[spec["method"]].options if name not in SAID and spec[name] is not None]
    parts = [f"{name} {spec[name]}" for name in names]
    if spec["cam_layer"] is not None:
        parts.append(f"map of {spec['cam_layer']}")
    if "pieces" in a:
        parts.append(f"{a['steps']} gradients on {a['pieces']} pieces of the path were taken")
    return [", ".join(parts)] if parts else []


def _completeness(result: xr.Dataset) -> list[str]:
    """How far the attributions' sum is from the change of the score, where they should be equal."""
    if "convergence_delta" not in result:
        return []
    change = float(result["score"]) - float(result["baseline_score"])
    delta, gap = float(result["convergence_delta"]), float(result["completeness_gap"])
    return [
        f"the attributions sum to {change + delta:.4g}, the score changes by {change:.4g}: off by {delta:.2g}, "
        f"{100 * gap:.2g} % of the change"
    ]


def _colours(result: xr.Dataset, sign: str, outlier_perc: float) -> str:
    summed = "summed over the colours, " if "colour" in result["attribution"].dims else ""
    side = block_side(result.attrs["spec"]["size"])
    meaning = ", red positive and blue negative" if sign == "all" else ""
    return (
        f"{summed}{SIGNS[sign]}{blocks_in_words(side)}; linear colours{meaning}; the top is the value up to which the "
        f"magnitudes hold {100 - outlier_perc:g} % of their sum, more has the colour of the top"
    )
