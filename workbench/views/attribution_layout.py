"""Where the widgets and figures of the Attribution page stand, and which of them the chosen methods need."""

from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.analysis.attribution import METHODS

from .attribution_request import Progress
from .attribution_tables import CAVEAT, progress_words
from .page import WIDE, WRAP, arrows
from .tables import WARMING
from .text import Html

if TYPE_CHECKING:
    from .attribution import AttributionView


def _announced(sentence: str) -> str:
    """A sentence that screen readers say; the progress between two of them is too much to be read out."""
    return f"<div role='status' style='font-size: 12px'>{sentence}</div>"


class AttributionLayout:
    """The parts of one page; what it shows in them is the page's business."""

    def __init__(self, page: "AttributionView") -> None:
        self._page = page
        wide: dict[str, Any] = {"sizing_mode": "stretch_width"}
        self.classes, self.numbers = Html("", **wide), Html("", **wide)
        self.warming = Html(WARMING, **wide)
        self.captions = tuple(Html("", margin=(0, 10, 4, 10), **wide) for _ in page.figures)
        self.headings = tuple(Html("", margin=(4, 10, 0, 10), **wide) for _ in page.figures)
        self.words = Html("", margin=(6, 10, 0, 10), min_height=18, **wide)
        self.bar = pmui.LinearProgress(variant="determinate", value=0, margin=(2, 10), **wide)
        self.cancel = pmui.Button(label="Cancel", variant="outlined", size="small", disabled=True)
        self.cancel.on_click(page.halt)
        self.panels = self._make_panels()
        self.controls, self.body = self._make_controls(), self._make_body()
        self.follow()
        page.param.watch(lambda *_: self.follow(), ["target", "method", "other", "other_method"])

    # Progress

    def show_waiting(self) -> None:
        """Say that work has been asked for, before its first report."""
        with pn.io.hold():
            self.cancel.disabled = False
            self.words.object, self.bar.value = _announced("Computing …"), 0

    def show_progress(self, progress: Progress) -> None:
        """How far the work is."""
        with pn.io.hold():
            self.words.object = progress_words(progress, len(self._page.chosen()))
            self.bar.value = min(100, 100 * progress.done // progress.planned)

    def show_idle(self, sentence: str, done: int = 0) -> None:
        """Nothing is computed now; a sentence says why, and the bar how far it came, in percent."""
        with pn.io.hold():
            self.cancel.disabled = True
            self.words.object, self.bar.value = _announced(sentence), done

    # Controls

    def follow(self) -> None:
        """Show the controls that the chosen methods and the target need, and no others."""
        page, chosen = self._page, self._page.chosen()
        on_units, methods = page.on_units(), [method for _, method, _, _ in chosen]
        options = {name for method in methods for name in METHODS[method].options}
        cams = [method == "layer_grad_cam" for method in methods]
        wanted = {
            "other_method": len(chosen) == 2,
            "target": not all(METHODS[method].unit for method in methods),
            "number": page.target == "class" and not all(on_units),
            "layer": on_units[0],
            "other_layer": on_units[1:] == [True],
            "unit": any(on_units),
            "cam_layer": cams[0],
            "other_cam_layer": cams[1:] == [True],
        }
        for name, control in self.optional.items():
            control.visible = wanted.get(name, name in options)

    def _make_controls(self) -> list[Any]:
        """The controls, in the order in which the keyboard reaches them."""
        p, page = self._page.param, self._page
        upload = pmui.FileInput(
            label="Upload a picture", accept="image/*", max_file_size=64_000_000, variant="outlined", **WIDE
        )
        upload.param.watch(self._uploaded, "value")
        unit = pn.Column(
            pn.Row(
                pmui.IntInput.from_param(p.row, label="Row", **WIDE),
                pmui.IntInput.from_param(p.col, label="Column", **WIDE),
                sizing_mode="stretch_width",
            ),
            arrows(page.move, "the unit"),
            pmui.IntInput.from_param(p.channel, label="Channel of the unit (-1: all)", margin=(14, 10, 10, 10), **WIDE),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        #: The controls that are shown only where they mean something.
        self.optional: dict[str, Any] = {
            "other_method": pmui.Select.from_param(p.other_method, label="Its method", **WIDE),
            "target": pmui.Select.from_param(p.target, label="What is explained", **WIDE),
            "number": pmui.IntInput.from_param(p.number, label="Class number", **WIDE),
            "layer": pmui.DiscreteSlider.from_param(p.layer, label="Layer of the unit", **WIDE),
            "other_layer": pmui.DiscreteSlider.from_param(p.other_layer, label="Layer of the unit beside it", **WIDE),
            "unit": unit,
            "cam_layer": pmui.Select.from_param(p.cam_layer, label="Grad-CAM: layer shown", **WIDE),
            "other_cam_layer": pmui.Select.from_param(p.other_cam_layer, label="Beside it: layer shown", **WIDE),
            "baseline": pmui.Select.from_param(p.baseline, label="Baseline", **WIDE),
            "steps": pmui.IntInput.from_param(p.steps, label="Steps on the path", **WIDE),
            "window": pmui.IntInput.from_param(p.window, label="Window, pixels a side (0: an eighth)", **WIDE),
            "stride": pmui.IntInput.from_param(p.stride, label="Stride, pixels (0: half a window)", **WIDE),
            "noise": pmui.Select.from_param(p.noise, label="Gradients of noisy copies", **WIDE),
            "samples": pmui.IntInput.from_param(p.samples, label="Noisy copies", **WIDE),
            "sigma": pmui.FloatInput.from_param(p.sigma, label="Noise, share of the value range", step=0.05, **WIDE),
            "seed": pmui.IntInput.from_param(p.seed, label="Seed of the noise", **WIDE),
        }
        return [
            pmui.Select.from_param(p.image, label="Picture", **WIDE),
            upload,
            pmui.Select.from_param(p.model, label="Model", **WIDE),
            pmui.Select.from_param(p.method, label="Method", **WIDE),
            pmui.Select.from_param(p.other, label="Beside it", **WIDE),
            *self.optional.values(),
            pmui.Select.from_param(p.sign, label="Show", **WIDE),
            pmui.FloatSlider.from_param(p.outlier, label="Cut outliers, % of the magnitude", end=50, **WIDE),
            pmui.FloatSlider.from_param(p.opacity, label="Opacity of the attribution", **WIDE),
        ]

    def _uploaded(self, event: param.parameterized.Event) -> None:
        if event.new:
            self._page.upload_picture(event.new)

    # Body

    def _make_panels(self) -> tuple[pn.Column, ...]:
        """A column for each attribution, with its caption and the files of it."""
        grow = {"flex": "9 1 340px", "min-width": "0", "max-width": "600px"}
        parts = zip(self.headings, self._page.figures, self.captions, self._page.downloads.rows, strict=True)
        return tuple(
            pn.Column(heading, figure.pane, caption, files, sizing_mode="stretch_width", styles=grow)
            for heading, figure, caption, files in parts
        )

    def _make_body(self) -> pn.Column:
        page = self._page
        run = pn.Row(
            pn.Column(self.words, self.bar, sizing_mode="stretch_width", margin=0), self.cancel,
            sizing_mode="stretch_width", min_height=44,
        )  # fmt: skip
        left = pn.Column(
            page.picture.pane, self.classes, self.warming, page.sharing(),
            styles={"flex": "0 1 240px", "min-width": "210px"},
        )  # fmt: skip
        # Beside one panel in a wide window, else under the panels.
        numbers = pn.Column(
            self.numbers, Html(CAVEAT, sizing_mode="stretch_width", margin=(8, 10)),
            sizing_mode="stretch_width", styles={"flex": "1 1 780px", "min-width": "0"},
        )  # fmt: skip
        right = pn.FlexBox(
            *self.panels, numbers, sizing_mode="stretch_width", styles={"flex": "1 1 560px", "min-width": "0"}
        )
        return pn.Column(
            page._messages,
            page._status,
            run,
            pn.FlexBox(left, right, **WRAP),
            sizing_mode="stretch_width",
        )
