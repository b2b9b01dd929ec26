"""The figures of the Kernels page: the instruction mix on the chosen targets, and a tile of attention."""

from typing import Any

from kernels.inspect import TileBoxes
from workbench.plots.kernels import mix_figure, tile_figure

from .figure import PatchedFigure


def _nothing(x: float, y: float) -> None:
    """These figures answer no click."""


class MixFigure(PatchedFigure):
    """Bars of the kinds of instructions; another kernel is another figure, because its kinds differ."""

    def __init__(self) -> None:
        super().__init__(_nothing, "kernel-mix")

    def show(self, rows: list[dict[str, Any]]) -> None:
        key = [(row["name"], row["target"], row["mix"]) for row in rows]
        if key != self._key:
            self._rebuild(key, mix_figure(rows), {"bars": 0})


class TileFigure(PatchedFigure):
    """The boxes of one tile."""

    def __init__(self) -> None:
        super().__init__(_nothing, "kernel-tile")

    def show(self, tile: TileBoxes) -> None:
        if tile != self._key:
            self._rebuild(tile, tile_figure(tile), {"keys": 1, "queries": 2})
