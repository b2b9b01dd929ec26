"""The numbers of the Directions page as a table and sentences, which screen readers read."""

import html

import numpy as np
import xarray as xr

from workbench.plots.directions import words
from workbench.plots.directions_gates import NAMES

from .directions_figures import frame_words
from .tables import html_table


def weights_table(result: xr.Dataset) -> str:
    """A row for each direction: its learned weight, what it carries, how far it gets, and what its gates do."""
    magnitude = np.abs(np.nan_to_num(result["picture"].values))
    total = magnitude.sum() or 1.0
    rows = []
    for k, name in enumerate(result["direction"].values):
        one, reads = result.isel(direction=k), result["reads"].values[k]
        reached, flow = int((one["cone"]).sum()), one["flow"].values[reads]
        kinds = np.bincount(one["dominant"].values[reads], minlength=3)
        mostly = f"{NAMES[kinds.argmax()]} ({100 * kinds.max() / kinds.sum():.0f} %)" if reads.any() else "none read"
        rows.append([
            words(name), f"{float(one['weight']):.4g}", f"{100 * magnitude[k].sum() / total:.1f} %",
            str(int(one["step_of"].max())), f"{reached} of {one['cone'].size}",
            f"{np.abs(flow).mean():.3g}" if reads.any() else "0", mostly,
        ])  # fmt: skip
    head = ["direction", "weight m", "magnitude", "last step", "cells in the cone", "mean |flow|", "largest gate"]
    return html_table(head, rows, "learned weights and gates of the directions")


def status_line(result: xr.Dataset, frame: int) -> str:
    """What the picture shows, in words: announced to screen readers when it changes, but not while it plays."""
    a = result.attrs
    row, col = a["position"]
    verb = "what reaches the query at" if a["spec"]["towards"] else "what leaves the source at"
    reached = int((result["step_of"] >= 0).any("direction").sum())
    heard = int(result["cone"].any("direction").sum())
    bad = int((~np.isfinite(result["picture"].values)).sum())
    cells = a["grid"][0] * a["grid"][1]
    text = (
        f"<b>{html.escape(a['model'])}</b> {html.escape(a['layer'])}: {verb} (row {row}, column {col}); the fronts "
        f"take {result.sizes['step'] - 1} steps over {reached} of {cells} cells, {heard} of them inside the cones. "
        f"Now {frame_words(result, frame)}." + (f" {bad} values are not finite." if bad else "")
    )
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{text}</div>"
