"""The layouts that weights come in: how to tell them apart, their names in our models, and what their shapes say.

A layout is recognised by the names of its tensors, where names do not tell also by shapes. Some are recognised only so
that an error can name them. Each family's layouts are in a file of its own, which lists them as LAYOUTS, the most
particular first.
"""

from . import ancestors, cswin, davit, gspn, gspn2, maxvit, nat, own, swin
from .layout import SHAPES, Layout, Tensors

__all__ = ["LAYOUTS", "SHAPES", "Layout", "Tensors", "find_layout"]

#: The first that matches counts.
LAYOUTS = (
    *gspn.LAYOUTS,
    *gspn2.LAYOUTS,
    *ancestors.LAYOUTS,
    *swin.LAYOUTS,
    *davit.LAYOUTS,
    *maxvit.LAYOUTS,
    *nat.LAYOUTS,
    *cswin.LAYOUTS,
    *own.LAYOUTS,
)


def find_layout(tensors: Tensors) -> Layout | None:
    """The first layout that a file's tensors match."""
    return next((layout for layout in LAYOUTS if layout.matches(tensors)), None)
