"""The layouts of MaxViT's weights: timm's conversion of the official ones, torchvision, and ours.

timm's own training ("rw") is recognised only: its queries, keys and values are interleaved head by head, so that its
tensors have the shapes of the others and another meaning.
"""

import math
import re
from typing import Any

import torch

from .layout import Layout, Tensors, depths, dims, known, size

TABLE = "relative_position_bias_table"

#: torchvision's names and ours; applied in this order.
TORCHVISION_RENAMES = (
    (r"^stem\.0\.0\.", "stem.conv1."),
    (r"^stem\.0\.1\.", "stem.norm1."),
    (r"^stem\.1\.0\.", "stem.conv2."),
    (r"^blocks\.(\d+)\.layers\.(\d+)\.layers\.", r"layers.\1.blocks.\2."),
    (r"\.MBconv\.layers\.", ".conv."),
    (r"\.MBconv\.proj\.1\.", ".conv.shortcut.expand."),
    (r"\.conv_a\.0\.", ".conv1_1x1."),
    (r"\.conv_a\.1\.", ".norm1."),
    (r"\.conv_b\.0\.", ".conv2_kxk."),
    (r"\.conv_b\.1\.", ".norm2."),
    (r"\.squeeze_excitation\.", ".se."),
    (r"\.conv_c\.", ".conv3_1x1."),
    (r"\.window_attention\.", ".attn_block."),
    (r"\.grid_attention\.", ".attn_grid."),
    (r"\.attn_layer\.0\.", ".norm1."),
    (r"\.attn_layer\.1\.to_qkv\.", ".attn.qkv."),
    (r"\.attn_layer\.1\.merge\.", ".attn.proj."),
    (r"\.attn_layer\.1\.", ".attn."),
    (r"\.mlp_layer\.0\.", ".norm2."),
    (r"\.mlp_layer\.1\.", ".mlp.fc1."),
    (r"\.mlp_layer\.3\.", ".mlp.fc2."),
    (r"^classifier\.2\.", "head.norm."),
    (r"^classifier\.3\.", "head.pre_logits."),
    (r"^classifier\.5\.", "head.fc."),
)

#: timm's names and ours.
TIMM_RENAMES = (
    (r"^stages\.", "layers."),
    (r"\.rel_pos\.", "."),
    (r"^head\.pre_logits\.fc\.", "head.pre_logits."),
)


def renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        name = re.sub(old, new, name)
    return name


def translate_timm_maxvit(tensors: Tensors) -> Tensors:
    """timm's names to ours."""
    return {renamed(name, TIMM_RENAMES): tensor for name, tensor in tensors.items()}


def translate_torchvision_maxvit(tensors: Tensors) -> Tensors:
    """torchvision's names to ours, its bias tables by key minus query, and no index buffers."""
    translated = {}
    for name, tensor in tensors.items():
        if name.endswith("relative_position_index"):
            continue
        translated[renamed(name, TORCHVISION_RENAMES)] = by_key(tensor) if name.endswith(TABLE) else tensor
    return translated


def by_key(table: torch.Tensor) -> torch.Tensor:
    """A table ((2 w - 1) ** 2, heads) by query minus key as one (heads, 2 w - 1, 2 w - 1) by key minus query."""
    side = math.isqrt(table.shape[0])
    if table.ndim != 2 or side**2 != table.shape[0]:
        return table  # it does not fit, and loading says so
    return table.t().unflatten(1, (side, side)).flip(1, 2)


def infer_maxvit(tensors: Tensors) -> dict[str, Any]:
    """The settings of a MaxViT file, under our names; the families differ in the bias of the first convolution."""
    table = f"attn_block.attn.{TABLE}"
    offsets = size(tensors, f"layers.0.blocks.0.{table}", 1)
    return known(
        dims=dims(tensors, "attn_block.norm1.weight"),
        depths=depths(tensors, "attn_block.norm1.weight"),
        heads=dims(tensors, table),
        window=(offsets + 1) // 2 if offsets else None,
        num_classes=size(tensors, "head.fc.weight", 0),
        weights_family="tf" if "stem.conv1.bias" in tensors else "torchvision",
    )


def has_flat_tables(tensors: Tensors) -> bool:
    """Whether the bias tables are ((2 w - 1) ** 2, heads)."""
    return any(name.endswith(TABLE) and tensor.ndim == 2 for name, tensor in tensors.items())


TIMM = (rf"stages\.0\.blocks\.0\.attn_grid\.attn\.rel_pos\.{TABLE}",)
RW = "timm MaxViT rw (queries, keys and values interleaved by heads)"

LAYOUTS = (
    Layout(RW, None, TIMM, fits=has_flat_tables),
    Layout("timm MaxViT (tf)", "maxvit", TIMM, translate_timm_maxvit, infer_maxvit),
    Layout(
        "torchvision MaxViT",
        "maxvit",
        (rf"blocks\.0\.layers\.0\.layers\.grid_attention\.attn_layer\.1\.{TABLE}",),
        translate_torchvision_maxvit,
        infer_maxvit,
    ),
    Layout("workbench MaxViT", "maxvit", (rf"layers\.0\.blocks\.0\.attn_grid\.attn\.{TABLE}",), infer=infer_maxvit),
)
