"""The layouts of DaViT's weights: official and timm."""

import itertools
import re
from typing import Any

from .layout import Layout, Tensors, known, size

#: timm's names and the official ones; a stage's patch embedding is its `downsample`, that of the first the `stem`.
TIMM_RENAMES = (
    (r"^stem\.conv\.", "patch_embeds.0.proj."),
    (r"^stem\.norm\.", "patch_embeds.0.norm."),
    (r"^stages\.(\d+)\.downsample\.conv\.", r"patch_embeds.\1.proj."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"patch_embeds.\1.norm."),
    (r"^stages\.(\d+)\.blocks\.", r"main_blocks.\1."),
    (r"\.cpe1\.", ".cpe.0."),
    (r"\.cpe2\.", ".cpe.1."),
    (r"^head\.norm\.", "norms."),
    (r"^head\.fc\.", "head."),
)


def translate_timm_davit(tensors: Tensors) -> Tensors:
    """timm's names to the official ones."""
    translated = {}
    for name, tensor in tensors.items():
        for old, new in TIMM_RENAMES:
            name = re.sub(old, new, name)
        translated[name] = tensor
    return translated


def infer_davit(tensors: Tensors) -> dict[str, Any]:
    """The settings of a DaViT file; its shapes tell neither the heads nor the window."""
    norm = "main_blocks.{}.{}.0.norm1.weight"
    dims = tuple(itertools.takewhile(bool, (size(tensors, norm.format(i, 0), 0) for i in itertools.count())))
    depths = tuple(next(j for j in itertools.count() if norm.format(i, j) not in tensors) for i in range(len(dims)))
    kernel = size(tensors, "patch_embeds.0.proj.weight", 2)
    return known(
        dims=dims or None,
        depths=depths or None,
        patch=(kernel + 1) // 2 if kernel else None,
        num_classes=size(tensors, "head.weight", 0),
    )


LAYOUTS = (
    Layout("official DaViT", "davit", (r"main_blocks\.0\.0\.0\.cpe\.0\.proj\.weight",), infer=infer_davit),
    Layout("timm DaViT", "davit", (r"stages\.0\.blocks\.0\.0\.cpe1\.proj\.weight",), translate_timm_davit, infer_davit),
)
