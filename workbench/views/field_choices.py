"""What the page of receptive fields opens at once: comparisons that are ready to look at, and checkpoint files."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from workbench.models import load_model
from workbench.models.base import VisionModel
from workbench.models.checkpoint import read
from workbench.models.expression import Expression, parse, spell
from workbench.models.registry import variant

from .model_choice import shapes_of, small_models


class Comparison(NamedTuple):
    """Models and layers to compare, and the unit as shares of the grid's (rows, cols); None: the centre."""

    models: list[str]
    layers: list[str]
    unit: tuple[float, float] | None = None


Names = Mapping[str, VisionModel]


def _last(*models: str, unit: tuple[float, float] | None = None) -> Callable[[str, Names], Comparison]:
    """Some models at their last layers."""
    found = Comparison(list(models), ["" for _ in models], unit)
    return lambda first, given: found


def _depth(first: str, given: Names) -> Comparison:
    """Four layers of the first model, from its first to its last, or all where it has fewer."""
    layers = list(shapes_of(first, given).blocks())
    count = min(4, len(layers))
    chosen = [layers[n * (len(layers) - 1) // max(count - 1, 1)] for n in range(count)]
    return Comparison([first] * count, chosen)


def _seeds(first: str, given: Names) -> Comparison:
    """The first model with three seeds; of a given model its registered variant."""
    name, settings, _ = Expression(given[first].name, {}) if first in given else parse(first)
    models = [spell(Expression(name, settings, seed)) for seed in range(3)]
    return Comparison(models, ["" for _ in models])


#: Label -> (the page's first model, the given models) -> what is compared.
COMPARISONS: dict[str, Callable[[str, Names], Comparison]] = {
    "GSPN, Swin and NAT": _last("gspn_nano", "swin_nano", "nat_nano"),
    "GSPN: aligned or released merge, off-centre unit": _last(
        "gspn_nano", "gspn_nano(merge=released)", unit=(0.25, 0.7)
    ),
    "GSPN and GSPN-2": _last("gspn_nano", "gspn2_nano"),
    "GSPN: chunks of 2, of 8, global": _last("gspn_nano(chunk=2)", "gspn_nano(chunk=8)", "gspn_nano"),
    "Three seeds of the first model": _seeds,
    "Depth: layers of the first model": _depth,
}


def read_checkpoint(data: bytes, file: str, preferred: Sequence[str]) -> VisionModel:
    """The model of an uploaded checkpoint: the one that the file names, or that its tensors fit.

    preferred: expressions. The tensors of some models fit another one as well, as those of DiNAT fit NAT; a preferred
    one that fits is taken then.

    Raises:
        ValueError: it is no checkpoint, needs unpickling, or fits no registered model; one sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(file.replace("\\", "/")).name)
        path.write_bytes(data)
        found = read(path)
        family = [name for name in small_models() if variant(name).model.family == found.layout.family]
        first = [parse(text).name for text in preferred]
        names = [found.model] if found.model else sorted(family or small_models(), key=lambda name: name not in first)
        errors = []
        for name in names:
            try:
                return load_model(name, weights=path)
            except ValueError as error:
                errors.append(error)
    raise errors[0]
