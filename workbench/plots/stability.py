"""The pictures of the stability laboratory: what a photograph becomes, and the accumulated weight with its row sums.

Plot coordinates: x runs right, y is minus the row. Both photographs are drawn as squares, whatever their sides, because
the laboratory stretches a photograph to its lines. Every function takes a Dataset of `workbench.analysis.stability`.
"""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .affinity import DECADES, DIVERGING, SEQUENTIAL

#: Where the second photograph begins, when the first one is 1 wide.
BESIDE = 1.05

#: The colour of values that are not finite.
NOT_FINITE = (216, 27, 140)

#: The row sums beside the matrix: where they begin and how wide they are, in sides of the matrix.
SUMS_AT, SUMS_WIDE = 1.06, 0.26

FRAME: dict[str, Any] = {
    "responsive": True, "data_aspect": 1, "toolbar": None, "default_tools": [], "fontsize": {"title": "10pt"},
    "xaxis": None, "yaxis": None, "show_legend": False,
}  # fmt: skip

_TEXT = {
    "text_font_size": "9pt", "text_align": "left", "text_baseline": "top", "text_color": "white",
    "background_fill_color": "black", "background_fill_alpha": 0.55,
}  # fmt: skip


def exposures(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cols, 3) float64, x and h in shares of white; NaN and infinities stay.

    White is 1, or the largest |x| where that is more. h is divided by what a white picture would come to under
    row-stochastic gates (`white`), so that such gates neither brighten nor darken the photograph.
    """
    given, hidden = result["given"].values, result["propagated"].values
    white = result["white"].values
    along = result.attrs["spec"]["direction"]
    if result.attrs.get("merge") == "released":
        along = "left_right"
    if along in ("right_left", "bottom_top"):
        white = white[::-1]
    scale = white[None, :, None] if along in ("left_right", "right_left") else white[:, None, None]
    unit = max(1.0, float(np.abs(given).max()))
    with np.errstate(all="ignore"):
        shown = hidden / (np.where(scale > 0, scale, 1.0) * unit)
    return _three(given / unit), _three(shown)


def _three(picture: np.ndarray) -> np.ndarray:
    """Three channels: as they are, or the mean of any other number."""
    if picture.shape[2] == 3:
        return picture
    with np.errstate(all="ignore"):
        return np.repeat(picture.mean(2, keepdims=True), 3, 2)


def pixels(shown: np.ndarray) -> np.ndarray:
    """Exposures -> (rows, cols, 3) uint8: clipped to black and white, and `NOT_FINITE` where a value is not finite."""
    finite = np.isfinite(shown).all(2)
    clipped = np.clip(np.where(np.isfinite(shown), shown, 0.0), 0.0, 1.0)
    rgb = np.rint(255 * clipped).astype(np.uint8)
    rgb[~finite] = NOT_FINITE
    return rgb


def clipped_shares(shown: np.ndarray) -> dict[str, float]:
    """The shares of pixels that are too bright, too dark, or not finite to be drawn as they are."""
    finite = np.isfinite(shown).all(2)
    with np.errstate(invalid="ignore"):
        above, below = (shown > 1.001).any(2) & finite, (shown < -0.001).any(2) & finite
    return {"above": float(above.mean()), "below": float(below.mean()), "nonfinite": float((~finite).mean())}


def packed(rgb: np.ndarray) -> np.ndarray:
    """(rows, cols, 3) uint8 -> (rows, cols) uint32, as Bokeh's image takes colours, last row first."""
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    return np.flipud(np.ascontiguousarray(rgba).view(np.uint32)[..., 0])


def pictures_figure(result: xr.Dataset) -> hv.Overlay:
    """x on the left, h on the right; elements: given, propagated, labels."""
    given, shown = exposures(result)
    left = hv.RGB(pixels(given), bounds=(0, -1, 1, 0))
    right = hv.RGB(pixels(shown), bounds=(BESIDE, -1, BESIDE + 1, 0))
    words = hv.Labels(
        {"x": [0.01, BESIDE + 0.01], "y": [-0.01, -0.01], "text": ["x, the photograph", "h, propagated"]},
        ["x", "y"], "text",
    ).opts(**_TEXT)  # fmt: skip
    return (left * right * words).opts(hv.opts.Overlay(**FRAME))


def is_signed(result: xr.Dataset) -> bool:
    """Whether W has negative entries."""
    return bool(result["accumulated"].values.min() < 0)


def weight_limits(result: xr.Dataset) -> tuple[float, float]:
    """The colour range of W: `DECADES` below its largest entry, or symmetric about 0 where it has negative ones.

    The top is rounded up to a quarter of a decade, so that colour bar and axes are seldom drawn anew.
    """
    top = float(np.abs(result["accumulated"].values).max()) or 1.0
    top = float(10 ** min(np.ceil(4 * np.log10(top)) / 4, 308))
    return (-top, top) if is_signed(result) else (top / 10**DECADES, top)


def weight_image(result: xr.Dataset) -> np.ndarray:
    """W with NaN where it is exactly 0, which is not drawn, and otherwise nothing below the colour range."""
    w = result["accumulated"].values
    if not is_signed(result):
        w = np.where(w == 0, 0.0, np.maximum(w, weight_limits(result)[0]))
    return np.where(w == 0, np.nan, w)


def sums_data(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The columns of the row sums, as steps beside the matrix: from 0 to the larger of 1.25 and the largest."""
    sums = np.repeat(result["accumulated_row_sum"].values, 2)
    rows = np.repeat(np.linspace(0, 1, result.sizes["to"] + 1), 2)[1:-1]
    return {"x": SUMS_AT + SUMS_WIDE * np.clip(sums, 0, None) / sums_top(result), "y": -rows}


def one_data(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The columns of the line at row sum 1."""
    return {"x": np.full(2, SUMS_AT + SUMS_WIDE / sums_top(result)), "y": np.array([0.0, -1.0])}


def weight_words(result: xr.Dataset) -> dict[str, np.ndarray]:
    """The columns of the matrix's labels."""
    words = [f"W after {result.attrs['accumulated_steps']} steps", "row sums"]
    return {"x": np.array([0.01, SUMS_AT]), "y": np.full(2, -0.01), "text": np.array(words)}


def sums_top(result: xr.Dataset) -> float:
    """The row sum at the right edge of the strip beside the matrix."""
    return max(1.25, float(result["accumulated_row_sum"].values.max()))


def weights_figure(result: xr.Dataset) -> hv.Overlay:
    """W as a unit square, reader down and read position across, its row sums beside it, and a line at 1.

    Elements: matrix, sums, one, labels.
    """
    signed = is_signed(result)
    matrix = hv.Image(weight_image(result), bounds=(0, -1, 1, 0), vdims=[hv.Dimension("weight", label="weight")]).opts(
        cmap=DIVERGING if signed else SEQUENTIAL,
        clim=weight_limits(result),
        cnorm="linear" if signed else "log",
        colorbar=True,
        colorbar_opts={"width": 10, "padding": 2},
        clipping_colors={"NaN": "rgba(0, 0, 0, 0)"},
        tools=[],
    )
    sums = hv.Curve(sums_data(result), "x", "y").opts(color="#0072b2", line_width=1.5)
    one = hv.Curve(one_data(result), "x", "y").opts(color="#7f7f7f", line_dash="dashed", line_width=1)
    words = hv.Labels(weight_words(result), ["x", "y"], "text").opts(**_TEXT)
    limits = {"xlim": (0, SUMS_AT + SUMS_WIDE + 0.02), "ylim": (-1, 0)}
    return (matrix * sums * one * words).opts(hv.opts.Overlay(**FRAME, **limits))
