"""What every analysis result carries: its whole Spec, where it was computed, and a hash that names it."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("gspn-workbench", "torch", "triton", "numba", "numpy")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def record(analysis: str, spec: Any, info: dict[str, Any]) -> dict[str, Any]:
    """The attrs of a result: the analysis, its Spec, what it ran on, versions, and the hash of all but the versions."""
    if not is_dataclass(spec) or isinstance(spec, type):
        raise TypeError(f"spec must be a Spec dataclass; got {type(spec).__name__}.")
    attrs = {"analysis": analysis, "spec": asdict(spec), **info}
    return attrs | {"hash": spec_hash(attrs), "versions": versions()}


def spec_hash(attrs: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits that name a result: equal for equal Specs on equal inputs."""
    text = json.dumps(attrs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
