"""Where the widgets and figures of the page of receptive fields stand."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.plots import receptive_field as maps
from workbench.plots import receptive_field_curves as curves
from workbench.plots import receptive_field_difference as differences

from .field_choices import COMPARISONS
from .field_request import CROPS, LARGEST_SIDE, MOST_MODELS, FieldDrawing, Source, Timing
from .field_tables import WHAT, heading, label_of, numbers_frame, progress_line, share_done, split_captions
from .model_choice import ModelChoice
from .page import WIDE, WRAP, arrows
from .state import KERNELS
from .tables import WARMING, caption_html
from .text import Html

if TYPE_CHECKING:
    from .receptive_field import ReceptiveFieldView

#: Sides in pixels that are offered where all models take them; 0 is each model's own.
SIDES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, LARGEST_SIDE)

#: The largest checkpoint that is taken: 60 million parameters in float32.
MOST_CHECKPOINT_BYTES = 256_000_000

#: What the select of comparisons says where what is shown is none of them, and the button that times.
OWN, MEASURE = "Choose …", "Measure on this machine now"

WAITING = "<div style='font-size: 12px'><b>Running</b>: waiting for the first image</div>"

#: Rows as low as those of the other pages' tables.
DENSE = """
.tabulator { font-size: 12px !important; }
.tabulator .tabulator-row, .tabulator .tabulator-cell { height: auto !important; min-height: 0 !important; }
.tabulator .tabulator-cell { padding: 3px 8px !important; white-space: normal !important; }
.tabulator .tabulator-col-title { padding: 0 !important; white-space: normal !important; }
"""

SMALL: dict[str, Any] = {"variant": "outlined", "size": "small"}


class FieldLayout:
    """The parts of one page; what it shows in them is the page's business."""

    def __init__(self, page: "ReceptiveFieldView") -> None:
        self._page = page
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        self.headings = tuple(Html("", margin=(4, 10, 0, 10), **wide) for _ in page.maps)
        self.captions = tuple(Html("", margin=(0, 10, 4, 10), **wide) for _ in page.maps)
        self.shared_caption = Html("", margin=(0, 10, 8, 10), **wide)
        self.numbers = _grid("receptive-field-numbers")
        self.warming = Html("" if KERNELS.ready.is_set() else WARMING, **wide)
        self.curves_caption = Html("", margin=(0, 10), **wide)
        self.difference_caption = Html("", margin=(0, 10), **wide)
        self.words = Html("", margin=(6, 10), **wide)
        self.bar = pmui.LinearProgress(variant="determinate", value=0, margin=(2, 10), **wide)
        self.stop = _button("Cancel", page.halt, disabled=True)
        self.again = _button("Run again", page.run_again)
        self.measure = _button(MEASURE, page.measure_now)
        self._following = False
        self.comparisons = self._select("Comparison", lambda label: None if label == OWN else page.compare(label))
        self.comparisons.options = [OWN, *COMPARISONS]
        self.sizes = self._select("Picture size in pixels", lambda side: page.param.update(size=side))
        self.first = self._select("Difference: map of", lambda number: page.param.update(first=number))
        self.second = self._select("minus map of", lambda number: page.param.update(second=number))
        self.add = _button("Add a model", page.add_model)
        self.panels = self._panels()
        self.difference_figure = pn.Column(page.difference.pane, sizing_mode="stretch_width", visible=False)
        self.controls, self.body = self._make_controls(), self._make_body()
        self.follow()
        page.param.watch(lambda *_: self.follow(), ["models", "layers", "size", "first", "second", "image", "upload"])

    def follow(self) -> None:
        """Offer what fits the page as it is now."""
        page = self._page
        if len(page.models) != len(page.layers):
            return  # the page is about to bring them in line
        self._following = True
        try:
            self.sizes.options = {"each model's own": 0} | {str(side): side for side in self._sides()}
            self.sizes.value = page.size
            compared = enumerate(zip(page.models, page.layers, strict=True), 1)
            options = {f"{n}: {name} {layer}": n for n, (name, layer) in compared}
            for select, number in ((self.first, page.first), (self.second, page.second)):
                select.options = options | ({} if number in options.values() else {f"{number}: none": number})
                select.value = number
            self.comparisons.value = page.comparison() or OWN
            self.add.disabled = len(page.models) == MOST_MODELS
            self.count.disabled = page.image != CROPS or page.upload is not None
        finally:
            self._following = False

    # What is shown

    def draw(self, drawing: FieldDrawing, whole: bool) -> None:
        """The maps and their captions, and, where `whole`, the numbers and the figures below them."""
        page, results = self._page, drawing.named()
        limits = maps.colour_range(list(results.values()), page.decades)
        grid, unit = drawing.specs[0].grid, drawing.specs[0].unit[0]
        page.photograph.show(drawing.photograph, grid, unit, grid)
        for n, (panel, figure) in enumerate(zip(self.panels, page.maps, strict=True)):
            panel.visible = n < len(drawing.request.sources)
            if n in results:
                figure.show(results[n], drawing.photograph, limits, page.opacity)
        shared, own = split_captions([maps.caption(result, limits) for result in results.values()])
        self.shared_caption.object = caption_html(f"All maps: {shared}")
        for n, text in zip(results, own, strict=True):
            self.captions[n].object = caption_html(text)
        if whole or self.numbers.value.empty:
            self._show_numbers(numbers_frame(drawing))
        if whole:
            self._draw_curves(list(results.values()), [label_of(drawing, n) for n in results])
            self._draw_difference(drawing)

    def _show_numbers(self, frame: pd.DataFrame) -> None:
        """Cells without an editor do not take the focus, or Tab would stop at each of them."""
        self.numbers.param.update(value=frame, editors=dict.fromkeys(frame.columns))

    def _draw_curves(self, results: list[xr.Dataset], labels: list[str]) -> None:
        for figure in self._page.curves:
            figure.show(results, labels)
        self.curves_caption.object = caption_html(curves.curves_caption(results))

    def _draw_difference(self, drawing: FieldDrawing) -> None:
        """The first chosen map minus the second, or the sentence that says why there is none."""
        page, results = self._page, drawing.named()
        a, b = (results.get(number - 1) for number in (page.first, page.second))
        try:
            if a is None or b is None or page.first == page.second:
                raise ValueError("Choose two models that are on the page to see the difference of their maps.")
            limits = differences.difference_range(a, b)
        except ValueError as error:
            self.difference_figure.visible = False
            self.difference_caption.object = caption_html(str(error))
            return
        self.difference_figure.visible = True
        page.difference.show(a, b, drawing.photograph, limits, page.opacity)
        self.difference_caption.object = caption_html(differences.difference_caption(a, b, limits))

    def tell(self, drawing: FieldDrawing, timings: list[Timing | None]) -> None:
        """How far each model is, and how long its images take."""
        for n, timing in enumerate(timings):
            self.headings[n].object = heading(drawing, n, timing)
        self.words.object, self.bar.value = progress_line(drawing), share_done(drawing)
        self.stop.disabled = not drawing.running
        self.again.param.update(label="Run again" if drawing.complete else "Go on", disabled=drawing.running)

    def show_waiting(self) -> None:
        """Say that work has begun, before its first picture."""
        with pn.io.hold():
            self.words.object, self.bar.value = WAITING, 0
            self.stop.disabled, self.again.disabled = False, True

    def _sides(self) -> list[int]:
        """The sides that every model takes, and the chosen one, which a change of the models may have made unfit."""
        fitting = [side for side in SIDES if all(_takes(source, side) for source in self._page.sources())]
        return sorted({*fitting, self._page.size} - {0})

    def _select(self, label: str, choose: Callable[[Any], Any]) -> Any:
        """A select whose options change with the page; `choose` is called with what a person chose."""
        select = pmui.Select(label=label, options=[], **WIDE)

        def chosen(event: param.parameterized.Event) -> None:
            if not self._following:
                choose(event.new)

        select.param.watch(chosen, "value")
        return select

    # Controls

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        page, p = self._page, self._page.param
        self.checkpoint = pmui.FileInput(
            label="Add a checkpoint file", accept=".safetensors,.pth,.pt", max_file_size=MOST_CHECKPOINT_BYTES,
            variant="outlined", **WIDE,
        )  # fmt: skip
        self.picture = pmui.FileInput(
            label="Upload a picture", accept="image/*", max_file_size=64_000_000, variant="outlined", **WIDE
        )
        self.checkpoint.param.watch(self._checkpoint_given, "value")
        self.picture.param.watch(self._picture_given, "value")
        self.count = pmui.IntInput.from_param(p.count, label="Number of crops", **WIDE)
        centre = _button("Centre", page.to_centre, sizing_mode="stretch_width", margin=(2, 10))
        return [
            self.comparisons,
            *(ModelChoice(page, n) for n in range(MOST_MODELS)),
            self.add,
            self.checkpoint,
            pmui.Select.from_param(p.image, label="Pictures", **WIDE),
            self.count,
            self.picture,
            self.sizes,
            pn.Row(
                pmui.IntInput.from_param(p.row, label="Row", **WIDE),
                pmui.IntInput.from_param(p.col, label="Column", **WIDE),
                sizing_mode="stretch_width",
            ),
            arrows(page.move, "the unit"),
            centre,
            pmui.Select.from_param(p.channels, label="Channels of the unit", **WIDE),
            pmui.IntInput.from_param(p.channel, label="One channel (-1: all)", **WIDE),
            pmui.Select.from_param(p.gradient, label="Colours of the gradient", **WIDE),
            pmui.FloatSlider.from_param(p.decades, label="Decades of colour", **WIDE),
            pmui.FloatSlider.from_param(p.opacity, label="Opacity of the maps", **WIDE),
        ]

    # Body

    def _panels(self) -> tuple[pn.Column, ...]:
        """A column for each map, with its heading and caption."""
        grow = {"flex": "1 1 230px", "min-width": "0", "max-width": "560px"}
        parts = zip(self.headings, self._page.maps, self.captions, strict=True)
        return tuple(
            pn.Column(heading, figure.pane, caption, sizing_mode="stretch_width", styles=grow, visible=False)
            for heading, figure, caption in parts
        )

    def _picture_given(self, event: param.parameterized.Event) -> None:
        if event.new:
            self._page.upload_picture(event.new)

    def _checkpoint_given(self, event: param.parameterized.Event) -> None:
        if event.new:
            self._page.add_checkpoint(event.new, self.checkpoint.filename)

    def _make_body(self) -> pn.Column:
        page = self._page
        run = pn.Row(
            pn.Column(self.words, self.bar, sizing_mode="stretch_width", margin=0), self.stop, self.again,
            sizing_mode="stretch_width",
        )  # fmt: skip
        left = pn.Column(page.photograph.pane, styles={"flex": "0 1 260px", "min-width": "200px"})
        table = pn.Column(
            self.numbers, pn.Row(self.measure), self.warming,
            sizing_mode="stretch_width", styles={"flex": "1 1 480px", "min-width": "0"},
        )  # fmt: skip
        curve = {"flex": "1 1 300px", "min-width": "0", "max-width": "640px"}
        curves = [pn.Column(figure.pane, sizing_mode="stretch_width", styles=curve) for figure in page.curves]
        difference = pn.Column(
            pn.Row(self.first, self.second, sizing_mode="stretch_width"), self.difference_figure,
            self.difference_caption,
            sizing_mode="stretch_width", styles={"flex": "1 1 300px", "min-width": "0", "max-width": "480px"},
        )  # fmt: skip
        return pn.Column(
            page._messages,
            page._status,
            run,
            pn.FlexBox(*self.panels, **WRAP),
            self.shared_caption,
            pn.FlexBox(left, table, **WRAP),
            pn.FlexBox(*curves, difference, **WRAP),
            self.curves_caption,
            page.downloads.row,
            page.sharing(),
            sizing_mode="stretch_width",
        )


def _button(label: str, act: Callable[..., None], **options: Any) -> Any:
    button = pmui.Button(label=label, **SMALL, **options)
    button.on_click(lambda _: act())
    return button


def _grid(name: str) -> Any:
    """A table of texts that can be read and copied, not edited or sorted: its rows are of different kinds."""
    return pn.widgets.Tabulator(
        pd.DataFrame(), disabled=True, selectable=False, show_index=False, layout="fit_columns", theme="simple",
        sizing_mode="stretch_width", css_classes=[name], sortable=False, widths={WHAT: 285}, stylesheets=[DENSE],
        configuration={"columnDefaults": {"headerSort": False}},
    )  # fmt: skip


def _takes(source: Source, side: int) -> bool:
    """Whether a model, if there is one of that name, takes square pictures of that side."""
    try:
        source.shapes().check_size(side, side)
    except ValueError:
        return False
    return True
