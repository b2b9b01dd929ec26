"""The registry of models: `@register` names a variant, `list_models` lists them, `load_model` builds one."""

import fnmatch
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from kernels.backends import BACKENDS
from workbench.names import unknown

from .base import VisionModel
from .checkpoint import Checkpoint, fingerprint, load_into, read
from .checks import check_choice
from .layouts import SHAPES

__all__ = ["list_models", "load_model", "register", "unknown"]

#: Where trained weights ship: <model name>.safetensors.
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "weights"


@dataclass(frozen=True)
class Variant:
    """A named configuration of a model class."""

    name: str
    model: type[VisionModel]
    settings: dict[str, Any]

    def defaults(self) -> dict[str, Any]:
        """Every setting of the class with this variant's value."""
        parameters = inspect.signature(self.model).parameters
        return {name: self.settings.get(name, parameter.default) for name, parameter in parameters.items()}

    def check(self, config: dict[str, Any]) -> None:
        """Raise ValueError if there is a setting that the class does not have."""
        allowed = self.defaults()
        wrong = [name for name in config if name not in allowed]
        if wrong:
            raise ValueError(f"{self.name} has no setting {wrong[0]!r}: its settings are {', '.join(allowed)}.")

    def build(self, config: dict[str, Any]) -> VisionModel:
        """The model without weights: its parameters have shapes but no storage."""
        # Settings that were read from JSON have lists; one form, so that equal settings compare and hash as equal.
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
        settings = self.defaults() | given
        with torch.device("meta"):
            model = self.model(**settings)
        model.name, model.config = self.name, settings
        return model


_VARIANTS: dict[str, Variant] = {}
Model = TypeVar("Model", bound=type[VisionModel])


def register(name: str, **settings: Any) -> Callable[[Model], Model]:
    """Class decorator: make `name` a variant of the class, with these settings."""

    def add(model: Model) -> Model:
        _VARIANTS[name] = Variant(name, model, settings)
        return model

    return add


def list_models(pattern: str = "*") -> list[str]:
    """The names of the registered models that match a shell pattern, sorted: `list_models("gspn*")`."""
    return sorted(fnmatch.filter(_VARIANTS, pattern))


def variant(name: str) -> Variant:
    """The registered variant of that name; ValueError with the near matches if there is none."""
    if not isinstance(name, str) or name not in _VARIANTS:
        raise ValueError(unknown("model", str(name), list_models()))
    return _VARIANTS[name]


def load_model(
    name: str,
    weights: str | os.PathLike[str] = "random",
    seed: int = 0,
    device: str | torch.device | None = None,
    backend: str = "auto",
    *,
    ema: bool = False,
    **config: Any,
) -> VisionModel:
    """Build a registered model and give it weights.

    The model is in evaluation mode and its parameters ask for no gradients, so that gradients with respect to an image
    cost no more than they must; call `model.requires_grad_(True)` and `model.train()` to train it.

    Args:
        name: one of `list_models()`.
        weights: "random", drawn from `seed` as `initialise` says, the same on every device and without touching the
            global random state; "trained", the weights that ship with the workbench; or the path of a .safetensors,
            .pth or .pt file: saved by the workbench, or in the layout of GSPN's release, of the official NAT, DiNAT or
            CSWin, of the official or timm's Swin or DaViT, or of timm's ("tf") or torchvision's MaxViT.
        seed: of random weights.
        device: None for the GPU if there is one, else the CPU.
        backend: "auto" | "reference" | "cpu" | "triton", for every mixing layer.
        ema: with a file, take the running average of the weights that the file has besides them.
        config: settings of the model, such as num_classes, and merge and chunk for GSPN. A file tells its own sizes.

    Returns:
        The model, with name, config, weights, weights_sha256, layout and seed set.

    Raises:
        ValueError: an unknown name, setting or device, or weights that cannot be read or do not fit; says which.
    """
    chosen = variant(name)
    chosen.check(config)
    check_choice("backend", backend, BACKENDS)
    target = _device(device)
    if weights == "random":
        if ema:
            raise ValueError("ema=True chooses between the weights of a file; with weights='random' leave it out.")
        model = _drawn(chosen, config, seed)
    else:
        model = _loaded(chosen, config, _shipped(name) if weights == "trained" else weights, ema)
        if weights == "trained":
            model.weights = "trained"
    model.weights_sha256 = fingerprint(model.state_dict())
    model.set_backend(backend)
    return model.to(target).eval().requires_grad_(False)


#: How the tables of relative position bias are named.
POSITION_BIAS = ("bias_table", "rpb")


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew: weights from a normal distribution that keeps the variance of their input.

    weight ~ N(0, 1 / inputs), position bias ~ N(0, 0.02 ** 2), norms 1 (batch norm: mean 0, variance 1), all else 0. It
    is our choice for pictures of untrained models: gates and attention weights then follow the image instead of being
    almost uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    for name, parameter in model.named_parameters():
        if name.endswith(POSITION_BIAS):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif not name.endswith("weight"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)


def _drawn(variant: Variant, config: dict[str, Any], seed: int) -> VisionModel:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2 ** 63 - 1; got {seed!r}.")
    model = variant.build(config).to_empty(device="cpu")
    initialise(model, seed)
    model.weights, model.seed = "random", seed
    return model


def _loaded(variant: Variant, config: dict[str, Any], path: str | os.PathLike[str], ema: bool) -> VisionModel:
    found = read(path, ema)
    _check_family(variant, found)
    variant.check(found.config)
    _check_variant(variant, found, config)
    model = variant.build(found.config | config)
    load_into(model, found)
    model.weights, model.layout, model.seed = found.file, found.found, None
    return model


def _check_family(variant: Variant, found: Checkpoint) -> None:
    if found.layout.family != variant.model.family:
        readers = sorted(v.name for v in _VARIANTS.values() if v.model.family == found.layout.family)
        raise ValueError(
            f"{found.file} is a checkpoint of another family ({found.found}), not one for {variant.name}: "
            f"load it as {', '.join(readers)}."
        )


def _check_variant(variant: Variant, found: Checkpoint, config: dict[str, Any]) -> None:
    """A file of exactly another variant's shapes must not go by this one's name; shapes of no variant may."""
    if found.model and found.model != variant.name:
        raise ValueError(f"{found.file} was saved as {found.model}, not {variant.name}: load it as that.")
    shapes = {key: value for key, value in found.config.items() if key in SHAPES and key != "num_classes"}
    family = [v for v in _VARIANTS.values() if v.model is variant.model]
    same = sorted(v.name for v in family if shapes.items() <= v.defaults().items())
    tells = bool(found.model) or "heads" not in variant.defaults() or "heads" in found.config or "heads" in config
    if not same and not tells:
        raise ValueError(
            f"{found.file} has the shapes of no known variant, and its tensors do not tell how many heads it has: "
            "give them, such as heads=(2, 4, 8, 16)."
        )
    if same and variant.name not in same:
        raise ValueError(
            f"{found.file} has the shapes of {' and '.join(same)}, not of {variant.name}: load it as that."
        )


def _shipped(name: str) -> Path:
    path = SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        others = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none"
        raise ValueError(
            f"No trained weights of {name} ship with the workbench (shipped: {others}): give a file's path."
        )
    return path


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'cpu', 'cuda' or a torch.device; got {device!r}.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={str(chosen)!r} needs a GPU that PyTorch can use, and there is none: use device='cpu'."
        )
    return chosen
