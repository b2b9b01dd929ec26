"""The figures of the Attribution page, built once and then patched, and the scale that two of them may share."""

from dataclasses import dataclass

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.analysis.attribution import displayed
from workbench.plots import attribution as maps
from workbench.plots.affinity import photograph_figure

from .attribution_request import AttributionDrawing, Panel
from .field_figures import FieldFigure
from .figure import PhotographFigure

#: Methods whose attributions are in the same unit: the score per normalised value, or the score itself.
PER_VALUE = frozenset({"saliency", "noise_tunnel", "neuron_gradient"})
OF_SCORE = frozenset({"input_x_gradient", "integrated_gradients", "deep_lift"})


@dataclass(frozen=True)
class Look:
    """How an attribution is shown: the values in -1..1, what 1 stands for, and whether both panels share that."""

    shown: np.ndarray
    sign: str
    outlier: float
    top: float
    shared: bool
    alone: bool

    def words(self) -> str:
        """What a panel is normalised by, and whether its colours may be compared with the other's."""
        kind = {"positive": "above", "negative": "below"}.get(self.sign, "other than")
        top = f"1 stands for {self.top:.3g}" if np.isfinite(self.top) else f"no attribution is {kind} 0"
        if self.alone:
            return f"{top}."
        if self.shared:
            return f"{top}, taken over both panels: their colours are comparable."
        return f"{top}, taken over this panel alone: its colours are not comparable with the other panel's."


def looks_of(drawing: AttributionDrawing, sign: str, outlier: float) -> tuple[Look, ...]:
    """How the panels of a drawing are shown; they share one scale where their attributions are in one unit."""
    summed = [summed_over_colours(panel.result) for panel in drawing.panels]
    alone, shared = len(summed) == 1, comparable(drawing.panels)
    if shared:
        shown = np.split(displayed(xr.concat(summed, "row"), sign, outlier).values, len(summed))
    else:
        shown = [displayed(values, sign, outlier).values for values in summed]
    tops = [top_of(values.values, of) for values, of in zip(summed, shown, strict=True)]
    if shared:
        # Where a panel shows nothing below the top, the smallest of what was cut may lie above it.
        tops = [np.fmin.reduce(tops)] * len(tops)
    return tuple(Look(of, sign, outlier, top, shared, alone) for of, top in zip(shown, tops, strict=True))


def summed_over_colours(result: xr.Dataset) -> xr.DataArray:
    values = result["attribution"]
    return values.sum("colour", skipna=False) if "colour" in values.dims else values


def top_of(summed: np.ndarray, shown: np.ndarray) -> float:
    """The attribution that is shown as 1: what all are divided by; NaN where nothing is shown.

    It is read off the largest value that was not cut, or off the smallest of those that were.
    """
    magnitudes = np.abs(shown)
    uncut = np.where(magnitudes < 1, magnitudes, 0)
    if uncut.max(initial=0) > 0:
        at = np.unravel_index(uncut.argmax(), uncut.shape)
        return float(abs(summed[at] / shown[at]))
    cut = np.abs(summed[magnitudes == 1])
    return float(cut.min()) if cut.size else np.nan


def comparable(panels: tuple[Panel, ...]) -> bool:
    """Whether the panels' attributions are in one unit: one score of one model, by methods that measure the same.

    Grad-CAM takes the mean of the gradients over a layer's cells: the maps of two layers are in two units.
    """
    if len(panels) != 2:
        return False
    specs = [panel.result.attrs["spec"] for panel in panels]
    scores = [
        (panel.source.model, *(spec[name] for name in ("target", "layer", "unit", "channel", "cam_layer")))
        for panel, spec in zip(panels, specs, strict=True)
    ]
    methods = {spec["method"] for spec in specs}
    same_unit = len(methods) == 1 or methods <= PER_VALUE or methods <= OF_SCORE
    # Squares and variances of gradients are in another unit than gradients.
    return scores[0] == scores[1] and same_unit and all(spec["noise"] in (None, "smoothgrad") for spec in specs)


class AttributionFigure(FieldFigure):
    """One attribution over the picture, and the cell of the unit that it explains."""

    def show(self, panel: Panel, photograph: np.ndarray, look: Look, opacity: float) -> None:
        """Draw an attribution as `look` says."""
        size = panel.result.attrs["spec"]["size"]
        key = (size, look.sign, id(photograph))
        if key != self._key:
            self._size = size
            figure = maps.attribution_figure(panel.result, look.shown, photograph, look.sign, opacity, panel.grid)
            parts = {name: at for name, at in maps.PARTS.items() if name != "picture"}
            self._rebuild(key, figure.opts(title=""), parts)
            return
        self._patch("map", maps.map_data(panel.result, look.shown))
        self._patch("cell", maps.cell_data(panel.result, panel.grid))
        self.set_opacity(opacity)


class UnitPicture(PhotographFigure):
    """The picture as it is, and where a unit is explained, the cells that it can be chosen from."""

    def show_for(self, photograph: np.ndarray, panel: Panel | None) -> None:
        """Draw the picture with the unit of a panel, or for classes without cells."""
        if panel is not None and panel.grid is not None and panel.unit is not None:
            self.show(photograph, panel.grid, panel.unit, panel.grid)
            return
        if (key := (id(photograph), None)) != self._key:
            self._grid = (0, 0)  # no click is inside
            whole = photograph_figure(photograph, photograph.shape[:2], (0, 0))
            bare = hv.opts.RGB(xaxis=None, yaxis=None)
            plain = whole.clone(list(whole)[:1]).opts(bare, hv.opts.Overlay(title="the picture"))
            self._rebuild(key, plain, {"photo": 0})
