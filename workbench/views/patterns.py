"""The Patterns page: click a position, see which keys an attention pattern reads and how far a stack of it reaches."""

from dataclasses import replace
from functools import partial
from typing import Any, Self

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.analysis import families
from workbench.analysis.patterns import LARGEST, PatternSpec
from workbench.images import list_images
from workbench.names import unknown
from workbench.plots.patterns import caption, deepest

from .figure import Position
from .page import WIDE, WRAP, PageView, arrows
from .pattern_choice import NONE, PatternChoice
from .pattern_figures import MatrixFigure, PatternFigure
from .pattern_request import AGGREGATION, PatternDrawing, PatternRequest, draw_patterns
from .pattern_tables import COMPILING, MATRIX, numbers_table, status_line
from .request import same_place
from .state import deliverer, when_loaded
from .tables import caption_html
from .text import Html

#: As many blocks as the deepest pattern on the page needs.
ALL_BLOCKS = 0


class PatternsView(PageView):
    """One query under one pattern or two; see `PageView`."""

    LINK = (
        "pattern", "other", "image", "rows", "cols", "row", "col", "blocks", "query_tile", "key_tile", "matrix",
    )  # fmt: skip

    pattern = param.String(default="swin(window=7, shift=3)")
    other = param.String(default="nat(kernel=7)")
    image: Any = param.Selector(default="coffee", objects=["coffee"])
    rows = param.Integer(default=56, bounds=(1, LARGEST))
    cols = param.Integer(default=56, bounds=(1, LARGEST))
    row = param.Integer(default=0, bounds=(0, None))
    col = param.Integer(default=0, bounds=(0, None))
    blocks = param.Integer(default=ALL_BLOCKS, bounds=(0, None))
    query_tile = param.Integer(default=8, bounds=(1, 32))
    key_tile = param.Integer(default=8, bounds=(1, 32))
    opacity = param.Number(default=0.75, bounds=(0, 1), step=0.05)
    matrix = param.Boolean(default=True)

    def __init__(self, **params: Any) -> None:
        self.param.image.objects = list_images()
        if params.get("image", "coffee") not in self.param.image.objects:
            raise ValueError(unknown("image", str(params["image"]), self.param.image.objects))
        for name in ("pattern", "other"):
            if params.get(name, NONE) != NONE or name == "pattern":
                text = params.get(name, self.param[name].default)
                params[name] = families.spell(*families.parse(text))
        super().__init__(**params)
        given = {name: params[name] for name in ("row", "col") if name in params}
        self.param.update(**{"row": self.rows * 9 // 20, "col": self.cols * 11 // 20} | given)
        self._tabled: tuple[PatternSpec, ...] = ()
        self._placed_on: Position = (self.rows, self.cols)
        self.figures = (PatternFigure(self.query, "pattern-a"), PatternFigure(self.query, "pattern-b"))
        self.matrices = (MatrixFigure("matrix-a"), MatrixFigure("matrix-b"))
        self._numbers = Html("", sizing_mode="stretch_width")
        self._compiling = Html(COMPILING, sizing_mode="stretch_width", margin=(0, 10))
        self._captions = tuple(Html("", sizing_mode="stretch_width", margin=(0, 10, 4, 10)) for _ in self.figures)
        self._slider = pmui.IntSlider.from_param(self.param.blocks, label="Blocks in the stack (0: all)", end=1, **WIDE)
        self._panels = self._make_panels()
        self.controls, self.body = self._make_controls(), self._make_body()
        self._try(lambda: self._show(draw_patterns(self.request())))  # the page opens on a finished picture
        self.param.watch(lambda *_: self._keep_place(), ["rows", "cols"])
        drawn_from = ["pattern", "other", "image", "rows", "cols", "row", "col", "query_tile", "key_tile", "matrix"]
        self.param.watch(lambda *_: self.refresh(), drawn_from)
        self.param.watch(lambda *_: self._redraw(), ["blocks"])
        self.param.watch(lambda *_: self._set_opacity(), ["opacity"])
        when_loaded(partial(AGGREGATION.when_ready, partial(deliverer(), self._compiled)))

    @classmethod
    def opened(cls, model: Any, image: Any, **state: Any) -> Self:
        """The page without a model, which it does not need; of images it shows those that ship."""
        if image is not None and not (isinstance(image, str) and image in list_images()):
            given = repr(image) if isinstance(image, str) else type(image).__name__
            names = ", ".join(list_images())
            raise ValueError(
                f"image must be the name of a picture on the page of patterns, one of {names}; got {given}."
            )
        return cls(**({"other": NONE} | state), **({} if image is None else {"image": image}))

    # State

    def query(self, row: int, col: int) -> None:
        """Choose the query."""
        self.param.update(row=row, col=col)

    def move(self, down: int, right: int) -> None:
        """Move the query by whole cells, stopping at the border."""
        self.query(min(max(self.row + down, 0), self.rows - 1), min(max(self.col + right, 0), self.cols - 1))

    def _keep_place(self) -> None:
        """Keep the query at the same place of the picture when the grid changes."""
        old, self._placed_on = self._placed_on, (self.rows, self.cols)
        row, col = same_place((min(self.row, old[0] - 1), min(self.col, old[1] - 1)), old, self._placed_on)
        self.param.update(row=row, col=col)

    # Drawing

    def request(self) -> PatternRequest:
        """What the page asks for now.

        Raises:
            ValueError: a pattern that cannot be read.
        """
        texts = [self.pattern] + ([] if self.other == NONE else [self.other])
        position = min(self.row, self.rows - 1), min(self.col, self.cols - 1)
        queries, keys = (self.query_tile, self.query_tile), (self.key_tile, self.key_tile)
        specs = [
            PatternSpec(text, (self.rows, self.cols), position, query_tile=queries, key_tile=keys) for text in texts
        ]
        return PatternRequest(tuple(specs), self.image, self.matrix)

    def refresh(self) -> None:
        """Ask the lane for the current picture; an older request of this page that still waits is dropped."""
        try:
            request = self.request()
        except ValueError as error:
            self.cancel()
            self._fail(error)
            return
        self.submit(partial(draw_patterns, request), self._show)

    def _compiled(self) -> None:
        """Draw the matrices, and say no more that they are missing."""
        self._compiling.visible = False
        if self.matrix:
            self.refresh()

    def _show(self, drawing: PatternDrawing) -> None:
        self._drawing = drawing
        self._messages.visible = False
        self._redraw()

    def _redraw(self) -> None:
        drawing = self._drawing
        if drawing is None:
            return
        results = list(drawing.results)
        most = deepest(results)
        if self.blocks > most:
            self.blocks = ALL_BLOCKS
        after = most if self.blocks == ALL_BLOCKS else min(self.blocks, most)
        with pn.io.hold():
            if self._slider.end != most:
                self._slider.end = most
            for i, figure in enumerate(self.figures):
                self._panels[i].visible = i < len(results)
                self._panels[i + 2].visible = i < len(drawing.matrices)
                if i < len(results):
                    figure.show(results[i], drawing.photograph, most, after, self.opacity)
                    self._captions[i].object = caption_html(caption(results[i], after))
                if i < len(drawing.matrices):
                    self._show_matrix(i, most, after)
            self._show_numbers(results)
            self._status.object = status_line(results, after)
            self._code.value = self.code()

    def _show_numbers(self, results: list[xr.Dataset]) -> None:
        """The table, which is the same for every query."""
        key = tuple(replace(spec, position=(0, 0)) for spec in self._specs())
        if key != self._tabled:
            self._tabled = key
            self._numbers.object = numbers_table(results)

    def _specs(self) -> tuple[PatternSpec, ...]:
        """The Specs of what is drawn."""
        return () if self._drawing is None else self._drawing.request.specs

    def _show_matrix(self, i: int, most: int, after: int) -> None:
        assert self._drawing is not None
        spec = self._specs()[i]
        query = spec.position[0] * spec.grid[1] + spec.position[1]
        matrix, whole = self._drawing.matrices[i]
        self.matrices[i].show(spec.pattern, matrix, whole, query, most, after)

    def _set_opacity(self) -> None:
        for figure in self.figures:
            figure.set_opacity(self.opacity)

    # Sharing

    def code(self) -> str:
        """Python that computes what is drawn."""
        lines = ["import workbench as wb"]
        for spec in self._specs():
            lines += [
                "",
                f'spec = wb.PatternSpec("{spec.pattern}", grid={spec.grid}, position={spec.position},',
                f"                      query_tile={spec.query_tile}, key_tile={spec.key_tile})",
                "result = wb.patterns(spec)",
            ]
        return "\n".join(lines) + "\n"

    # Parts

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        p = self.param
        return [
            PatternChoice(self, "pattern", "Pattern"),
            PatternChoice(self, "other", "Beside it", optional=True),
            pn.Row(
                pmui.IntInput.from_param(p.rows, label="Grid rows", **WIDE),
                pmui.IntInput.from_param(p.cols, label="Grid columns", **WIDE),
                sizing_mode="stretch_width",
            ),
            pn.Row(
                pmui.IntInput.from_param(p.row, label="Query row", **WIDE),
                pmui.IntInput.from_param(p.col, label="Query column", **WIDE),
                sizing_mode="stretch_width",
            ),
            arrows(self.move, "the query"),
            self._slider,
            pmui.Select.from_param(p.image, label="Picture", **WIDE),
            pmui.FloatSlider.from_param(p.opacity, label="Opacity of the map", **WIDE),
            pmui.IntSlider.from_param(p.query_tile, label="Query tile, positions a side", **WIDE),
            pmui.IntSlider.from_param(p.key_tile, label="Key tile, positions a side", **WIDE),
            pmui.Checkbox.from_param(p.matrix, label="Matrix of who depends on whom"),
        ]

    def _make_panels(self) -> tuple[pn.Column, ...]:
        """Two columns for the maps and two for the matrices."""
        wide = {"flex": "1 1 440px", "min-width": "0", "max-width": "860px"}
        square = {"flex": "1 1 250px", "min-width": "0", "max-width": "520px"}
        maps = [
            pn.Column(figure.pane, caption_, sizing_mode="stretch_width", styles=wide)
            for figure, caption_ in zip(self.figures, self._captions, strict=True)
        ]
        matrices = [
            pn.Column(
                figure.pane,
                Html(MATRIX, sizing_mode="stretch_width", margin=(0, 10)),
                sizing_mode="stretch_width",
                styles=square,
                visible=False,
            )
            for figure in self.matrices
        ]
        return (*maps, *matrices)

    def _make_body(self) -> pn.Column:
        numbers = pn.Column(
            self._numbers, self._compiling, self.sharing(),
            sizing_mode="stretch_width", styles={"flex": "1 1 390px", "min-width": "0", "max-width": "640px"},
        )  # fmt: skip
        return pn.Column(
            self._messages,
            self._status,
            pn.FlexBox(*self._panels[:2], **WRAP),
            pn.FlexBox(numbers, *self._panels[2:], **WRAP),
            sizing_mode="stretch_width",
        )
