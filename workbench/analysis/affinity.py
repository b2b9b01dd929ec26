"""Who reads whom: one row or column of a mixing layer's operator, merged and for each group, with its numbers.

Channel attention has no rows and columns over positions; there it is which channels each channel reads.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from workbench.operators import REDUCTIONS, ChannelOperator, SpatialOperator

from .spec import record

#: Radii, in cells, within which the share of the mass is stated.
RADII = (1, 3, 7)

#: What a side shows, as the figures print it.
SIDES = {"reads": "what it reads (row of A)", "heard": "where it is heard (column of A)"}

#: The same for channel attention.
OVER_CHANNELS = "what each channel reads (row of the d x d matrix)"


@dataclass(frozen=True)
class AffinitySpec:
    """position: the query (row, col); side: "reads" for its row of A, "heard" for its column; see `REDUCTIONS`."""

    position: tuple[int, int]
    side: Literal["reads", "heard"] = "reads"
    channel: int | None = None
    reduce: str = "mean_abs"


@dataclass(frozen=True)
class ChannelSpec:
    """reduce: how the matrices of all heads are combined, see `REDUCTIONS`."""

    reduce: str = "mean"


def affinity(op: SpatialOperator, spec: AffinitySpec) -> xr.Dataset:
    """One row or column of A and its groups' parts, with the shares and widths of their mass.

    The mass of a cell is |A|. Distances are in cells from the query: the share within radius r takes the square of
    2 r + 1 cells a side; the effective width is the root mean square distance of the mass from its own centre.

    Args:
        op: a SpatialOperator.
        spec: which row or column, and how channels are combined.

    Returns:
        merged (row, col); groups (group, row, col); and for "merged" and every group: share (of, radius), total (of),
        mass (of), effective_width (of), cells (of), nonfinite (of). total is the sum of the entries, for a row its row
        sum. attrs hold the Spec.

    Raises:
        ValueError: the position, channel, side or reduction does not exist, or the layer is channel attention, which
            has no matrix over positions (see `channel_affinity`).
    """
    if spec.side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}; got {spec.side!r}.")
    pictures = op.rows if spec.side == "reads" else op.columns
    merged, groups = pictures(spec.position, spec.channel, spec.reduce)
    maps = np.concatenate([merged.values[None], groups.values])
    of = ["merged", *op.groups]
    numbers = _numbers(maps, spec.position)
    attrs = record("affinity", spec, op.info)
    attrs |= {"aggregation": aggregation(spec, op), "side": SIDES[spec.side], "position": tuple(spec.position)}
    return xr.Dataset(
        {"merged": (("row", "col"), maps[0]), "groups": (("group", "row", "col"), maps[1:])}
        | {name: (("of",), values) for name, values in numbers.items() if name != "share"}
        | {"share": (("of", "radius"), numbers["share"])},
        coords={"of": of, "group": list(op.groups), "radius": list(RADII)},
        attrs=attrs,
    )


def channel_affinity(op: ChannelOperator, spec: ChannelSpec) -> xr.Dataset:
    """The d x d matrices of a channel-attention layer: which channels of a head each channel reads.

    Args:
        op: the operator of a channel-attention layer.
        spec: how heads are combined.

    Returns:
        merged (channel_out, channel_in); groups (group, channel_out, channel_in); and for "merged" and every head:
        own (of), the mean share that a channel reads of its own number; effective_channels (of), the mean over rows of
        exp(-sum of p log p), from 1 to d, with the row scaled to sum to 1; nonfinite (of). attrs hold the Spec.

    Raises:
        ValueError: the reduction does not exist.
    """
    maps = np.stack([m.values for m in (op.channel_matrix(reduce=spec.reduce), *map(op.channel_matrix, op.groups))])
    finite = np.isfinite(maps)
    mass = np.where(finite, maps, 0.0).astype(np.float64)
    rows = mass / np.maximum(mass.sum(2, keepdims=True), np.finfo(np.float64).tiny)
    entropy = -(rows * np.log(np.where(rows > 0, rows, 1.0))).sum(2)
    attrs = record("channel affinity", spec, op.info)
    attrs |= {"aggregation": _over_heads(spec.reduce), "side": OVER_CHANNELS}
    return xr.Dataset(
        {
            "merged": (("channel_out", "channel_in"), maps[0]),
            "groups": (("group", "channel_out", "channel_in"), maps[1:]),
            "own": (("of",), np.diagonal(mass, axis1=1, axis2=2).mean(1)),
            "effective_channels": (("of",), np.exp(entropy).mean(1)),
            "nonfinite": (("of",), (~finite).sum((1, 2))),
        },
        coords={"of": ["merged", *op.groups], "group": list(op.groups)},
        attrs=attrs,
    )


def aggregation(spec: AffinitySpec, op: SpatialOperator) -> str:
    """How channels were combined, in words."""
    if op.info["kind"] == "convolution":  # its channels mix
        pairs = REDUCTIONS[spec.reduce][0].replace("channels", "pairs of channels")
        return pairs if spec.channel is None else f"channel {spec.channel} to itself"
    if spec.channel is not None:
        return f"channel {spec.channel}"
    return _over_heads(spec.reduce) if op.info["kind"] == "attention" else REDUCTIONS[spec.reduce][0]


def _over_heads(reduce: str) -> str:
    return REDUCTIONS[reduce][0].replace("channels", "heads")


def _numbers(maps: np.ndarray, position: tuple[int, int]) -> dict[str, np.ndarray]:
    """The numbers of each map (of, row, col); entries that are not finite are counted and otherwise left out."""
    finite = np.isfinite(maps)
    clean = np.where(finite, maps, 0.0).astype(np.float64)
    mass = np.abs(clean)
    total = mass.sum((1, 2))
    weights = mass / np.where(total > 0, total, 1.0)[:, None, None]
    rows, cols = np.arange(maps.shape[1]), np.arange(maps.shape[2])
    distance = np.maximum(np.abs(rows - position[0])[:, None], np.abs(cols - position[1])[None, :])
    share = np.stack([(weights * (distance <= radius)).sum((1, 2)) for radius in RADII], axis=1)
    spread = _variance(weights.sum(2), rows) + _variance(weights.sum(1), cols)
    return {
        "share": np.where(total[:, None] > 0, share, np.nan),
        "total": clean.sum((1, 2)),
        "mass": total,
        "effective_width": np.where(total > 0, np.sqrt(spread), np.nan),
        "cells": (mass > 0).sum((1, 2)),
        "nonfinite": (~finite).sum((1, 2)),
    }


def _variance(weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The variance of places under weights (of, place) that sum to 1."""
    mean = weights @ places
    return (weights * (places[None, :] - mean[:, None]) ** 2).sum(1)
