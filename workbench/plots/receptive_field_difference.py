"""One receptive field minus another on the same picture: where the first model looks more, and where less.

A figure is built once; `difference_patches` then gives the columns of all Bokeh sources that new results change.
"""

import holoviews as hv
import numpy as np
import xarray as xr
from bokeh.models import CustomJSTickFormatter

from .affinity import DIVERGING
from .receptive_field import (
    CONTOUR,
    HOVER_PLACE,
    UNDER,
    Columns,
    background,
    box_data,
    cell,
    frame,
    hover_formatters,
    image,
    line_data,
    path,
)
from .receptive_field_parts import (
    HELD,
    block_areas,
    block_means,
    contour,
    contour_side,
    one_unit,
    picture_size,
)
from .receptive_field_words import blocks_in_words, facts, names, shared_facts

#: The parts of a difference figure, in the order of its elements.
PARTS = {
    name: index for index, name in enumerate(("picture", "map", "casing", "half", "other_half", "cell", "other_cell"))
}


#: Differences that are not drawn, as a share of the top of the range.
LEAST = 0.02


def difference(a: xr.Dataset, b: xr.Dataset) -> np.ndarray:
    """The first map minus the second as shares of the mass per pixel, on means of blocks.

    Both maps lie on the pixels of the picture; neither is moved, also where the units' cells differ.

    Raises:
        ValueError: the pictures differ in size.
    """
    if picture_size(a) != picture_size(b):
        first, second = ("{} x {}".format(*picture_size(r)) for r in (a, b))
        raise ValueError(
            f"A difference of two receptive fields needs pictures of one size; got {first} and {second} pixels."
        )
    values = one_unit(a)["map"].values - one_unit(b)["map"].values
    return block_means(values, contour_side(values.shape))


def difference_range(a: xr.Dataset, b: xr.Dataset) -> tuple[float, float]:
    """A range that is symmetric about 0; its top is the 98th percentile of the magnitudes that are not 0."""
    values = np.abs(difference(a, b))
    top = float(np.percentile(values[values > 0], 98)) if values.any() else 1.0
    return -top, top


def moved_mass(a: xr.Dataset, b: xr.Dataset) -> float:
    """The share of the mass that lies on other blocks: half the sum of the magnitudes, 0 for equal maps, at most 1."""
    values = difference(a, b)
    return float((np.abs(values) * block_areas(picture_size(a), contour_side(picture_size(a)))).sum() / 2)


def difference_patches(a: xr.Dataset, b: xr.Dataset) -> dict[str, Columns]:
    """Part of the figure -> columns of its source, for results whose picture has the same size and title."""
    values = difference(a, b)
    least = LEAST * difference_range(a, b)[1]
    drawn = np.where(np.abs(values) <= least, np.nan, values).astype(np.float32)
    halves = contour(a, HELD[0]), contour(b, HELD[0])
    return {
        "map": {"image": [np.flipud(drawn)], "difference": [np.flipud(values).astype(np.float32)]},
        "casing": line_data([*halves[0], *halves[1]]),
        "half": line_data(halves[0]),
        "other_half": line_data(halves[1]),
        "cell": box_data(a),
        "other_cell": box_data(b),
    }


def difference_figure(
    a: xr.Dataset, b: xr.Dataset, picture: np.ndarray | None, limits: tuple[float, float], opacity: float = 0.85
) -> hv.Overlay:
    """The first map minus the second, with the regions that hold half of the mass of each. Elements as in PARTS.

    Args:
        a, b: from `receptive_field`, at one size of the picture.
        picture: (H, W, 3) uint8, or None for a plain grey.
        limits: from `difference_range`.
        opacity: of the map over the picture.

    Raises:
        ValueError: the pictures differ in size.
    """
    data, (first, second), size = difference_patches(a, b), names([a, b]), picture_size(a)
    side = contour_side(size)
    heat = image(data["map"], side).opts(
        cmap=DIVERGING,
        clim=limits,
        clabel="difference of shares per pixel",
        cformatter=CustomJSTickFormatter(code="return tick === 0 ? '0' : tick.toExponential(1)"),
        alpha=1 if picture is None else opacity,
        hover_tooltips=[*HOVER_PLACE, ("difference", "@difference{custom}")],
        hover_formatters=hover_formatters(size, side, "difference"),
    )
    layers = [
        background(size, picture),
        heat,
        path(data["casing"]).opts(**UNDER),
        path(data["half"]).opts(line_color=CONTOUR),
        path(data["other_half"]).opts(line_color=CONTOUR, line_dash="dashed"),
        cell(data["cell"]),
        cell(data["other_cell"]).opts(line_dash="dashed"),
    ]
    return hv.Overlay(layers).opts(*frame(size, f"{first} minus {second}\n{_shared(a, b)}"))


def _shared(a: xr.Dataset, b: xr.Dataset) -> str:
    """What the title says of both."""
    first, second = facts(a), facts(b)
    return ", ".join(first[key] for key in ("layer", "weights", "size") if first[key] == second[key])


def difference_caption(a: xr.Dataset, b: xr.Dataset, limits: tuple[float, float]) -> str:
    """What the difference shows and how it was made; what the two results have in common is said once."""
    share = f"{100 * moved_mass(a, b):.3g}"
    parts = [
        f"Effective receptive fields, the first minus the second: {' minus '.join(names([a, b]))}",
        f"shares of each map's sum per pixel{blocks_in_words(contour_side(picture_size(a)))}",
        f"red: the first has more, blue: the second; linear colours to {limits[1]:.2g}, symmetric, top at the 98th "
        f"percentile of the magnitudes; nothing drawn up to {100 * LEAST:g} % of the top",
        f"{share} % of the mass lies on other blocks; both on the pixels of the picture, neither moved",
        "lines around the highest-density regions that hold 50 % of the mass of the first (solid) and second (dashed)",
        *shared_facts([a, b]),
    ]
    return "; ".join(parts) + "."
