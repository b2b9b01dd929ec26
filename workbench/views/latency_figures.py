"""The figure of the Latency page, built when its lines change and patched while they grow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.plots import latency as plot
from workbench.plots.latency import Recording

from .figure import PatchedFigure


class SweepFigure(PatchedFigure):
    """Time against positions, of this machine and of recordings."""

    def __init__(self) -> None:
        super().__init__(lambda x, y: None, "latency-sweep")
        self._sent: dict[str, plot.Columns] = {}

    def show(
        self, names: Sequence[str], sweep: xr.Dataset | None, recordings: Sequence[Recording], floors: bool
    ) -> None:
        """Draw the lines of `names`; only what has changed is sent to the browser."""
        sides = plot.sizes_of(names, sweep, recordings)
        key = tuple(names), tuple(sides), tuple((r.label, r.sweep.attrs["hash"]) for r in recordings)
        parts = plot.elements(names, sweep, recordings, floors)
        if key != self._key:
            figure = plot.latency_figure(names, sweep, recordings, floors)
            self._rebuild(key, figure, {part: at for at, part in enumerate(parts)})
            self._sent = parts
            return
        for part, columns in parts.items():
            if not _same(columns, self._sent[part]):
                self._patch(part, columns)
        self._sent = parts
        limits: Any = plot.axis_limits(names, sweep, recordings, floors)
        for handles in self._drawn.values():
            some = next(iter(handles.values()))
            for axis, (start, end) in zip(("x_range", "y_range"), limits, strict=True):
                some[axis].update(start=start, end=end, reset_start=start, reset_end=end)
        self._push()


def _same(a: plot.Columns, b: plot.Columns) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)
