"""Model families, one file each. Importing this package registers their variants."""

from . import gspn, swin
from .registry import list_models, load_model, register, unknown

__all__ = ["gspn", "list_models", "load_model", "register", "swin", "unknown"]
