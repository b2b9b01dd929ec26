"""What a layout of weights is, and how the settings of a model are read off the shapes of its tensors."""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

#: Settings that the shapes of a file's tensors tell. Heads and windows are not among them: they have a shape only where
#: there is a table of biases, and elsewhere a file of ours notes them.
SHAPES = ("dims", "depths", "d_state", "ratio", "kernel", "patch", "num_classes")


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def nothing(tensors: Tensors) -> dict[str, Any]:
    return {}


def always(tensors: Tensors) -> bool:
    return True


@dataclass(frozen=True)
class Layout:
    """One way of naming a model's tensors.

    family: the models that read it, None if none does; marks: patterns that must each match the name of a tensor; fits:
    what must hold besides, for layouts that have the names of others; translate: the tensors under our names; infer:
    the settings that their shapes tell; settings: those that the layout implies unless a file or the caller says
    otherwise.
    """

    name: str
    family: str | None
    marks: tuple[str, ...]
    translate: Callable[[Tensors], Tensors] = as_they_are
    infer: Callable[[Tensors], dict[str, Any]] = nothing
    settings: Mapping[str, Any] = field(default_factory=dict)
    fits: Callable[[Tensors], bool] = always

    def matches(self, tensors: Tensors) -> bool:
        listed = "\n".join(tensors)
        return all(re.search(f"^{mark}$", listed, re.MULTILINE) for mark in self.marks) and self.fits(tensors)


def known(**settings: Any) -> dict[str, Any]:
    """The settings without those that could not be told."""
    return {name: value for name, value in settings.items() if value is not None}


def size(tensors: Tensors, name: str, axis: int) -> int | None:
    """A tensor's extent along an axis, None if there is no such tensor or axis."""
    tensor = tensors.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None


def depths(tensors: Tensors, part: str) -> tuple[int, ...] | None:
    """How many blocks each stage has, counted by a tensor that every block has."""
    counts: list[int] = []
    for i in itertools.count():
        depth = next(j for j in itertools.count() if f"layers.{i}.blocks.{j}.{part}" not in tensors)
        if depth == 0:
            return tuple(counts) or None
        counts.append(depth)
    return None


def dims(tensors: Tensors, part: str, axis: int = 0) -> tuple[int, ...] | None:
    """The extent of a tensor of the first block of each stage."""
    stages = range(len(depths(tensors, part) or ()))
    found = [size(tensors, f"layers.{i}.blocks.0.{part}", axis) for i in stages]
    return tuple(n for n in found if n is not None) or None
