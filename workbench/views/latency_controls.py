"""The controls of the Latency page: what is timed and how, and which recorded devices are drawn beside it."""

import html
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.analysis.latency_file import LARGEST
from workbench.analysis.latency_ops import OPERATORS

from .latency_recorded import label_of
from .model_choice import small_models
from .page import WIDE
from .text import Html

if TYPE_CHECKING:
    from .latency import LatencyView

#: What stands for no recording.
NO_RECORDING = "No device is recorded in data/latency yet."


class RecordedChoice(pn.viewable.Viewer):
    """Which recordings are drawn, those of the project and those that were given; a field that takes a file."""

    def __init__(self, page: "LatencyView") -> None:
        super().__init__()
        self._page, self._following = page, False
        self.boxes = pmui.CheckBoxGroup(label="Recorded devices", options=[], value=[], **WIDE)
        self.file = pmui.FileInput(
            label="Add a latency file", accept=".json", max_file_size=LARGEST, variant="outlined", **WIDE
        )
        self.words = Html("", sizing_mode="stretch_width", margin=(0, 10))
        self.boxes.param.watch(self._chosen, "value")
        self.file.param.watch(self._given, "value")
        page.param.watch(lambda *_: self.follow(), ["recorded", "given", "given_shown"])
        self._column = pn.Column(self.boxes, self.words, self.file, sizing_mode="stretch_width", margin=0)
        self.follow()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._column

    def follow(self) -> None:
        """Show what the page says."""
        page = self._page
        known = page.recordings.sweeps | page.given
        self._following = True
        try:
            self.boxes.options = {label_of(name, sweep): name for name, sweep in known.items()}
            self.boxes.value = [*page.recorded, *page.given_shown]
        finally:
            self._following = False
        self.boxes.visible = bool(known)
        sentences = [*([] if known else [NO_RECORDING]), *page.recordings.problems]
        self.words.object = "<br>".join(f"<small>{sentence}</small>" for sentence in map(html.escape, sentences))

    def _chosen(self, event: param.parameterized.Event) -> None:
        if not self._following:
            page = self._page
            chosen = set(event.new)
            page.param.update(
                recorded=[name for name in page.recordings.sweeps if name in chosen],
                given_shown=[name for name in page.given if name in chosen],
            )

    def _given(self, event: param.parameterized.Event) -> None:
        if event.new:
            self._page.add_recording(event.new, self.file.filename)


def heading(text: str) -> Any:
    """A heading among the controls."""
    return pmui.Typography(text, variant="subtitle2", margin=(8, 10, 0, 10))


def make_controls(page: "LatencyView") -> list[Any]:
    """The controls of the sweep, in the order in which the keyboard reaches them."""
    p = page.param
    short: dict[str, Any] = {"styles": {"flex": "1 1 84px", "min-width": "0"}, **WIDE}
    return [
        heading("What is timed"),
        pmui.CheckBoxGroup.from_param(p.names, options=list(OPERATORS), label="Operators", **WIDE),
        pmui.MultiChoice.from_param(
            p.models, options=small_models(), label="Whole models", sizing_mode="stretch_width"
        ),
        pmui.TextInput.from_param(p.sizes, label="Sides: positions, a model's pixels", **WIDE),
        pmui.RadioButtonGroup.from_param(p.backward, label="Direction", **WIDE),
        pn.Row(
            pmui.IntInput.from_param(p.batch, label="Batch", **short),
            pmui.IntInput.from_param(p.channels, label="Channels", **short),
            sizing_mode="stretch_width",
        ),
        pn.Row(
            pmui.Select.from_param(p.dtype, label="Number format", **short),
            pmui.FloatInput.from_param(p.budget, label="Seconds a point", **short),
            sizing_mode="stretch_width",
        ),
        heading("What is drawn"),
        pmui.Checkbox.from_param(p.floors, label="The floor of each line"),
        RecordedChoice(page),
        heading("Layer by layer"),
        *page.layers.controls,
    ]
