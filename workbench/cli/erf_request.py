"""What a call of `workbench erf` asks for: its words checked and turned into the results to compute."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.analysis.image_folder import ImageFolder
    from workbench.analysis.receptive_field import ReceptiveFieldSpec
    from workbench.models.base import VisionModel

#: What `load_model` takes besides the settings of the model.
NO_SETTINGS = ("name", "weights", "seed", "device", "backend", "ema")


@dataclass(frozen=True)
class Job:
    """One result to be: a model as `load_model` takes it, what is asked of it, and where the result goes."""

    model: str
    config: dict[str, Any]
    spec: "ReceptiveFieldSpec"
    folder: "ImageFolder"
    path: Path

    def load(self) -> "VisionModel":
        """The model, built anew: only one is in memory at a time."""
        return _loaded(self.model, self.config)

    def __str__(self) -> str:
        seed = f", seed {self.config['seed']}" if "seed" in self.config else ""
        return f"{self.model} {self.spec.layer}, unit {self.spec.unit_name}{seed}"


def jobs(
    models: list[str],
    configs: list[dict[str, Any]],
    images: Path,
    limit: int | None,
    out: Path,
    **asked: Any,
) -> list[Job]:
    """Every result to be; each model is built once here, so that what is wrong shows before hours have passed.

    Args:
        models: names.
        configs: what `load_model` is given besides, from `configs`.
        images, limit: see `ImageFolder`.
        out: the folder of the results, made here.
        asked: what `resolve` is given.

    Raises:
        ValueError: something does not exist or does not fit; one sentence.
        BackendUnavailable: the backend does not run here.
        OSError: `out` cannot be written.
    """
    import torch

    from kernels.backends import choose
    from workbench.analysis.image_folder import ImageFolder
    from workbench.analysis.receptive_field import resolve
    from workbench.analysis.resumable import run_name

    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"--out {str(out)!r} lies in the folder of images, and figures would be read as images: give another one."
        )
    folder = ImageFolder(images, limit=limit)
    found = []
    for name in dict.fromkeys(models):
        for config in configs:
            model = _loaded(name, config)
            choose(model.backend, torch.empty(0, device=model.device))
            spec = resolve(model, **asked)
            sized = folder.at(spec.size)
            found.append(Job(name, config, spec, sized, out / f"{run_name(model, spec, sized)}.nc"))
    _check_writable(out)
    return found


def _loaded(name: str, config: dict[str, Any]) -> "VisionModel":
    from workbench.models import load_model

    try:
        return load_model(name, **config)
    except TypeError as error:  # a setting of another type than the model computes with
        raise ValueError(f"{name} cannot be built with these settings: {error}.") from error


def _check_writable(out: Path) -> None:
    from workbench.analysis.export import write

    out.mkdir(parents=True, exist_ok=True)
    probe = out / ".writable"
    write(probe, b"")
    probe.unlink()


def configs(weights: str, seeds: list[str] | None, backend: str, settings: list[str] | None) -> list[dict[str, Any]]:
    """What `load_model` is given besides the name: one for each seed, one in all for weights that are read."""
    common = {"weights": weights, "backend": backend} | _settings(settings or [])
    if weights == "random":
        return [common | {"seed": seed} for seed in _seeds(seeds or ["0"])]
    if seeds:
        raise ValueError("--seed draws random weights; leave it out with other weights.")
    return [common]


def _seeds(given: list[str]) -> list[int]:
    words = [word.strip() for text in given for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ValueError(f"--seed takes whole numbers, several as 0,1,2; got {','.join(words)!r}.")
    return list(dict.fromkeys(map(int, words)))


def _settings(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is a number, true, false, none, a tuple such as (2,4), or else text."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set takes KEY=VALUE; got {text!r}.")
        if key in NO_SETTINGS:
            raise ValueError(f"--set takes settings of the model, and {key} is none of them.")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    word = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return text


def unit(text: str) -> str | tuple[int, int]:
    """A cell given as ROW,COL as a pair; anything else as it is."""
    cell = re.fullmatch(r"\(?(\d{1,9}), ?(\d{1,9})\)?", text.strip())
    return (int(cell[1]), int(cell[2])) if cell else text


def size(text: str | None) -> tuple[int, int] | None:
    """(rows, cols) of a side or of ROWSxCOLS."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip())
    if not sides:
        raise ValueError(f"--size is a side in pixels, or ROWSxCOLS such as 224x320; got {text!r}.")
    return int(sides[1]), int(sides[2] or sides[1])
