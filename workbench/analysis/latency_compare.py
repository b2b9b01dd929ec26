"""Two latency sweeps side by side: a ratio for each name and size, and whether they may be compared at all."""

from typing import Any

import numpy as np
import xarray as xr

#: What has to be the same, else a ratio compares more than the code: attributes of a sweep, and of its Spec.
SAME = ("device", "processor", "threads", "method")
SAME_SPEC = ("batch", "channels", "dtype", "backward")


def compare(a: xr.Dataset, b: xr.Dataset) -> xr.Dataset:
    """How long b takes in units of a, for each name and size that both have a time of.

    Args:
        a, b: from `latency_sweep` or `read_latency`.

    Returns:
        Over (what, size), those of both: a and b, median seconds; ratio, b / a, NaN where one has no time; noisy,
        whether one of the two is noisy. attrs: comparable, whether both are of one device, method and kind of input;
        note, the sentence that says what differs, or "".

    Raises:
        ValueError: they have no name and size in common.
    """
    what = [name for name in a["what"].values if name in b["what"].values]
    size = np.intersect1d(a["size"].values, b["size"].values)
    if not what or not len(size):
        raise ValueError("The two have no name and size in common, so there is nothing to compare.")
    first, second = (sweep.sel(what=what, size=size) for sweep in (a, b))
    differing = differences(a, b)
    note = ""
    if differing:
        listed = "; ".join(f"{name} {one} and {other}" for name, (one, other) in differing.items())
        note = f"These are not measurements of one thing, and their ratio does not tell which code is faster: {listed}."
    return xr.Dataset(
        {
            "a": first["median"],
            "b": second["median"],
            "ratio": second["median"] / first["median"],
            "noisy": first["noisy"] | second["noisy"],
        },
        attrs={"comparable": not differing, "note": note},
    )


def differences(a: xr.Dataset, b: xr.Dataset) -> dict[str, tuple[Any, Any]]:
    """What differs between two sweeps of what has to be the same, by name, with both values."""
    pairs = {name: (a.attrs[name], b.attrs[name]) for name in SAME}
    pairs |= {name: (a.attrs["spec"][name], b.attrs["spec"][name]) for name in SAME_SPEC}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
