"""The page's numbers as small HTML tables and sentences, which screen readers read."""

import html
from collections.abc import Iterable

import xarray as xr

from workbench.analysis.affinity import RADII
from workbench.analysis.latency import PARTS

WARMING = (
    "<p role='status' style='font-size: 12px; margin: 0'>The CPU kernels are being compiled; until they are, the "
    "slower reference backend draws the same pictures.</p>"
)
NOT_MEASURED = "<p>Not measured yet: nothing is timed before you ask.</p>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], label: str) -> str:
    """A table whose first column heads its rows."""
    top = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        body += f"<tr><th scope='row'>{html.escape(first)}</th>{cells}</tr>"
    return (
        f"<style>{_STYLE}</style><table class='numbers' aria-label='{html.escape(label)}'>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


_STYLE = """
table.numbers { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; width: 100%; }
table.numbers th, table.numbers td { padding: 2px 8px 2px 0; text-align: right; font-weight: normal; }
table.numbers th:first-child { text-align: left; }
table.numbers thead th { border-bottom: 1px solid currentColor; font-weight: 600; }
"""


def numbers_table(results: list[xr.Dataset]) -> str:
    """The numbers of each merged row or column."""
    merged = [r.sel(of="merged") for r in results]
    rows = [
        [f"mass within {radius} cells", *(_percent(m["share"].sel(radius=radius)) for m in merged)] for radius in RADII
    ]
    rows.append(["effective width (cells)", *(f"{float(m['effective_width']):.2f}" for m in merged)])
    sums = "row sum" if results[0].attrs["spec"]["side"] == "reads" else "column sum"
    rows.append([f"{sums} of A", *(f"{float(m['total']):.4g}" for m in merged)])
    rows.append(["cells that carry mass", *(_cells(r) for r in results)])
    return _table(["", *(r.attrs["model"] for r in results)], rows, "numbers of the row")


def _percent(share: xr.DataArray) -> str:
    return f"{100 * float(share):.1f} %"


def _cells(result: xr.Dataset) -> str:
    count = int(result["cells"].sel(of="merged"))
    bad = int(result["nonfinite"].sel(of="merged"))
    return f"{count} of {result['merged'].size}" + (f", {bad} not finite" if bad else "")


def status_line(results: list[xr.Dataset]) -> str:
    """What the picture shows, in words: announced to screen readers when it changes."""
    sentences = []
    for r in results:
        row, col = r.attrs["position"]
        merged = r.sel(of="merged")
        verb = "reads" if r.attrs["spec"]["side"] == "reads" else "is heard at"
        sentences.append(
            f"<b>{html.escape(r.attrs['model'])}</b> {html.escape(r.attrs['layer'])}: cell (row {row}, column {col}) "
            f"{verb} {_cells(r)} cells; {_percent(merged['share'].sel(radius=3))} of the mass lies within 3 cells."
        )
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{'<br>'.join(sentences)}</div>"


def caption_html(text: str) -> str:
    """A figure's caption, small and close to the figure."""
    return f"<div style='font-size: 11px; line-height: 1.35; opacity: 0.8'>{html.escape(text)}</div>"


def latency_table(results: list[xr.Dataset]) -> str:
    """Median and spread of each part, beside the least its bytes and operations allow on this machine."""
    rows = []
    for r in results:
        for part in PARTS:
            p = r.sel(part=part)
            name = {"mixing": "mixing", "layer": r.attrs["layer"], "model": "whole model"}[part]
            rows.append([
                f"{r.attrs['model']}: {name}", _time(p["median"]), f"{_time(p['p20'])} to {_time(p['p80'])}",
                str(int(p["n"])), f"{float(p['bytes']) / 1e6:.2f} MB", f"{float(p['flops']) / 1e9:.3f} G",
                _time(p["floor"]),
            ])  # fmt: skip
    a, rates = results[0].attrs, results[0]
    head = ["forward, batch 1", "median", "p20 to p80", "n", "least bytes", "operations", "floor"]
    note = (
        f"{a['backend']} backend, {a['dtype']}, {a['device']}, {a['method']}. Floor: the larger of least bytes over "
        f"{float(rates['bandwidth']) / 1e9:.1f} GB/s (measured copy) and operations over "
        f"{float(rates['matmul']) / 1e9:.0f} GFLOP/s (measured fp32 matrix product)."
    )
    return _table(head, rows, "latency on this machine") + f"<small role='status'>{html.escape(note)}</small>"


def _time(seconds: xr.DataArray) -> str:
    value = float(seconds)
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
