"""Model families, one file each. Importing this package registers their variants."""

from . import axial, cswin, davit, disc, gna, gspn, halonet, hilo, maxvit, nat, power, swin, twins
from .registry import list_models, load_model, register, unknown

__all__ = [
    "axial",
    "cswin",
    "davit",
    "disc",
    "gna",
    "gspn",
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
