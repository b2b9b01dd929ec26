"""The controls of one pattern: its family, and an input for each of the family's arguments."""

from functools import partial
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from workbench.analysis import families
from workbench.analysis.families import FAMILIES, WORDS, Value

from .page import WIDE

NONE = "none"

#: The arguments in words.
LABELS = {
    "window": "Window", "shift": "Shift", "kernel": "Kernel", "dilation": "Dilation", "stride": "Stride",
    "causal": "Causal", "block": "Block", "halo": "Halo", "border": "At the border", "width": "Lines",
    "direction": "Direction", "radius": "Radius", "sink": "Sink blocks",
}  # fmt: skip


class PatternChoice(pn.viewable.Viewer):
    """Widgets that read and write a parameter of a page: a pattern as text, or "none" where that is allowed."""

    def __init__(self, page: param.Parameterized, parameter: str, label: str, optional: bool = False) -> None:
        super().__init__()
        self._page, self._parameter, self._label = page, parameter, label
        options = {family.label: name for name, family in FAMILIES.items()}
        if optional:
            options = {"nothing": NONE} | options
        self.family = pmui.Select(label=label, options=options, **WIDE)
        self.arguments: dict[str, Any] = {}
        self._inputs = pn.FlexBox(sizing_mode="stretch_width", gap="0 4px")
        self._following = False
        self.follow()
        self.family.param.watch(self._chosen, "value")
        page.param.watch(lambda event: self.follow(), parameter)

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self.family, self._inputs, sizing_mode="stretch_width", margin=0)

    def follow(self) -> None:
        """Show what the page's parameter says."""
        text = getattr(self._page, self._parameter)
        try:
            name, values = (NONE, {}) if text == NONE else families.parse(text)
        except ValueError:  # the page says what is wrong with it
            return
        self._following = True
        try:
            if name != self.family.value or list(self.arguments) != list(values):
                self.family.value = name
                self.arguments = {key: self._input(key, value) for key, value in values.items()}
                self._inputs.objects = list(self.arguments.values())
            for key, value in values.items():
                self.arguments[key].value = value
        finally:
            self._following = False

    def _input(self, name: str, value: Value) -> Any:
        label = LABELS[name]
        styles = {"flex": "1 1 84px", "min-width": "0"}
        if isinstance(value, bool):
            widget: Any = pmui.Checkbox(label=label, value=value, styles=styles)
        elif isinstance(value, str):
            widget = pmui.Select(label=label, options=list(WORDS[name]), value=value, styles=styles, **WIDE)
        else:
            least = 0 if name in ("shift", "halo", "sink") else 1
            widget = pmui.IntInput(label=label, value=value, start=least, end=4096, styles=styles, **WIDE)
        widget.param.watch(partial(self._changed, name), "value")
        return widget

    def _chosen(self, event: param.parameterized.Event) -> None:
        if not self._following:
            text = NONE if event.new == NONE else families.spell(event.new, {})
            setattr(self._page, self._parameter, text)

    def _changed(self, name: str, event: param.parameterized.Event) -> None:
        if not self._following and event.new is not None:
            values = {key: widget.value for key, widget in self.arguments.items()}
            setattr(self._page, self._parameter, families.spell(self.family.value, values))
