"""Model families, one file each. Importing this package registers their variants."""

from . import ancestors, axial, cswin, davit, disc, gna, gspn, gspn2, halonet, hilo, maxvit, nat, power, swin, twins
from .registry import list_models, load_model, register, unknown

__all__ = [
    "ancestors",
    "axial",
    "cswin",
    "davit",
    "disc",
    "gna",
    "gspn",
    "gspn2",
    "halonet",
    "hilo",
    "list_models",
    "load_model",
    "maxvit",
    "nat",
    "power",
    "register",
    "swin",
    "twins",
    "unknown",
]
