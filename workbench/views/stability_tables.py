"""The Stability page's verdicts and numbers as small tables and sentences, which screen readers read."""

import html

import numpy as np
import xarray as xr

from workbench.plots.stability_words import CONDITIONS, explanation, place, verdicts

from .tables import html_table

_NOTE = "<div style='font-size: 11px; line-height: 1.35; opacity: 0.8'>{}</div>"


def verdict_table(result: xr.Dataset) -> str:
    """Each condition with a tick or a cross and the word, and the first pixel against it; what each means below."""
    rows, holds = [], verdicts(result)
    for condition, (name, _) in CONDITIONS.items():
        rows.append([name, "✓ yes" if holds[condition] else "✗ no", place(result, condition)])
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in CONDITIONS.values())
    note = f"{meanings}. A line's pixels are counted across it, from 0."
    table = html_table(["condition", "holds", "first against it"], rows, "verdicts")
    return table + _NOTE.format(html.escape(note))


def numbers_table(result: xr.Dataset) -> str:
    """The main numbers of the lines and of all steps together."""
    steps = int(result["steps"][-1])
    rate = float(result["growth_rate"])
    rows = [
        ["largest row-sum error of a line", f"{result['row_sum_error'].values.max():.3g}"],
        ["smallest gate", f"{result['min_gate'].values.min():.3g}"],
        ["largest sum of |gates|", f"{result['abs_sum'].values.max():.4g}"],
        ["largest max |h|", f"{np.nanmax(result['max_hidden'].values):.4g}"],
        ["values not finite", f"{int(result['nonfinite'].sum())} of {result['propagated'].size}"],
        ["growth of ‖W‖∞ a line", "–" if rate != rate else f"{100 * np.expm1(rate):.3g} %"],
        [f"‖W‖∞ after {steps} steps", f"{result['norm_inf'].values[-1]:.4g}"],
        [f"Dobrushin after {steps} steps", f"{result['dobrushin'].values[-1]:.3g}"],
        [f"effective width after {steps} steps", f"{result['effective_width'].values[-1]:.3g}"],
    ]
    return html_table(["number", "value"], rows, "numbers of the propagation")


def status_line(result: xr.Dataset) -> str:
    """The verdicts and what happened, in words: announced to screen readers when it changes."""
    words = ", ".join(
        name if holds else f"not {name}"
        for holds, (name, _) in zip(verdicts(result).values(), CONDITIONS.values(), strict=True)
    )
    overflow = result.attrs["overflow_line"] >= 0
    head = "Overflow" if overflow else words[0].upper() + words[1:]
    tail = f" The gates are {words}." if overflow else ""
    return (
        f"<div role='status' aria-live='polite' style='font-size: 13px'><b>{html.escape(head)}.</b> "
        f"{html.escape(explanation(result) + tail)}</div>"
    )


def scan_table(result: xr.Dataset) -> str:
    """Median and spread of the scan on each backend, beside the least its bytes and operations allow here."""
    rows = []
    for backend in result["backend"].values:
        b = result.sel(backend=backend)
        low, high = milliseconds(b["p20"]), milliseconds(b["p80"])
        rows.append([
            f"scan, {backend} backend", milliseconds(b["median"]), f"{low} to {high}", str(int(b["n"])),
            f"{float(b['bytes']) / 1e6:.3g} MB", f"{float(b['flops']) / 1e6:.3g} M", milliseconds(b["floor"]),
        ])  # fmt: skip
    a = result.attrs
    head = ["forward, batch 1", "median", "p20 to p80", "n", "least bytes", "operations", "floor"]
    note = (
        f"{a['channels']} channels under the same gates, {a['dtype']}, {a['device']}, {a['method']}. Floor: the larger "
        f"of least bytes over {float(result['bandwidth']) / 1e9:.1f} GB/s (measured copy) and operations over "
        f"{float(result['matmul']) / 1e9:.0f} GFLOP/s (measured fp32 matrix product)."
    )
    return html_table(head, rows, "latency of the scan") + f"<small role='status'>{html.escape(note)}</small>"


def milliseconds(seconds: xr.DataArray) -> str:
    return f"{1e3 * float(seconds):.3g} ms"
