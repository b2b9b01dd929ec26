"""The layouts that weights come in: how to tell them apart, their names in our models, and what their shapes say.

A layout is recognised by the names of its tensors alone. Some are recognised only so that an error can name them.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

#: Settings that the shapes of a file's tensors tell.
SHAPES = ("dims", "depths", "heads", "d_state", "ratio", "window", "patch", "num_classes")


def as_they_are(tensors: Tensors) -> Tensors:
    return tensors


def nothing(tensors: Tensors) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Layout:
    """One way of naming a model's tensors.

    family: the models that read it, None if none does; marks: patterns that must each match the name of a tensor;
    translate: the tensors under our names; infer: the settings that their shapes tell; settings: those that the layout
    implies unless a file or the caller says otherwise.
    """

    name: str
    family: str | None
    marks: tuple[str, ...]
    translate: Callable[[Tensors], Tensors] = as_they_are
    infer: Callable[[Tensors], dict[str, Any]] = nothing
    settings: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, names: Iterable[str]) -> bool:
        listed = "\n".join(names)
        return all(re.search(f"^{mark}$", listed, re.MULTILINE) for mark in self.marks)


def find_layout(names: Iterable[str]) -> Layout | None:
    """The first layout that the names of a file's tensors match."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.matches(names)), None)


# GSPN

#: Names of early GSPN files and what they became; the last two begin a name.
GSPN_RENAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
)
GSPN_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2|head)\.weight$")


def translate_gspn(tensors: Tensors) -> Tensors:
    """Old names to new ones, and 1 x 1 convolutions, (out, in, 1, 1), to linear weights, (out, in)."""
    translated = {}
    for name, tensor in tensors.items():
        for old, new in GSPN_RENAMES:
            name = re.sub(old, new, name)
        if GSPN_LINEAR.search(name) and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        translated[name] = tensor
    return translated


def infer_gspn(tensors: Tensors) -> dict[str, Any]:
    """The settings of a GSPN file."""
    first = "layers.0.blocks.0.op."
    inner, channels = size(tensors, f"{first}in_proj.weight", 0), size(tensors, f"{first}in_proj.weight", 1)
    return known(
        dims=dims(tensors, "norm.weight"),
        depths=depths(tensors, "norm.weight"),
        d_state=size(tensors, f"{first}x_conv_down.weight", 0),
        ratio=inner / channels if inner and channels else None,
        num_classes=size(tensors, "classifier.head.weight", 0),
    )


# Swin

SWIN_BUFFERS = ("relative_position_index", "attn_mask")


def translate_swin(tensors: Tensors) -> Tensors:
    """Without the buffers, which follow from the window."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(SWIN_BUFFERS)}


def translate_timm_swin(tensors: Tensors) -> Tensors:
    """timm merges patches where a stage begins, the official layout where the one before ends."""

    def earlier(match: re.Match[str]) -> str:
        return f"layers.{int(match[1]) - 1}.downsample."

    names = {name: re.sub(r"^layers\.(\d+)\.downsample\.", earlier, name) for name in tensors}
    return translate_swin({re.sub(r"^head\.fc\.", "head.", names[name]): t for name, t in tensors.items()})


def infer_swin(tensors: Tensors) -> dict[str, Any]:
    """The settings of a Swin file."""
    table = "attn.relative_position_bias_table"
    offsets = size(tensors, f"layers.0.blocks.0.{table}", 0)
    return known(
        dims=dims(tensors, "norm1.weight"),
        depths=depths(tensors, "norm1.weight"),
        heads=dims(tensors, table, axis=1),
        window=(math.isqrt(offsets) + 1) // 2 if offsets else None,
        patch=size(tensors, "patch_embed.proj.weight", 2),
        num_classes=size(tensors, "head.weight", 0),
    )


# Reading shapes


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


SWIN_TABLE = r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"
GSPN_SCAN = r"layers\.0\.blocks\.0\.(op|self_attention)\.x_conv_down\.weight"

#: The first that matches counts.
LAYOUTS = (
    Layout("GSPN release", "gspn", (GSPN_SCAN,), translate_gspn, infer_gspn, {"merge": "released"}),
    Layout("timm Swin", "swin", (SWIN_TABLE, r"head\.fc\.weight"), translate_timm_swin, infer_swin),
    Layout("official Swin", "swin", (SWIN_TABLE,), translate_swin, infer_swin),
    Layout("torchvision Swin", None, (r"features\.1\.0\.attn\.relative_position_bias_table",)),
    Layout("transformers Swin", None, (r".*encoder\.layers\.0\.blocks\.0\.attention\..*relative_position_bias_table",)),
    Layout("GSPN diffusion model", None, (r".*x_conv_down\.weight",)),
)
