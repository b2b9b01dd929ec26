"""What a receptive field is computed with: the Spec, and how a request becomes one with nothing left open."""

import operator
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from workbench.images import MAX_PIXELS
from workbench.models.base import VisionModel
from workbench.names import unknown

from .field_gradient import (
    CHANNELS,
    DTYPES,
    GRADIENTS,
    channel_of,
    device_of,
    dtype_of,
    evaluating,
    exact,
    features,
    has_layers,
)
from .mass import THRESHOLDS

#: "centre", a cell (row, col), or an evenly spaced grid of units such as "3x3".
UNIT = Literal["centre"] | tuple[int, int] | str

#: How `load_image` brings a picture to the size, in words.
RESIZE = "the largest centred region of that shape, resized by antialiased bicubic interpolation"

#: Units of one run: each costs a backward pass and a map.
MOST_UNITS = 64

#: Pixels of a batch, and its images at most: a batch is the least that is waited for, and what a cancel throws away.
BATCH_PIXELS, BATCH_IMAGES = 4 * 64 * 64, 8


@dataclass(frozen=True)
class ReceptiveFieldSpec:
    """All that decides a receptive field of a model and images; `resolve` makes one.

    layer: a name from `model.layers()`, or of a plain module's submodule, "" for the module itself. unit: cells (row,
    col) of the layer's map; unit_name: how they were asked for. size: (rows, cols) of the picture in pixels. grid:
    (rows, cols) of the layer's map. channels: a name of `CHANNELS`, or "channel 5". gradient: a name of `GRADIENTS`.
    thresholds: the shares of the mass whose areas are stated. batch: images of a pass; rounding depends on it. dtype:
    of the passes, "float32" or "float64". colours: of the picture, 1 for grey. resize: how files are brought to the
    size, in words.
    """

    layer: str
    unit: tuple[tuple[int, int], ...]
    unit_name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    channels: str = "relu_sum"
    gradient: str = "relu"
    thresholds: tuple[float, ...] = THRESHOLDS
    batch: int = 1
    dtype: str = "float32"
    colours: int = 3
    resize: str = RESIZE


#: What may be given to `resolve` by name.
OPTIONS = ("channels", "gradient", "thresholds", "batch", "dtype", "colours")


def resolve(
    model: Any,
    layer: str | None = None,
    unit: UNIT = "centre",
    size: int | tuple[int, int] | None = None,
    **options: Any,
) -> ReceptiveFieldSpec:
    """The complete Spec for a request: the cells of the unit, the size and grid, and every default.

    Args:
        model: see `receptive_field`.
        layer: None: the last of `model.layers()`, or the output of a plain module.
        unit: "centre", which is cell (h // 2, w // 2), a cell (row, col), or "3x3" for 9 cells evenly spaced.
        size: pixels, a side or (rows, cols); None for what the model was designed for, 224 if it does not say.
        options: channels, gradient, thresholds, batch, dtype and colours of `ReceptiveFieldSpec`.

    Raises:
        ValueError: something does not exist or is out of range, or a plain module does not run on such a picture; one
            sentence.
    """
    rows, cols = _size(designed_side(model) if size is None else size)
    for name in options:
        if name not in OPTIONS:
            raise ValueError(unknown("option", name, OPTIONS))
    colours = _whole("colours", "of a picture", options.get("colours", 3))
    layer, grid = _layer_and_grid(model, layer, (rows, cols), colours)
    name, cells = _units(unit, grid)
    given = {"batch": min(BATCH_IMAGES, max(1, BATCH_PIXELS // (rows * cols)))} | options
    given["thresholds"] = _thresholds(given.get("thresholds", THRESHOLDS))
    spec = ReceptiveFieldSpec(layer, cells, name, (rows, cols), grid, **given)
    _check(spec)
    return spec


def designed_side(model: Any) -> int:
    """The side in pixels that a model was designed for; 224 if it does not say."""
    return getattr(model, "input_size", 224) if has_layers(model) else 224  # a plain module may call anything so


def _size(size: Any) -> tuple[int, int]:
    try:
        rows, cols = (size, size) if not isinstance(size, tuple | list) else size
        rows, cols = operator.index(rows), operator.index(cols)
    except (TypeError, ValueError):
        rows = cols = 0
    if min(rows, cols) < 1:
        raise ValueError(f"size is a whole number of pixels, or (rows, cols) of them; got {size!r}.")
    if rows * cols > MAX_PIXELS:
        raise ValueError(f"size is of at most {MAX_PIXELS // 10**6} megapixels; got {rows} x {cols} pixels.")
    return rows, cols


def _whole(name: str, what: str, number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} is a whole number {what}, at least 1; got {number!r}.")
    return number


def _layer_and_grid(model: Any, layer: str | None, size: tuple[int, int], colours: int) -> tuple[str, tuple[int, int]]:
    if has_layers(model):
        names = [each.name for each in model.layers(size)]
        name = names[-1] if layer is None else layer
        if name not in names:
            raise ValueError(unknown("layer", str(layer), names, of=getattr(model, "name", type(model).__name__)))
        if isinstance(model, VisionModel):
            return name, model.grids(*size)[names.index(name)]
        # Not the layer's own grid: it may mix on one with tokens of padding, which its features do not have.
        return name, _grid_of(model, name, size, colours)
    if not isinstance(model, nn.Module):
        raise ValueError(
            "A receptive field needs a torch.nn.Module, or methods layers(size) and features(x, layer); got "
            f"{type(model).__name__}."
        )
    modules = dict(model.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(unknown("layer", str(layer), filter(None, modules), of=type(model).__name__))
    return layer or "", _grid_of(model, layer or "", size, colours)


def _grid_of(model: Any, layer: str, size: tuple[int, int], colours: int) -> tuple[int, int]:
    """The grid of a layer's map, from a picture of zeros."""
    device = device_of(model)
    try:
        with exact(device), torch.no_grad(), evaluating(model):
            found = features(model, torch.zeros(1, colours, *size, dtype=dtype_of(model), device=device), layer)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} does not run on a picture (1, {colours}, {size[0]}, {size[1]}): "
            + str(error).partition("\n")[0]
        ) from error
    return found.shape[2], found.shape[3]


def _units(unit: Any, grid: tuple[int, int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The name and the cells of a unit on the grid."""
    rows, cols = grid
    if isinstance(unit, str) and (counts := re.fullmatch(r"(\d{1,4})x(\d{1,4})", unit)):
        many = int(counts[1]), int(counts[2])
        if min(many) < 1 or many[0] > rows or many[1] > cols or many[0] * many[1] > MOST_UNITS:
            raise ValueError(
                f"A grid of units needs at least 1 unit along each side, at most the layer's {rows} x {cols} cells, "
                f"and at most {MOST_UNITS} in all; got {unit!r}."
            )
        across = [[(2 * i + 1) * cells // (2 * n) for i in range(n)] for n, cells in zip(many, grid, strict=True)]
        return unit, tuple((row, col) for row in across[0] for col in across[1])
    cell = cell_of(unit, grid, "'centre', a cell (row, col), or a grid of units such as '3x3'")
    return "centre" if isinstance(unit, str) and unit == "centre" else str(cell), (cell,)


def cell_of(unit: Any, grid: tuple[int, int], words: str = "'centre' or a cell (row, col)") -> tuple[int, int]:
    """The cell (row, col) of a grid that one unit is; "centre" is (rows // 2, cols // 2).

    Raises:
        ValueError: it is not what `words` say, or lies outside the grid.
    """
    rows, cols = grid
    if isinstance(unit, str) and unit == "centre":
        return rows // 2, cols // 2
    if isinstance(unit, str) and (cell := re.fullmatch(r"\((\d{1,9}), ?(\d{1,9})\)", unit)):
        unit = int(cell[1]), int(cell[2])
    try:
        row, col = (operator.index(number) for number in unit)
    except (TypeError, ValueError):
        raise ValueError(f"unit is {words}; got {unit!r}.") from None
    if not (0 <= row < rows and 0 <= col < cols):
        raise ValueError(f"unit must be a cell of the layer's {rows} rows and {cols} columns; got {(row, col)}.")
    return row, col


def _thresholds(thresholds: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(threshold) for threshold in thresholds)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 < threshold < 1 for threshold in found):
        raise ValueError(f"thresholds are shares of the mass between 0 and 1, at least one; got {thresholds!r}.")
    return found


def _check(spec: ReceptiveFieldSpec) -> None:
    for name, known in (("channels", CHANNELS), ("gradient", GRADIENTS), ("dtype", DTYPES)):
        given = getattr(spec, name)
        if isinstance(given, str) and (given in known or (name == "channels" and channel_of(given) is not None)):
            continue
        raise ValueError(unknown(name, str(given), [*known, *(["channel 0"] if name == "channels" else [])]))
    _whole("batch", "of images", spec.batch)
