"""The layout of CSWin's released weights."""

import re
from typing import Any

import torch

from .layout import Layout, Tensors, depths, dims, known, size

#: Official names, with stages counted from 1 -> ours; the stage is the first group.
CSWIN_RENAMES = (
    (re.compile(r"^stage(\d+)\.(\d+)\.(qkv|proj)\."), "layers.{}.blocks.{}.attn.{}."),
    (re.compile(r"^stage(\d+)\.(\d+)\."), "layers.{}.blocks.{}."),
    (re.compile(r"^merge(\d+)\."), "layers.{}.downsample."),
)
CSWIN_EMBED = (("stage1_conv_embed.0.", "patch_embed.proj."), ("stage1_conv_embed.2.", "patch_embed.norm."))
BRANCH = re.compile(r"^(layers\.\d+\.blocks\.\d+)\.attns\.[01]\.get_v\.(weight|bias)$")


def translate_cswin(tensors: Tensors) -> Tensors:
    """Old names to new ones, and the LePE of a block's branches, vertical stripes first, as one convolution."""
    renamed = {_rename(name): tensor for name, tensor in tensors.items()}
    branches: dict[str, list[str]] = {}
    for name in sorted(renamed):
        if found := BRANCH.search(name):
            branches.setdefault(f"{found[1]}.attn.lepe.{found[2]}", []).append(name)
    for name, parts in branches.items():
        shapes = {renamed[part].shape for part in parts}
        # Others are left as they are, and refused where the model's names and shapes are compared with the file's.
        if len(shapes) == 1 and len(shapes.pop()) > 0:
            renamed[name] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _rename(name: str) -> str:
    for old, new in CSWIN_EMBED:
        name = name.replace(old, new)
    for pattern, form in CSWIN_RENAMES:
        if found := pattern.search(name):
            stage, *rest = found.groups()
            return form.format(int(stage) - 1, *rest) + name[found.end() :]
    return name


def infer_cswin(tensors: Tensors) -> dict[str, Any]:
    """The settings of a CSWin file; none of its tensors tells the heads or the stripes."""
    kernel = size(tensors, "patch_embed.proj.weight", 2)
    return known(
        dims=dims(tensors, "norm1.weight"),
        depths=depths(tensors, "norm1.weight"),
        patch=(kernel + 1) // 2 if kernel else None,
        num_classes=size(tensors, "head.weight", 0),
    )


LEPE = r"(stage1\.0\.attns\.0\.get_v|layers\.0\.blocks\.0\.attn\.lepe)\.weight"

LAYOUTS = (Layout("official CSWin", "cswin", (LEPE,), translate_cswin, infer_cswin),)
