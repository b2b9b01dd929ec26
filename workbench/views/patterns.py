"""The Patterns page: click a position, see which keys an attention pattern reads and how far a stack of it reaches."""

import html
from dataclasses import replace
from functools import partial
from typing import Any

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
from .lane import LANE, Job
from .pattern_choice import NONE, WIDE, PatternChoice
from .pattern_figures import MatrixFigure, PatternFigure
from .pattern_request import AGGREGATION, PatternDrawing, PatternRequest, draw_patterns
from .pattern_tables import COMPILING, MATRIX, numbers_table, status_line
from .request import same_place
from .state import deliverer, when_loaded
from .tables import caption_html
from .text import Html

#: As many blocks as the deepest pattern on the page needs.
ALL_BLOCKS = 0


class PatternsView(pn.viewable.Viewer):
    """The page's state and its parts: `controls`, `body`, or both together when shown in a notebook cell."""

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
        self._drawing: PatternDrawing | None = None
        self._tabled: tuple[PatternSpec, ...] = ()
        self._placed_on: Position = (self.rows, self.cols)
        self.figures = (PatternFigure(self.query, "pattern-a"), PatternFigure(self.query, "pattern-b"))
        self.matrices = (MatrixFigure("matrix-a"), MatrixFigure("matrix-b"))
        self._messages = pmui.Alert("", severity="error", visible=False, sizing_mode="stretch_width")
        self._status = Html("", sizing_mode="stretch_width", margin=(4, 10))
        self._numbers = Html("", sizing_mode="stretch_width")
        self._compiling = Html(COMPILING, sizing_mode="stretch_width", margin=(0, 10))
        self._captions = tuple(Html("", sizing_mode="stretch_width", margin=(0, 10, 4, 10)) for _ in self.figures)
        self._code = pmui.TextAreaInput(value="", visible=False)
        self._slider = pmui.IntSlider.from_param(self.param.blocks, label="Blocks in the stack (0: all)", end=1, **WIDE)
        self._panels = self._make_panels()
        self.controls, self.body = self._make_controls(), self._make_body()
        self._first_picture()
        self.param.watch(lambda *_: self._keep_place(), ["rows", "cols"])
        drawn_from = ["pattern", "other", "image", "rows", "cols", "row", "col", "query_tile", "key_tile", "matrix"]
        self.param.watch(lambda *_: self.refresh(), drawn_from)
        self.param.watch(lambda *_: self._redraw(), ["blocks"])
        self.param.watch(lambda *_: self._set_opacity(), ["opacity"])
        when_loaded(partial(AGGREGATION.when_ready, partial(deliverer(), self._compiled)))

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Row(pn.Column(*self.controls, width=290), self.body, sizing_mode="stretch_width")

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
        deliver = deliverer()
        try:
            request = self.request()
        except ValueError as error:
            LANE.cancel(id(self))
            self._fail(error)
            return
        run = partial(draw_patterns, request)
        LANE.submit(id(self), Job(run, partial(deliver, self._show), partial(deliver, self._fail)))

    def _first_picture(self) -> None:
        """The page opens on a finished picture, so the first one is computed before the page is sent."""
        try:
            self._show(draw_patterns(self.request()))
        except (ValueError, OSError) as error:
            self._fail(error)

    def _compiled(self) -> None:
        """Draw the matrices, and say no more that they are missing."""
        self._compiling.visible = False
        if self.matrix:
            self.refresh()

    def _fail(self, error: Exception) -> None:
        """One sentence; the picture that is shown stays."""
        text = str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"
        self._messages.param.update(object=html.escape(text), visible=True)

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
        self.matrices[i].show(spec.pattern, *self._drawing.matrices[i], query, most, after)

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

    @classmethod
    def from_address(cls, query: dict[str, Any]) -> "PatternsView":
        """The page that a link describes; a part of it that does not exist is left out and named on the page."""
        known = {name: value for name, value in query.items() if name in cls.link_state()}
        try:
            view = cls(**known)
            if view._drawing is None:
                raise ValueError(html.unescape(view._messages.object))
            return view
        except (ValueError, TypeError) as error:
            view = cls()
            view._fail(ValueError(f"The link could not be followed, the page shows its defaults: {error}"))
            return view

    @staticmethod
    def link_state() -> dict[str, str]:
        """Parameter -> name in the address of the page."""
        names = ("pattern", "other", "image", "rows", "cols", "row", "col", "blocks", "query_tile", "key_tile")
        return {name: name for name in (*names, "matrix")}

    # Parts

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        p = self.param
        arrows = {"←": (0, -1, "left"), "↑": (-1, 0, "up"), "↓": (1, 0, "down"), "→": (0, 1, "right")}
        moves = []
        for arrow, (down, right, name) in arrows.items():
            button = pmui.Button(
                label=arrow, size="small", variant="outlined", sizing_mode="stretch_width", margin=2,
                description=f"move the query one cell {name}",
            )  # fmt: skip
            button.on_click(partial(self._moved, (down, right)))
            moves.append(button)
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
            pn.Row(*moves, sizing_mode="stretch_width", margin=(0, 8)),
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
        copy = "navigator.clipboard.writeText({})"
        as_python = pmui.Button(label="Copy as Python", variant="outlined", size="small")
        as_python.js_on_click(args={"code": self._code}, code=copy.format("code.data.value"))
        link = pmui.Button(label="Copy link", variant="outlined", size="small")
        link.js_on_click(code=copy.format("window.location.href"))
        wrap = {"flex_wrap": "wrap", "sizing_mode": "stretch_width", "align_items": "flex-start"}
        numbers = pn.Column(
            self._numbers, self._compiling, pn.Row(as_python, link), self._code,
            sizing_mode="stretch_width", styles={"flex": "1 1 390px", "min-width": "0", "max-width": "640px"},
        )  # fmt: skip
        return pn.Column(
            self._messages,
            self._status,
            pn.FlexBox(*self._panels[:2], **wrap),
            pn.FlexBox(numbers, *self._panels[2:], **wrap),
            sizing_mode="stretch_width",
        )

    def _moved(self, step: tuple[int, int], event: Any) -> None:
        self.move(*step)
