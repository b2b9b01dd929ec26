"""The layout of NAT's and DiNAT's released weights, which have the same names and shapes."""

import itertools
import re
from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size


def translate_nat(tensors: Tensors) -> Tensors:
    """Stages are called levels there."""
    return {re.sub(r"^levels\.", "layers.", name): tensor for name, tensor in tensors.items()}


def infer_nat(tensors: Tensors) -> dict[str, Any]:
    """The settings of a NAT or DiNAT file; none of its tensors tells the dilations."""
    first = "layers.0.blocks.0."
    offsets = size(tensors, f"{first}attn.rpb", 1)
    inner, channels = size(tensors, f"{first}mlp.fc1.weight", 0), size(tensors, f"{first}mlp.fc1.weight", 1)
    halvings = next(n for n in itertools.count() if f"patch_embed.proj.{n}.weight" not in tensors)
    return known(
        dims=dims(tensors, "norm1.weight"),
        depths=depths(tensors, "norm1.weight"),
        heads=dims(tensors, "attn.rpb"),
        kernel=(offsets + 1) // 2 if offsets else None,
        ratio=inner // channels if inner and channels else None,
        patch=2**halvings if halvings else None,
        num_classes=size(tensors, "head.weight", 0),
    )


TABLE = r"(levels|layers)\.0\.blocks\.0\.attn\.rpb"

LAYOUTS = (Layout("official NAT or DiNAT", "nat", (TABLE,), translate_nat, infer_nat),)
