"""The families of our own architecture, in the files that `workbench.models.checkpoint.save` writes.

Each is told by the names of its attention's tensors. What no shape tells is in the file's note.
"""

from collections.abc import Callable
from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size

ATTENTION = "layers.0.blocks.0.attn."


def infer_own(tensors: Tensors) -> dict[str, Any]:
    """The settings that the shapes of every family tell."""
    return known(
        dims=dims(tensors, "norm1.weight"),
        depths=depths(tensors, "norm1.weight"),
        patch=size(tensors, "patch_embed.proj.weight", 2),
        num_classes=size(tensors, "head.weight", 0),
    )


def with_table(table: str, setting: str = "", of: Callable[[int], int] = int) -> Callable[[Tensors], dict[str, Any]]:
    """The same, and what the bias table (heads, 2 k - 1, 2 k - 1) tells: the heads, and `setting`, which is of(k)."""

    def infer(tensors: Tensors) -> dict[str, Any]:
        offsets = size(tensors, f"{ATTENTION}{table}", 1)
        found = {setting: of((offsets + 1) // 2)} if setting and offsets else {}
        return infer_own(tensors) | known(heads=dims(tensors, f"attn.{table}")) | found

    return infer


def infer_twins(tensors: Tensors) -> dict[str, Any]:
    """The same, and the sides of the cells, as far as each stage has a block that reduces."""
    stages = range(len(depths(tensors, "norm1.weight") or ()))
    sides = [size(tensors, f"layers.{i}.blocks.1.attn.sr.weight", 2) for i in stages]
    return infer_own(tensors) | (known(sr_ratios=tuple(sides)) if sides and None not in sides else {})


def is_plain(tensors: Tensors) -> bool:
    """Whether attention is two linear maps and nothing else, and no convolution encodes positions."""
    parts = {name.removeprefix(ATTENTION) for name in tensors if name.startswith(ATTENTION)}
    plain = {f"{part}.{kind}" for part in ("qkv", "proj") for kind in ("weight", "bias")}
    return parts == plain and not any(name.startswith("positions.") for name in tensors)


def _mark(name: str, block: str = "0") -> tuple[str, ...]:
    return (rf"layers\.0\.blocks\.{block}\.attn\.{name}",)


LAYOUTS = (
    Layout("workbench HaloNet", "halonet", _mark("halo_bias_table"), infer=with_table("halo_bias_table")),
    Layout(
        "workbench GNA",
        "gna",
        _mark("neighborhood_bias_table"),
        infer=with_table("neighborhood_bias_table", "kernel"),
    ),
    Layout(
        "workbench disc attention",
        "disc",
        _mark("disc_bias_table"),
        infer=with_table("disc_bias_table", "radius", lambda kernel: (kernel + 1) // 2),
    ),
    Layout("workbench Twins", "twins", _mark(r"sr\.weight", "1"), infer=infer_twins),
    Layout("workbench HiLo", "hilo", _mark(r"high_qkv\.weight"), infer=infer_own),
    Layout(
        "workbench axial attention", "axial", (*_mark(r"qkv\.weight"), r"positions\.0\.proj\.weight"), infer=infer_own
    ),
    Layout("workbench PowerAttention", "power", _mark(r"qkv\.weight"), infer=infer_own, fits=is_plain),
)
