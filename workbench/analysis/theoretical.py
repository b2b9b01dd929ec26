"""Theoretical receptive fields: the pixels that a unit's value can depend on, whatever the weights and the picture.

For the registered models the set is found exactly, position by position (`theoretical_field`); for a chain of
convolutions its size, stride and padding have a closed form (`receptive_field_size`).
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np

from workbench.models.base import VisionModel

from .dependence import FIELD, MIXING, Grid, Relation, Series
from .model_dependence import parts_until, relation


@dataclass(frozen=True, eq=False)
class TheoreticalField:
    """The pixels that a unit's value can depend on.

    field (H, W) bool: all of them. mixing (H, W) bool: those that are left when every statistic over all positions (a
    norm over the map, squeeze-excitation, channel attention) is held fixed. global_by: where such statistics are taken
    on the way to the unit, such as "stage1.block1: global response norm"; field and mixing are equal where it is empty.
    """

    field: np.ndarray
    mixing: np.ndarray
    global_by: tuple[str, ...]


def theoretical_field(model: VisionModel, layer: str, position: Grid, size: int | Grid) -> TheoreticalField:
    """The pixels that the unit at `position` of a layer can depend on, through all its channels.

    A mask of that unit is carried backwards through the model, from the output of the layer's block, which is what
    `model.features` returns, to the picture: with M_j the relation of step j (M_j[p, s]: output p reads input s), pixel
    s is in the field iff M_1^T M_2^T ... M_n^T e_unit > 0. Every step follows the map and its borders, tokens of
    padding and chunks included. Weights count as not zero, and the model as in evaluation.

    Args:
        model: a model of the registry.
        layer: one of its layers by name.
        position: the unit, (row, col) on the layer's map as `model.features` returns it, without tokens of padding.
        size: pixels of the picture, (rows, cols) or the side of a square.

    Raises:
        TypeError: the model, or a part of it, is of a class whose dependence is not known.
        ValueError: a layer that does not exist, a size that the model does not take, a position outside the map.
    """
    if not isinstance(model, VisionModel):
        raise TypeError(f"model must be a model of the registry, as load_model returns; got {type(model).__name__}.")
    picture = _pair("size", (size, size) if isinstance(size, Integral) else size)
    unit = _pair("position", position)
    model.check_size(*picture)
    steps: list[Relation] = []
    global_by: list[str] = []
    for name, part in parts_until(model, layer):
        steps.append(relation(part, steps[-1].grid if steps else picture))
        global_by += [f"{name}: {statistic}" for statistic in steps[-1].statistics]
    path = Series(steps)
    if not all(0 <= place < count for place, count in zip(unit, path.grid, strict=True)):
        raise ValueError(
            f"position must be a (row, col) on the {path.grid[0]} rows and {path.grid[1]} columns of {layer} for a "
            f"picture of {picture[0]} x {picture[1]} pixels; got {unit}."
        )
    reads = np.zeros((2, *path.grid), bool)
    reads[:, unit[0], unit[1]] = True
    reads = np.ascontiguousarray(path.back(reads))
    reads.setflags(write=False)
    return TheoreticalField(reads[FIELD], reads[MIXING], tuple(global_by))


def _pair(name: str, value: object) -> Grid:
    try:
        rows, cols = (operator.index(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        words = "a (row, col)" if name == "position" else "a whole number or a (rows, cols) pair of them"
        raise ValueError(f"{name} must be {words}; got {value!r}.") from None
    return rows, cols


@dataclass(frozen=True)
class Convolution:
    """A convolution or pooling along one axis: kernel positions, dilation apart, moved by stride.

    padding: zeros before the first position; `name` is for people.

    Raises:
        ValueError: a number is out of range.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")


class FieldSize(NamedTuple):
    """The receptive field of a chain of convolutions along one axis, in pixels.

    size: pixels from the first that a unit reads to the last; stride: pixels from one unit's field to the next;
    padding: how far the field of unit 0 begins before the first pixel.
    """

    size: int
    stride: int
    padding: int

    def centre(self, feature: int) -> float:
        """The middle of a unit's field in pixels, 0 at pixel 0's centre: feature stride - padding + (size - 1) / 2.

        Source: Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill 2019).
        """
        return -self.padding + feature * self.stride + (self.size - 1) / 2


def receptive_field_size(layers: Sequence[Convolution]) -> FieldSize:
    """The size, stride and padding of the receptive field of a chain of convolutions, the first next to the picture.

        size = 1 + sum over l of (k_l - 1) d_l S_l,    padding = sum over l of p_l S_l,    stride = S_L+1

    with S_l the product of the strides before layer l. Where branches are added, as in a residual network, the chain
    with the largest field counts, if all have the same stride and centre.

    Args:
        layers: the layers in the order of the forward pass; none give a field of one pixel.

    Source: Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks (Distill 2019).
    """
    size, stride, padding = 1, 1, 0
    for layer in layers:
        size += (layer.kernel - 1) * layer.dilation * stride
        padding += layer.padding * stride
        stride *= layer.stride
    return FieldSize(size, stride, padding)
