"""The layouts of Swin's weights: official and timm; those of torchvision and transformers are recognised only."""

import math
import re
from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size

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


TABLE = r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"

LAYOUTS = (
    Layout("timm Swin", "swin", (TABLE, r"head\.fc\.weight"), translate_timm_swin, infer_swin),
    Layout("official Swin", "swin", (TABLE,), translate_swin, infer_swin),
    Layout("torchvision Swin", None, (r"features\.1\.0\.attn\.relative_position_bias_table",)),
    Layout("transformers Swin", None, (r".*encoder\.layers\.0\.blocks\.0\.attention\..*relative_position_bias_table",)),
)
