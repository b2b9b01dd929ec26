"""The figures of the page of receptive fields, built once and then patched: maps, curves, and a difference of two."""

from collections.abc import Callable, Sequence
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from workbench.plots import receptive_field as maps
from workbench.plots import receptive_field_curves as curves
from workbench.plots import receptive_field_difference as differences
from workbench.plots.receptive_field import Columns

from .figure import PatchedFigure

Limits = tuple[float, float]


#: How wide a map usually is on the page, and what ticks, colour bar and toolbar take of its width and height.
USUAL, BESIDE, ABOVE = 330, 96, 64


def compact(figure: hv.Overlay, size: tuple[int, int]) -> hv.Overlay:
    """A map for a narrow column: the heading over it and the captions below say what its labels would."""

    def shape(plot: Any, element: Any) -> None:
        plot.state.aspect_ratio = USUAL / ((USUAL - BESIDE) * size[0] / size[1] + ABOVE)

    labels = hv.opts.RGB(xlabel="", ylabel=""), hv.opts.Image(clabel="")
    return with_hooks(figure.opts(*labels), shape).opts(title="")


def with_hooks(figure: hv.Overlay, *more: Callable[[Any, Any], None]) -> hv.Overlay:
    """A figure with further hooks after its own."""
    hooks = hv.Store.lookup_options("bokeh", figure, "plot").kwargs.get("hooks", [])
    return figure.opts(hooks=[*hooks, *more])


class FieldFigure(PatchedFigure):
    """A map over the first image; `on_pick(down, right)` is called with the clicked place as shares of the picture."""

    def __init__(self, on_pick: Callable[[float, float], None], name: str) -> None:
        super().__init__(self._tapped, name)
        self._on_pick = on_pick
        self._size = (1, 1)
        self._shown: Any = None

    def _tapped(self, x: float, y: float) -> None:
        down, right = -y / self._size[0], x / self._size[1]
        if 0 <= down < 1 and 0 <= right < 1:
            self._on_pick(down, right)

    def set_opacity(self, opacity: float) -> None:
        """How strongly the map covers the picture."""
        for handles in self._drawn.values():
            handles["map"]["glyph"].global_alpha = opacity
        self._push()

    def _patch_all(self, columns: dict[str, Columns], limits: Limits, opacity: float) -> None:
        for part, data in columns.items():
            self._patch(part, data)
        for handles in self._drawn.values():
            handles["map"]["color_mapper"].update(low=limits[0], high=limits[1])
        self.set_opacity(opacity)


class MapFigure(FieldFigure):
    """One model's map, its contours, its theoretical field and the unit."""

    def show(self, result: xr.Dataset, photograph: np.ndarray, limits: Limits, opacity: float) -> None:
        """Draw a result in the colour range of everything that is compared."""
        size = result.sizes["row"], result.sizes["col"]
        statistics = bool(result.attrs.get("global_by"))  # decides what the legend names
        key = (size, result.attrs["spec"]["grid"], id(photograph), statistics)
        before, self._shown = self._shown, (id(result["map"].values), limits)
        if key == self._key and before == self._shown:
            return  # another model's turn, which changes nothing here
        if key != self._key:
            self._size = size
            figure = compact(maps.map_figure(result, photograph, limits, opacity), size)
            self._rebuild(key, figure, {name: at for name, at in maps.PARTS.items() if name != "picture"})
            return
        self._patch_all(maps.patches(result), limits, opacity)


class DifferenceFigure(FieldFigure):
    """One model's map minus another's."""

    def show(self, a: xr.Dataset, b: xr.Dataset, photograph: np.ndarray, limits: Limits, opacity: float) -> None:
        size = a.sizes["row"], a.sizes["col"]
        key = (size, id(photograph))
        if key != self._key:
            self._size = size
            figure = compact(differences.difference_figure(a, b, photograph, limits, opacity), size)
            parts = {name: at for name, at in differences.PARTS.items() if name != "picture"}
            self._rebuild(key, figure, parts)
            return
        self._patch_all(differences.difference_patches(a, b), limits, opacity)


class CurvesFigure(PatchedFigure):
    """A line for every model, with marks where it reaches the thresholds."""

    def __init__(
        self,
        name: str,
        build: Callable[[Sequence[xr.Dataset]], hv.Overlay],
        patches: Callable[[Sequence[xr.Dataset]], list[dict[str, np.ndarray]]],
        xlabel: str,
    ) -> None:
        super().__init__(lambda x, y: None, name)
        self._build, self._patches, self._xlabel = build, patches, xlabel

    def show(self, results: Sequence[xr.Dataset], labels: Sequence[str]) -> None:
        """Draw results; the labels, which stay the same while images are added, tell them apart in the legend."""
        key = tuple(labels), tuple((r.sizes["row"], r.sizes["col"]) for r in results)
        if key == self._key:
            for n, columns in enumerate(self._patches(results)):
                self._patch(str(n), columns)
            self._push()
            return
        elements = list(built := self._build(results))
        named = [element.relabel(labels[n // 2]) for n, element in enumerate(elements[: 2 * len(results)])]
        figure = built.clone([*named, *elements[len(named) :]])
        figure = figure.opts(hv.opts.Curve(xlabel=self._xlabel))
        self._rebuild(key, figure, {str(n): n for n in range(len(named))})


def square_curves() -> CurvesFigure:
    return CurvesFigure(
        "curve-square", curves.square_figure, curves.square_patches, "side of square, % of shorter side"
    )


def ranked_curves() -> CurvesFigure:
    return CurvesFigure("curve-ranked", curves.ranked_figure, curves.ranked_patches, "highest pixels, % of all")
