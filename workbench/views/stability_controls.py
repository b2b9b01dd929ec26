"""The controls of the Stability page: the condition of the laboratory, or which layer's gates are looked at."""

from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui
import param

from .page import WIDE

if TYPE_CHECKING:
    from .stability import StabilityView

#: Where the sliders of whole numbers stop; another number of a link is added to them.
LENGTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256)
CHUNKS = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


#: Milliseconds in which changes of a slider are collected before Python is told; Panel's 50 would be seen.
COLLECTED = 1


def prompt(slider: Any) -> Any:
    """The slider, answered at once: the page asks for the newest value when it has drawn the last one."""
    slider._debounce = COLLECTED
    return slider


class Stops(pn.viewable.Viewer):
    """A slider over some values of an integer parameter; it shows every other value as well."""

    def __init__(self, page: param.Parameterized, name: str, label: str, values: tuple[int, ...]) -> None:
        super().__init__()
        self._page, self._name, self._values = page, name, values
        now = getattr(page, name)
        options = sorted({*values, now})
        self.slider = prompt(pmui.DiscreteSlider(label=label, options=options, value=now, **WIDE))
        self.slider.param.watch(self._chosen, "value")
        page.param.watch(self._follow, name)

    def __panel__(self) -> pn.viewable.Viewable:
        return self.slider

    def _follow(self, event: param.parameterized.Event) -> None:
        if event.new not in self.slider.options:
            self.slider.options = sorted({*self._values, event.new})
        self.slider.value = event.new

    def _chosen(self, event: param.parameterized.Event) -> None:
        setattr(self._page, self._name, event.new)


def make_controls(page: "StabilityView") -> list[Any]:
    """The controls, in the order in which the keyboard reaches them."""
    p = page.param
    upload = pmui.FileInput(
        label="Upload a picture", accept="image/*", max_file_size=64_000_000, variant="outlined", **WIDE
    )
    upload.param.watch(page.uploaded, "value")
    synthetic = pn.Column(
        pmui.Select.from_param(p.preset, label="Preset", **WIDE),
        pmui.Select.from_param(p.normalisation, label="Normalisation", **WIDE),
        prompt(pmui.FloatSlider.from_param(p.gain, label="Gain of the gates", **WIDE)),
        prompt(pmui.FloatSlider.from_param(p.noise, label="Noise of the logits", **WIDE)),
        pmui.RadioButtonGroup.from_param(p.neighbours, label="Neighbours", **WIDE),
        pmui.Select.from_param(p.input_weight, label="Input weight lambda", **WIDE),
        prompt(pmui.FloatSlider.from_param(p.lam, label="The number", **WIDE)),
        Stops(page, "length", "Length, lines", LENGTHS),
        Stops(page, "cross", "Positions across", WIDTHS),
        Stops(page, "chunk", "Lines per chunk (0: one chunk)", CHUNKS),
        pmui.Select.from_param(p.dtype, label="Number format", **WIDE),
        pmui.IntInput.from_param(p.seed, label="Seed", **WIDE),
        sizing_mode="stretch_width", margin=0,
    )  # fmt: skip
    layer = pn.Column(
        pmui.Select.from_param(p.model, label="Model", **WIDE),
        prompt(pmui.DiscreteSlider.from_param(p.layer, label="Layer", **WIDE)),
        pmui.IntInput.from_param(p.channel, label="Channel (-1: the worst)", **WIDE),
        sizing_mode="stretch_width", margin=0,
    )  # fmt: skip

    def switch(*_: Any) -> None:
        synthetic.visible, layer.visible = page.source == "synthetic", page.source == "layer"

    page.param.watch(switch, ["source"])
    switch()
    return [
        pmui.RadioButtonGroup.from_param(p.source, label="Gates", **WIDE),
        synthetic,
        layer,
        pmui.Select.from_param(p.direction, label="Direction", **WIDE),
        pmui.Select.from_param(p.image, label="Picture", **WIDE),
        upload,
    ]
