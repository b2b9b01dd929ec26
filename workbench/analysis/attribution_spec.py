"""What an attribution is computed with: the methods and their options, and how a request becomes a complete Spec."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from workbench.models.base import VisionModel
from workbench.models.checks import check_choice, check_whole
from workbench.names import unknown

from .attribution_baselines import BASELINES
from .attribution_model import layer_names, name_of
from .field_gradient import shape_of
from .field_spec import cell_of

#: What NoiseTunnel makes of the gradients of the noisy pictures: name -> words.
NOISES = {"smoothgrad": "their mean", "smoothgrad_sq": "the mean of their squares", "vargrad": "their variance"}

#: Images of one pass hold at most so many pixels together, by the kind of device, and are at most so many.
BATCH_PIXELS, BATCH_IMAGES = {"cpu": 8 * 64 * 64, "cuda": 16 * 224 * 224}, 32

#: A side of the window of Occlusion and the deviation of a blur, as shares of the picture's shorter side.
WINDOW, BLUR = 1 / 8, 1 / 16


#: Gradients on each piece of the path of integrated gradients.
NODES = 8


@dataclass(frozen=True)
class Method:
    """A method of attribution. options: what it takes by name, with defaults; None is chosen to fit the picture.

    unit: it explains a unit and no class; complete: its attributions should sum to the change of the score from the
    baseline to the picture.
    """

    title: str
    words: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unit: bool = False
    complete: bool = False


METHODS = {
    "saliency": Method(
        "Saliency",
        "magnitude of the gradient of the score (absolute=False: with its sign)",
        "Simonyan et al., arXiv 1312.6034",
        {"absolute": True},
    ),
    "input_x_gradient": Method(
        "Input x gradient", "normalised pixel times the gradient of the score", "Shrikumar et al., arXiv 1605.01713"
    ),
    "integrated_gradients": Method(
        "Integrated gradients",
        "difference from the baseline times the mean gradient on the straight path from it to the picture",
        "Sundararajan et al., arXiv 1703.01365",
        {"baseline": "black", "blur": None, "steps": 64, "tolerance": 0.005, "limit": 512, "batch": None},
        complete=True,
    ),
    "deep_lift": Method(
        "DeepLIFT",
        "difference from the baseline times a gradient in which each activation has the slope between the two",
        "Shrikumar et al., arXiv 1704.02685 (rescale rule)",
        {"baseline": "black", "blur": None},
        complete=True,
    ),
    "occlusion": Method(
        "Occlusion",
        "how much the score falls when a window is covered by the baseline, the mean over the windows on a pixel; all "
        "three colours hold the same",
        "Zeiler and Fergus, arXiv 1311.2901",
        {"window": None, "stride": None, "baseline": "zero", "blur": None, "batch": None},
    ),
    "noise_tunnel": Method(
        "SmoothGrad",
        "gradients of the score at noisy copies of the picture, combined as `noise` says",
        "Smilkov et al., arXiv 1706.03825; Adebayo et al., arXiv 1810.03307 (VarGrad)",
        {"noise": "smoothgrad", "samples": 32, "sigma": 0.15, "seed": 0, "absolute": False, "batch": None},
    ),
    "layer_grad_cam": Method(
        "Grad-CAM",
        "channels of a layer's map, each weighted with the mean over the map of the score's gradient, summed; "
        "enlarged to the picture by bilinear interpolation. Positive parts are the paper's map",
        "Selvaraju et al., arXiv 1610.02391",
        {"cam_layer": None},
    ),
    "neuron_gradient": Method(
        "Neuron gradient", "gradient of a unit of a layer", "Simonyan et al., arXiv 1312.6034, of a unit", unit=True
    ),
}

#: What each option is, in words.
OPTIONS = {
    "absolute": "take the gradient's magnitude",
    "baseline": "what the picture is compared with",
    "blur": "standard deviation of the blurred baseline, in pixels",
    "steps": "gradients on the path to begin with; rounded up to pieces of 8",
    "tolerance": "share of the score's change that the pieces of the path may miss together before some are halved",
    "limit": "the most gradients on the path",
    "window": "pixels that are covered at once: a side, or (rows, cols)",
    "stride": "pixels from one window to the next: a number, or (rows, cols)",
    "noise": "what is made of the gradients of the noisy copies",
    "samples": "noisy copies",
    "sigma": "standard deviation of the noise, as a share of the range of the picture's normalised values",
    "seed": "of the noise",
    "cam_layer": "the layer whose map is shown; without a unit `layer` says the same",
    "batch": "images of one pass; rounding depends on it",
}


@dataclass(frozen=True)
class AttributionSpec:
    """All that decides an attribution of a model and an image; what a method does not use is None.

    size: (rows, cols) of the picture. target: a class; or else layer and unit, a cell (row, col) of its map, with the
    sum of the positive parts of all channels, or of one channel. The others are `OPTIONS`.
    """

    method: str
    size: tuple[int, int]
    target: int | None = None
    layer: str | None = None
    unit: tuple[int, int] | None = None
    channel: int | None = None
    absolute: bool | None = None
    baseline: str | None = None
    blur: float | None = None
    steps: int | None = None
    tolerance: float | None = None
    limit: int | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    noise: str | None = None
    samples: int | None = None
    sigma: float | None = None
    seed: int | None = None
    cam_layer: str | None = None
    batch: int | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Aim:
    """What is explained, as far as that is known before the first pass."""

    target: int | None
    layer: str | None
    unit: Any
    channel: int | None
    cam_layer: str | None


def aim_of(
    model: nn.Module, method: str, target: Any, layer: str | None, unit: Any, channel: Any, cam_layer: str | None
) -> Aim:
    """Which class or unit, and which layer's map; ValueError in one sentence for what contradicts itself."""
    if METHODS[method].unit and unit is None and target is None:
        unit = "centre"
    if unit is None:
        return _aim_at_class(model, method, target, layer, channel, cam_layer)
    if target is not None:
        raise ValueError(
            f"{method} explains a unit; leave target out."
            if METHODS[method].unit
            else "An attribution explains a class or a unit: give target or unit, not both."
        )
    layer = layer or _last(model)
    _check_layer(model, layer)
    if method == "layer_grad_cam":
        cam_layer = cam_layer or _before(model, layer)
        _check_layer(model, cam_layer)
    return Aim(None, layer, unit, channel, cam_layer)


def _aim_at_class(
    model: nn.Module, method: str, target: Any, layer: str | None, channel: Any, cam_layer: str | None
) -> Aim:
    if METHODS[method].unit:
        raise ValueError(f"{method} explains a unit: give unit=(row, col) or 'centre', and leave target out.")
    if channel is not None:
        raise ValueError("channel is a channel of a unit: give unit=(row, col) or 'centre' with it.")
    if method != "layer_grad_cam":
        if layer is not None:
            raise ValueError("layer is the layer of a unit: give unit=(row, col) or 'centre' with it.")
        return Aim(target, None, None, None, None)
    if layer and cam_layer and layer != cam_layer:
        raise ValueError(f"Without a unit, layer and cam_layer both name the map that is shown; got {layer!r} and "
                         f"{cam_layer!r}.")  # fmt: skip
    shown = cam_layer or layer or _last(model)
    _check_layer(model, shown)
    return Aim(target, None, None, None, shown)


def _last(model: nn.Module) -> str:
    if isinstance(model, VisionModel):
        return layer_names(model)[-1]
    raise ValueError(f"{name_of(model)} names no layers of its own: give layer, the dotted name of a submodule.")


def _before(model: nn.Module, layer: str) -> str:
    names = layer_names(model) if isinstance(model, VisionModel) else []
    if layer in names[1:]:
        return names[names.index(layer) - 1]
    raise ValueError(f"Grad-CAM of a unit shows the map of an earlier layer than {layer!r}: give cam_layer.")


def _check_layer(model: nn.Module, layer: Any) -> None:
    names = layer_names(model)
    if layer not in names:
        raise ValueError(unknown("layer", str(layer), names, of=name_of(model)))


def check_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options with what was given; ValueError for one that it does not have or that is out of range."""
    allowed = METHODS[method].options
    for name in options:
        if name not in allowed:
            has = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"{method} has no option {name!r}: {has}.")
    chosen = {**allowed, **options}
    check_whole(**{k: v for k, v in chosen.items() if k in ("steps", "limit", "samples", "batch") and v is not None})
    for name, known in (("baseline", BASELINES), ("noise", NOISES)):
        if name in chosen:
            check_choice(name, chosen[name], known)
    for name in ("tolerance", "sigma", "blur"):
        if chosen.get(name) is not None:
            chosen[name] = _positive(name, chosen[name])
    if chosen.get("blur") is not None and chosen["baseline"] != "blurred":
        raise ValueError(f"blur is for baseline='blurred'; got it with {chosen['baseline']!r}.")
    if "steps" in chosen and chosen["limit"] < chosen["steps"]:
        raise ValueError(f"limit must be at least steps, {chosen['steps']}; got {chosen['limit']}.")
    if not isinstance(chosen.get("absolute", True), bool):
        raise ValueError(f"absolute is True or False; got {chosen['absolute']!r}.")
    seed = chosen.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2 ** 63 - 1; got {seed!r}.")
    return chosen


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number; got {value!r}.")
    return float(value)


def fitted(chosen: dict[str, Any], size: tuple[int, int], device: str) -> dict[str, Any]:
    """The options with everything chosen that depends on the picture's size or the device."""
    fit, shorter = dict(chosen), min(size)
    if fit.get("baseline") == "blurred" and fit["blur"] is None:
        fit["blur"] = shorter * BLUR
    if "batch" in fit and fit["batch"] is None:
        pixels = BATCH_PIXELS.get(device, BATCH_PIXELS["cpu"])
        fit["batch"] = min(BATCH_IMAGES, max(1, pixels // (size[0] * size[1])))
    if "window" in fit:
        default = max(1, round(shorter * WINDOW))
        window = _pair("window", default if fit["window"] is None else fit["window"])
        halves = tuple(max(1, side // 2) for side in window)
        stride = _pair("stride", halves if fit["stride"] is None else fit["stride"])
        if any(w > side for w, side in zip(window, size, strict=True)):
            raise ValueError(f"window must fit into the picture of {size[0]} x {size[1]} pixels; got {window}.")
        if any(s > w for s, w in zip(stride, window, strict=True)):
            raise ValueError(f"stride must not pass over pixels: at most the window, {window}; got {stride}.")
        fit |= {"window": window, "stride": stride}
    return fit


def _pair(name: str, value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise ValueError(f"{name} is a whole number of pixels, or (rows, cols) of them; got {value!r}.")
    return sides[0], sides[1]


def passes(method: str, size: tuple[int, int], fit: Mapping[str, Any]) -> int:
    """How many images go through the model, the picture itself among them; integrated gradients may need more."""
    if method == "integrated_gradients":
        pieces = pieces_of(fit["steps"])
        return 1 + pieces * NODES + pieces + 1
    if method == "occlusion":
        return 3 + windows(size, fit["window"], fit["stride"])
    if method == "deep_lift":
        return 4
    return 1 + fit.get("samples", 1)


def pieces_of(steps: int) -> int:
    """How many pieces the path begins with."""
    return -(-steps // NODES)


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> int:
    """How many windows Occlusion lays on a picture; the last of a side is cut off at the border if they do not fit."""
    rows, cols = (-(-(pixels - w) // s) + 1 for pixels, w, s in zip(size, window, stride, strict=True))
    return rows * cols


def resolved_target(target: Any, logits: torch.Tensor) -> int:
    """The class, checked against the logits (1, classes); None: the one with the highest."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ValueError(
            f"A class is explained on a model that gives (B, classes); this one gives {shape_of(logits)}: give unit."
        )
    return int(logits[0].argmax()) if target is None else _index("target", target, logits.shape[1], "classes")


def resolved_unit(unit: Any, channel: Any, features: torch.Tensor) -> tuple[tuple[int, int], int | None]:
    """The cell and the channel, checked against the layer's map (1, C, h, w); "centre" is cell (h // 2, w // 2)."""
    channels, rows, cols = features.shape[1:]
    if channel is not None:
        channel = _index("channel", channel, channels, "channels")
    return cell_of(unit, (rows, cols)), channel


def _index(name: str, value: Any, count: int, what: str) -> int:
    try:
        index = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise ValueError(f"{name} must be a whole number from 0 to {count - 1}, one of {count} {what}; got {value!r}.")
    return index
