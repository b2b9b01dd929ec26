"""The layout of our GSPN-2, in the files that `workbench.models.checkpoint.save` writes; there is no released one."""

from typing import Any

from .layout import Layout, Tensors, depths, dims, known, size


def infer_gspn2(tensors: Tensors) -> dict[str, Any]:
    """The settings of a GSPN-2 file."""
    first = "layers.0.blocks.0.op."
    c_proxy, gates = size(tensors, f"{first}proxy_down.weight", 0), size(tensors, f"{first}w_conv_up.weight", 0)
    return known(
        dims=dims(tensors, "norm.weight"),
        depths=depths(tensors, "norm.weight"),
        d_state=size(tensors, f"{first}state_down.weight", 0),
        c_proxy=c_proxy,
        # Of one channel the shape does not tell; the file's note does.
        shared_gates=gates == 12 if gates and c_proxy != 1 else None,
        num_classes=size(tensors, "classifier.head.weight", 0),
    )


LAYOUTS = (Layout("workbench GSPN-2", "gspn2", (r"layers\.0\.blocks\.0\.op\.proxy_down\.weight",), infer=infer_gspn2),)
