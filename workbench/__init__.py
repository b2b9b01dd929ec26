"""See which pixels a vision model lets talk to which, how strongly, and what it costs."""

from typing import Any

import kernels

if getattr(kernels, "DISTRIBUTION", None) != "gspn-workbench":
    raise ImportError(
        f"`kernels` at {getattr(kernels, '__file__', 'an unknown place')} is not the package that comes with "
        "gspn-workbench: uninstall it, or install gspn-workbench into an environment of its own."
    )

from workbench.analysis.affinity import AffinitySpec, affinity
from workbench.analysis.attribution import AttributionSpec, attribute
from workbench.analysis.directions import DirectionsSpec, directions
from workbench.analysis.latency import measure
from workbench.analysis.latency_sweep import latency_sweep
from workbench.analysis.patterns import PatternSpec, list_patterns, patterns
from workbench.analysis.receptive_field import ReceptiveFieldSpec, receptive_field
from workbench.analysis.stability import stability
from workbench.analysis.stability_spec import StabilitySpec
from workbench.images import Image, list_images, load_image
from workbench.models import list_models, load_model
from workbench.operators import SpatialOperator, operator

__all__ = [
    "AffinitySpec",
    "AttributionSpec",
    "DirectionsSpec",
    "Image",
    "PatternSpec",
    "ReceptiveFieldSpec",
    "SpatialOperator",
    "StabilitySpec",
    "affinity",
    "attribute",
    "directions",
    "latency_sweep",
    "list_images",
    "list_models",
    "list_patterns",
    "load_image",
    "load_model",
    "measure",
    "operator",
    "patterns",
    "receptive_field",
    "show",
    "stability",
]


def show(model: Any = "gspn_nano", image: Any = None, page: str = "affinity", **state: Any) -> Any:
    """Open a page on a model: displayed in a notebook cell, or served with `.servable()`.

    Args:
        model: a name from `list_models()`, or a model from `load_model`.
        image: a name from `list_images()`, an `Image`, a path, bytes or an (H, W, 3) array; None for the page's own.
        page: "affinity" | "receptive_field" | "attribution" | "directions" | "stability" | "latency"; or one that needs
            no model: "patterns" | "kernels".
        **state: parameters of the page, such as layer, other, row, col, side, or pattern, rows, cols, blocks.

    Returns:
        The page's Panel Viewer.

    Raises:
        ValueError: the page, model or image is unknown; lists near matches.
    """
    from workbench.views.show import show as open_page

    return open_page(model, image, page, **state)
