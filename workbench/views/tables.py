"""The page's numbers as small HTML tables and sentences, which screen readers read."""

import html
from collections.abc import Callable, Iterable
from functools import partial

import xarray as xr

from workbench.analysis.affinity import RADII
from workbench.analysis.latency import PARTS
from workbench.plots.affinity import over_channels

WARMING = (
    "<p role='status' style='font-size: 12px; margin: 0'>The CPU kernels are being compiled; until they are, the "
    "slower reference backend draws the same pictures.</p>"
)
NOT_MEASURED = "<p>Not measured yet: nothing is timed before you ask.</p>"


def html_table(head: Iterable[str], rows: Iterable[Iterable[str]], label: str) -> str:
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
    """The numbers of each merged row or column, and of each merged channel matrix."""
    merged = [r.sel(of="merged") for r in results]
    over = [over_channels(r) for r in results]

    def line(name: str, about_channels: bool, tell: Callable[[xr.Dataset], str]) -> list[str]:
        return [name, *(tell(m) if c == about_channels else "–" for m, c in zip(merged, over, strict=True))]

    rows = []
    if not all(over):
        rows = [line(f"mass within {radius} cells", False, partial(_within, radius)) for radius in RADII]
        reads = any(r.attrs["spec"].get("side") == "reads" for r in results)
        rows += [
            line("effective width (cells)", False, lambda m: f"{float(m['effective_width']):.2f}"),
            line(f"{'row' if reads else 'column'} sum of A", False, lambda m: f"{float(m['total']):.4g}"),
            line("cells that carry mass", False, _cells),
        ]
    if any(over):
        rows += [
            line("share read of the same channel", True, lambda m: _percent(m["own"])),
            line(
                "channels read (effective)",
                True,
                lambda m: f"{float(m['effective_channels']):.2f} of {len(m.channel_in)}",
            ),
        ]
    return html_table(["", *(r.attrs["model"] for r in results)], rows, "numbers of the row")


def _within(radius: int, merged: xr.Dataset) -> str:
    return _percent(merged["share"].sel(radius=radius))


def _percent(share: xr.DataArray) -> str:
    return f"{100 * float(share):.1f} %"


def _cells(merged: xr.Dataset) -> str:
    count, bad = int(merged["cells"]), int(merged["nonfinite"])
    return f"{count} of {merged['merged'].size}" + (f", {bad} not finite" if bad else "")


def status_line(results: list[xr.Dataset]) -> str:
    """What the picture shows, in words: announced to screen readers when it changes."""
    sentences = []
    for r in results:
        name = f"<b>{html.escape(r.attrs['model'])}</b> {html.escape(r.attrs['layer'])}"
        sentences.append(f"{name}: {_over_channels(r) if over_channels(r) else _over_positions(r)}")
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{'<br>'.join(sentences)}</div>"


def _over_positions(result: xr.Dataset) -> str:
    (row, col), merged = result.attrs["position"], result.sel(of="merged")
    verb = "reads" if result.attrs["spec"]["side"] == "reads" else "is heard at"
    share = _percent(merged["share"].sel(radius=3))
    return f"cell (row {row}, column {col}) {verb} {_cells(merged)} cells; {share} of the mass lies within 3 cells."


def _over_channels(result: xr.Dataset) -> str:
    heads, width = result.sizes["group"], result.sizes["channel_in"]
    return f"{heads} heads of {width} channels that read each other, the same at every cell; the query plays no part."


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
    names = list(dict.fromkeys(r.attrs["backend"] for r in results))
    backends = f"{' and '.join(names)} backend{'s' if len(names) > 1 else ''}"
    head = ["forward, batch 1", "median", "p20 to p80", "n", "least bytes", "operations", "floor"]
    note = (
        f"{backends}, {a['dtype']}, {a['device']}, {a['method']}. Floor: the larger of least bytes over "
        f"{float(rates['bandwidth']) / 1e9:.1f} GB/s (measured copy) and operations over "
        f"{float(rates['matmul']) / 1e9:.0f} GFLOP/s (measured fp32 matrix product)."
    )
    return html_table(head, rows, "latency on this machine") + f"<small role='status'>{html.escape(note)}</small>"


def _time(seconds: xr.DataArray) -> str:
    value = float(seconds)
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
