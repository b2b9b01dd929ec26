"""The figures of the Stability page, built once and then patched: photographs, the accumulated weight, and curves."""

from typing import Any

import numpy as np
import xarray as xr

from workbench.plots import stability as pictures
from workbench.plots import stability_curves as curves

from .figure import PatchedFigure


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two columns are equal, NaN where the other is."""
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _nothing(x: float, y: float) -> None:
    """These figures answer no click."""


class PicturesFigure(PatchedFigure):
    """The photograph, and what the propagation makes of it."""

    def __init__(self) -> None:
        super().__init__(_nothing, "stability-pictures")
        self._given = b""

    def show(self, result: xr.Dataset) -> None:
        if self._key is None:
            figure = pictures.pictures_figure(result)
            self._rebuild("pictures", figure, {"given": 0, "propagated": 1})
            return
        given, shown = pictures.exposures(result)
        before = pictures.packed(pictures.pixels(given))
        if before.tobytes() != self._given:  # the same picture need not be sent again
            self._given = before.tobytes()
            self._patch("given", {"image": [before]})
        self._patch("propagated", {"image": [pictures.packed(pictures.pixels(shown))]})
        self._push()


class WeightsFigure(PatchedFigure):
    """W and its row sums; rebuilt when its colours change between signed and not."""

    def __init__(self) -> None:
        super().__init__(_nothing, "stability-weights")
        self._sent: dict[str, dict[str, np.ndarray]] = {}

    def show(self, result: xr.Dataset) -> None:
        signed = pictures.is_signed(result)
        if signed != self._key:
            figure = pictures.weights_figure(result)
            self._sent = {}
            self._rebuild(signed, figure, {"matrix": 0, "sums": 1, "one": 2, "words": 3})
            return
        low, high = pictures.weight_limits(result)
        for handles in self._drawn.values():
            handles["matrix"]["color_mapper"].update(low=low, high=high)
        self._patch("matrix", {"image": [np.flipud(pictures.weight_image(result))]})
        sent = {
            "sums": pictures.sums_data(result), "one": pictures.one_data(result),
            "words": pictures.weight_words(result),
        }  # fmt: skip
        for part, columns in sent.items():
            if part not in self._sent or not all(same(columns[name], self._sent[part][name]) for name in columns):
                self._patch(part, columns)
        self._sent = sent
        self._push()


class CurveFigure(PatchedFigure):
    """One panel of lines."""

    def __init__(self, panel: str) -> None:
        super().__init__(_nothing, f"stability-{panel}")
        self._panel = panel
        self._sent: list[dict[str, np.ndarray]] = []

    def show(self, result: xr.Dataset) -> None:
        if self._key is None:
            figure = curves.curve_figure(result, self._panel)
            self._rebuild("curves", figure, {str(n): n for n in range(len(curves.PANELS[self._panel].names))})
            self._sent = curves.panel_data(result, self._panel)
            return
        before, self._sent = self._sent, curves.panel_data(result, self._panel)
        for n, (old, new) in enumerate(zip(before, self._sent, strict=True)):
            # Every column is a message of its own to the browser, and most x stay what they are.
            self._patch(str(n), {name: new[name] for name in new if not same(old[name], new[name])})
        limits: Any = curves.panel_limits(result, self._panel)
        for handles in self._drawn.values():
            for axis, (start, end) in zip(("x_range", "y_range"), limits, strict=True):
                handles["0"][axis].update(start=start, end=end)
        self._push()
