"""The layouts of our SPN, SCNN and CSPN classifiers, in the files that `workbench.models.checkpoint.save` writes."""

from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size

OP = "layers.0.blocks.0.op."


def infer_ancestor(tensors: Tensors) -> dict[str, Any]:
    """The settings that the shapes of every family tell."""
    return known(
        dims=dims(tensors, "norm.weight"),
        depths=depths(tensors, "norm.weight"),
        num_classes=size(tensors, "classifier.head.weight", 0),
    )


def infer_predicted(tensors: Tensors) -> dict[str, Any]:
    """The same, and the widths of SPN and CSPN."""
    inner, channels = size(tensors, f"{OP}in_proj.weight", 0), size(tensors, f"{OP}in_proj.weight", 1)
    return infer_ancestor(tensors) | known(
        d_state=size(tensors, f"{OP}state_down.weight", 0), ratio=inner / channels if inner and channels else None
    )


def infer_scnn(tensors: Tensors) -> dict[str, Any]:
    """The same, and SCNN's width and kernel."""
    name = f"{OP}passes.top_bottom.weight"
    return infer_ancestor(tensors) | known(inner=size(tensors, name, 0), kernel=size(tensors, name, 2))


def _mark(name: str) -> tuple[str, ...]:
    return (rf"layers\.0\.blocks\.0\.op\.{name}\.weight",)


LAYOUTS = (
    Layout("workbench SPN", "spn", _mark("signed_conv_up"), infer=infer_predicted),
    Layout("workbench SCNN", "scnn", _mark(r"passes\.top_bottom"), infer=infer_scnn),
    Layout("workbench CSPN", "cspn", _mark("affinity_conv_up"), infer=infer_predicted),
)
