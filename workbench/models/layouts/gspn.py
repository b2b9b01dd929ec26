"""The layout of GSPN's released weights."""

import re
from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size

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


SCAN = r"layers\.0\.blocks\.0\.(op|self_attention)\.x_conv_down\.weight"

LAYOUTS = (
    Layout("GSPN release", "gspn", (SCAN,), translate_gspn, infer_gspn, {"merge": "released"}),
    Layout("GSPN diffusion model", None, (r".*x_conv_down\.weight",)),
)
