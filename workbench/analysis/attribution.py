"""Attribution: how much each pixel contributes to the score of a class, or of a unit in any layer, by Captum's methods.

attribution_spec.py has the methods and their options, attribution_model.py the stand-in that they run on, and
attribution_methods.py the calls of Captum.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import xarray as xr
from torch import nn

from workbench.models.base import VisionModel
from workbench.models.checks import check_choice

from .attribution_baselines import BASELINES, baseline_of
from .attribution_model import Progress, Subject, Watch, name_of
from .attribution_result import COLOURS, SIGNS, displayed, variables, warning
from .attribution_spec import (
    METHODS,
    NOISES,
    OPTIONS,
    Aim,
    AttributionSpec,
    Method,
    aim_of,
    check_options,
    fitted,
    passes,
    resolved_target,
    resolved_unit,
)
from .field_gradient import Cancel, Cancelled, device_of, dtype_of, exact
from .field_images import Picture, Pictures, size_of
from .field_spec import designed_side
from .running_field import model_info
from .spec import record

__all__ = [
    "BASELINES",
    "METHODS",
    "NOISES",
    "OPTIONS",
    "SIGNS",
    "AttributionSpec",
    "Cancelled",
    "Method",
    "attribute",
    "displayed",
    "refusal",
]

#: The modules for which Captum's DeepLift has rules; all else counts as linear there.
RULED = (
    nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d,
)  # fmt: skip


def attribute(
    model: nn.Module,
    image: Any,
    method: str = "integrated_gradients",
    target: int | None = None,
    *,
    layer: str | None = None,
    unit: Any = None,
    channel: int | None = None,
    progress: Progress = None,
    cancelled: Cancel = None,
    **options: Any,
) -> xr.Dataset:
    """How much each pixel contributes to the score of a class or of a unit.

    The model is not touched: a stand-in with modules of its own runs in evaluation mode and float32, parameters get no
    gradients, and other threads may run the model at the same time. The global random state is not used.

    Args:
        model: from `load_model`; or any torch.nn.Module that gives (B, classes), whose layers are its submodules by
            their dotted names.
        image: an `Image`, a (1, 3, H, W) float tensor that is normalised already, or whatever `load_image` takes, which
            is brought to the model's size.
        method: a name of `METHODS`.
        target: a class, None for the one with the highest score.
        layer: the layer of the unit, None for the model's last; for "layer_grad_cam" of a class, whose map is shown.
        unit: a cell (row, col) of the layer's map, or "centre": explained in the place of a class.
        channel: of the unit; None for the sum of the positive parts of all its channels.
        progress: called with (images passed through the model, images planned); integrated gradients plan more as
            they find that they need them.
        cancelled: polled in every module of every forward and backward pass.
        options: of the method, see `METHODS[method].options` and `OPTIONS`.

    Returns:
        attribution (colour, row, col), signed where the method is; for "layer_grad_cam" attribution (row, col) and
        layer_attribution (layer_row, layer_col). score, and where the method has a baseline baseline_score; where its
        attributions should sum to the difference of the two, convergence_delta, what they sum to minus that, and
        completeness_gap = |convergence_delta / difference|. attrs hold the Spec, the model, the image, `explains` (the
        class or unit in words), `words` and `source` of the method, `warning` (a sentence, or ""), `passes` (images
        passed through the model), what the method counted (steps, windows, ...) and Captum's version.

    Raises:
        ValueError: a method, option, class, layer or unit that does not exist, or a method that does not run on this
            model (see `refusal`); one sentence.
        Cancelled: `cancelled()` was true. Nothing is left behind.

    Source: Captum (Kokhlikyan et al., arXiv 2009.07896); `METHODS[method].source` for each method.
    """
    reason = refusal(model, method, layer or options.get("cam_layer"))
    if reason is not None:
        raise ValueError(reason)
    chosen = check_options(method, options)
    aim = aim_of(model, method, target, layer, unit, channel, chosen.pop("cam_layer", None))
    picture = _picture(model, image)
    watch = Watch(progress, cancelled)
    with exact(device_of(model)):
        return _attributed(model, picture, method, aim, chosen, watch)


def refusal(model: nn.Module, method: str, layer: str | None = None) -> str | None:
    """Why a method does not run on a model, in one sentence; None if it does.

    Raises:
        ValueError: there is no such method.
    """
    check_choice("method", method, METHODS)
    if not isinstance(model, nn.Module):
        return f"Attribution needs a torch.nn.Module; got {type(model).__name__}."
    needs_layer = METHODS[method].unit or method == "layer_grad_cam"
    if needs_layer and layer is None and not isinstance(model, VisionModel):
        return f"{method} needs a layer, and {name_of(model)} names none of its own: give layer, a submodule's name."
    if method == "deep_lift" and not any(type(module) in RULED for module in model.modules()):
        return (
            "DeepLIFT has rules for modules of ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and max pooling, "
            f"and {name_of(model)} has none of them: Captum would return (picture - baseline) times the plain "
            "gradient, so take integrated_gradients or input_x_gradient."
        )
    return None


def _picture(model: nn.Module, image: Any) -> Picture:
    side = designed_side(model)
    pictures = list(Pictures([image], size_of(image) or (side, side)))
    if len(pictures) != 1:
        raise ValueError(f"An attribution is of one image; got {len(pictures)}.")
    return pictures[0]


def _attributed(
    model: nn.Module, picture: Picture, method: str, aim: Aim, chosen: dict[str, Any], watch: Watch
) -> xr.Dataset:
    # Captum brings pyplot along, half a second that nobody need wait for who attributes nothing.
    from .attribution_methods import run

    shown = aim.layer if METHODS[method].unit else aim.cam_layer
    subject = Subject(model, watch, stop=aim.layer, shown=shown)
    x = _input(subject, picture)
    size = (x.shape[2], x.shape[3])
    fit = fitted(chosen, size, x.device.type)
    watch.plan(passes(method, size, fit))
    with torch.no_grad():
        outputs = subject.outputs(x)
    spec = _spec(method, size, aim, outputs, fit, x)
    if shown is not None and not subject.tapped:
        raise ValueError(f"The map of {shown!r} is not on the way to what is explained: name an earlier layer.")
    subject.pick = _picking(spec)
    score = float(subject.pick(outputs))
    start = None if spec.baseline is None else baseline_of(x, spec.baseline, spec.blur)
    found = run(subject, x, start, spec)
    data = variables(method, found.attribution, size, score, found.baseline_score)
    explained = {"image": picture.name, "image_sha256": picture.sha256, "size": size}
    attrs = record("attribution", spec, model_info(model, x.device, x.dtype) | explained)
    attrs |= {"explains": _explains(spec, aim.target is None), "warning": warning(method, data)}
    attrs |= {"words": METHODS[method].words, "source": METHODS[method].source, "captum": version("captum")}
    attrs |= {"passes": watch.done, **found.numbers}
    return xr.Dataset(data, coords={"colour": COLOURS} if "colour" in data["attribution"][0] else None, attrs=attrs)


def _input(subject: Subject, picture: Picture) -> torch.Tensor:
    """The picture on the device of the stand-in and in its type, 32 bits at least."""
    return picture.tensor.detach().clone().to(device_of(subject.model), dtype_of(subject.model))


def _spec(
    method: str, size: tuple[int, int], aim: Aim, outputs: torch.Tensor, fit: dict[str, Any], x: torch.Tensor
) -> AttributionSpec:
    """The complete Spec, once the shape of what is explained is known."""
    named: dict[str, Any] = {"layer": aim.layer, "cam_layer": aim.cam_layer}
    if aim.layer is None:
        named["target"] = resolved_target(aim.target, outputs)
    else:
        named["unit"], named["channel"] = resolved_unit(aim.unit, aim.channel, outputs)
    return AttributionSpec(method, size, **named, **fit, dtype=str(x.dtype).removeprefix("torch."))


def _picking(spec: AttributionSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, classes) or (B, C, h, w) -> the scores (B,)."""
    if spec.unit is None:
        return lambda logits: logits[:, spec.target]
    row, col = spec.unit
    if spec.channel is None:
        return lambda features: features[:, :, row, col].relu().sum(1)
    return lambda features: features[:, spec.channel, row, col]


def _explains(spec: AttributionSpec, highest: bool) -> str:
    if spec.unit is None:
        return f"class {spec.target}" + (", the one with the highest score" if highest else "")
    what = "sum of the positive parts of its channels" if spec.channel is None else f"channel {spec.channel}"
    return f"unit {spec.unit} of {spec.layer}, {what}"
