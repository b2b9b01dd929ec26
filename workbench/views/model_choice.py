"""The controls of one compared model: which one, its settings, its layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import panel as pn
import panel_material_ui as pmui
import param

from workbench.models import list_models
from workbench.models.attention import PADDINGS
from workbench.models.base import VisionModel
from workbench.models.expression import SEED, Value, described, parse, settings_of, spell, spelt
from workbench.models.gspn import MERGES
from workbench.names import unknown

from .field_request import MOST_MODELS
from .page import WIDE
from .state import model_names

#: The settings that have an input, in words: those that decide which positions are read. A text may name the others.
LABELS = {
    "merge": "Merge", "chunk": "Lines per chunk", "global_stages": "Global stages", "window": "Window",
    "kernel": "Kernel", "dilations": "Dilations", "stride": "Stride", "radius": "Radius", "block": "Block",
    "halo": "Halo", "border": "At the border", "split": "Stripes", "sr_ratios": "Pooled by", "cell": "Pooled by",
    "alpha": "Share of pooled heads", "local": "Local blocks", "sink": "Sink blocks", "padding": "Padding",
    SEED: "Seed",
}  # fmt: skip

#: The words that a setting may be.
WORDS: dict[str, tuple[str, ...]] = {"merge": MERGES, "padding": PADDINGS, "border": ("crop", "clamp")}


class Choices(Protocol):
    """What the controls of a model read and write: a page that compares models."""

    @property
    def param(self) -> Any: ...
    @property
    def models(self) -> Any: ...
    @property
    def layers(self) -> Any: ...
    @property
    def given(self) -> Any: ...

    def choose(self, models: Sequence[str], layers: Sequence[str]) -> None:
        """Compare other models; a layer that is none of its model's becomes the last one."""

    def refuse(self, error: Exception) -> None:
        """Say in one sentence what is wrong."""


def shapes_of(name: str, given: Mapping[str, VisionModel]) -> VisionModel:
    """The model of that name to ask for layers and sizes; one that is built from a text has no weights.

    Raises:
        ValueError: see `parse`.
    """
    return given[name] if name in given else described(name)


def checked(
    models: Any, layers: Sequence[str], given: Mapping[str, VisionModel], strict: bool = False
) -> tuple[list[str], list[str]]:
    """Models in their shortest text, and a layer of each: the last one where none is given or it is not the model's.

    Raises:
        ValueError: not one to four models, one that does not exist, or, where `strict`, a layer that does not.
    """
    listed = [models] if isinstance(models, str) else models
    if not isinstance(listed, list | tuple) or not 1 <= len(listed) <= MOST_MODELS:
        raise ValueError(f"The page compares one to {MOST_MODELS} models, given as a list of texts; got {models!r}.")
    names = [text if text in given else spell(parse(text)) for text in listed]
    found = []
    for name, wanted in zip(names, [*layers, *[""] * len(names)], strict=False):
        known = list(shapes_of(name, given).blocks())
        if strict and wanted and wanted not in known:
            raise ValueError(unknown("layer", wanted, known, of=name))
        found.append(wanted if wanted in known else known[-1])
    return names, found


def add_given(model: Any, given: dict[str, VisionModel], label: str = "given") -> str:
    """The name of a model on a page: a text is its own; a loaded one is added to `given` under a name of its own.

    Raises:
        ValueError: neither a text nor a model from `load_model`.
    """
    if isinstance(model, str):
        return model
    if not isinstance(model, VisionModel):
        raise ValueError(f"The page compares models from load_model, or their names; got a {type(model).__name__}.")
    names = [f"{model.name} ({label}{'' if n == 1 else f' {n}'})" for n in range(1, len(given) + 2)]
    name = next(name for name in names if name not in given)
    given[name] = model
    return name


def small_models() -> list[str]:
    """The registered models, the smallest sizes first."""
    known = list_models()
    return [name for name in model_names() if name in known]


class ModelChoice(pn.viewable.Viewer):
    """Widgets that read and write the page's model number `index`, hidden where there are not so many."""

    def __init__(self, page: Choices, index: int) -> None:
        super().__init__()
        self._page, self._index = page, index
        self.model = pmui.Select(label=f"Model {index + 1}", options=[], **WIDE)
        self.layer = pmui.DiscreteSlider(label="Layer", options=[""], **WIDE)
        self.remove = pmui.Button(
            label="✕", variant="text", size="small", width=40, margin=(14, 4, 0, 0),
            description=f"remove model {index + 1}",
        )  # fmt: skip
        self.settings: dict[str, Any] = {}
        self._inputs = pn.FlexBox(sizing_mode="stretch_width", gap="0 4px")
        self._inputs_of = ""
        self._details = pmui.Details(
            objects=[self._inputs], title="Settings", collapsed=True, fully_expanded=True, sizing_mode="stretch_width",
            margin=(0, 8),
        )  # fmt: skip
        self._box = pn.Column(
            pn.Row(self.model, self.remove, sizing_mode="stretch_width"), self.layer, self._details,
            sizing_mode="stretch_width", margin=(0, 0, 6, 0),
        )  # fmt: skip
        self._following = False
        self.follow()
        self.model.param.watch(self._chosen, "value")
        self.layer.param.watch(self._layer_chosen, "value")
        self.remove.on_click(self._removed)
        page.param.watch(lambda *events: self.follow(), ["models", "layers", "given"])

    def __panel__(self) -> pn.viewable.Viewable:
        return self._box

    def follow(self) -> None:
        """Show what the page says."""
        page = self._page
        self._box.visible = self._index < len(page.models) == len(page.layers)
        if not self._box.visible:
            return
        text = page.models[self._index]
        try:
            name, values = (text, {}) if text in page.given else _with_inputs(text)
        except ValueError:  # the page says what is wrong with it
            return
        self._following = True
        try:
            self.remove.disabled = len(page.models) == 1
            self.model.options = [*page.given, *small_models()]
            self.model.value = name
            self.layer.options = list(shapes_of(text, page.given).blocks())
            self.layer.value = page.layers[self._index]
            self._follow_settings(name, values)
        finally:
            self._following = False

    def _follow_settings(self, name: str, values: dict[str, Value]) -> None:
        if name != self._inputs_of:
            own = settings_of(name) if values else {}
            self.settings = {key: self._input(key, own[key]) for key in values}
            self._inputs.objects, self._inputs_of = list(self.settings.values()), name
            self._details.visible = bool(values)
        for key, value in values.items():
            self.settings[key].value = value if isinstance(self.settings[key], pmui.IntInput) else spelt(value)

    def _input(self, name: str, default: Value) -> Any:
        label, styles = LABELS[name], {"flex": "1 1 84px", "min-width": "0"}
        if name in WORDS:
            widget: Any = pmui.Select(label=label, options=list(WORDS[name]), styles=styles, **WIDE)
        elif isinstance(default, int):
            widget = pmui.IntInput(label=label, value=0, start=0, end=999_999, styles=styles, **WIDE)
        else:  # a list, a number with a fraction, or none
            widget = pmui.TextInput(label=label, styles=styles, **WIDE)
        widget.param.watch(partial(self._changed, name), "value")
        return widget

    def _replace(self, text: str, layer: str | None = None) -> None:
        """Make `text` the page's model, and keep the layer where the model has one of that name."""
        models, layers = list(self._page.models), list(self._page.layers)
        models[self._index] = text
        if layer is not None:
            layers[self._index] = layer
        self._page.choose(models, layers)

    def _chosen(self, event: param.parameterized.Event) -> None:
        if not self._following:
            self._replace(event.new)

    def _layer_chosen(self, event: param.parameterized.Event) -> None:
        if not self._following and self._box.visible:  # a slider may settle on a value of its own when it is drawn
            self._replace(self._page.models[self._index], event.new)

    def _changed(self, name: str, event: param.parameterized.Event) -> None:
        if self._following or event.new is None:
            return
        known = parse(self._page.models[self._index])
        settings = {key: spelt(value) for key, value in known.settings.items()} | {SEED: str(known.seed)}
        settings[name] = spelt(event.new)
        try:
            text = f"{known.name}({', '.join(f'{key}={value}' for key, value in settings.items())})"
            self._replace(spell(parse(text)))
        except ValueError as error:
            self._page.refuse(error)

    def _removed(self, event: Any) -> None:
        kept = [n for n in range(len(self._page.models)) if n != self._index]
        self._page.choose([self._page.models[n] for n in kept], [self._page.layers[n] for n in kept])


def _with_inputs(text: str) -> tuple[str, dict[str, Value]]:
    """The registered name of an expression, and the values of the settings that have an input."""
    name, settings, seed = parse(text)
    values = settings_of(name) | dict(settings) | {SEED: seed}
    return name, {key: values[key] for key in LABELS if key in values}
