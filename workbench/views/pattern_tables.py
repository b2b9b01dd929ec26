"""The Patterns page's numbers as a table and sentences, which screen readers read."""

import html

import numpy as np
import xarray as xr

from .tables import html_table

#: Under every matrix.
MATRIX = (
    "<div style='font-size: 11px; line-height: 1.35; opacity: 0.8'>Who depends on whom: queries down, keys across, "
    "both row by row. A pixel has the smallest number of blocks of its pairs (datashader, min); draw a box to see "
    "single pairs.</div>"
)

#: Until the matrix can be drawn.
COMPILING = (
    "<p role='status' style='font-size: 12px; margin: 4px 0'>The matrix follows: the code that aggregates it is being "
    "compiled once.</p>"
)


def numbers_table(results: list[xr.Dataset]) -> str:
    """The numbers of each pattern, whatever the query; of a cycle of blocks one after the other."""
    rows = [
        ["keys per query: smallest", *(_each(r["counts"].min(("row", "col")), "{:.0f}") for r in results)],
        ["keys per query: mean", *(_each(r["counts"].mean(("row", "col")), "{:.1f}") for r in results)],
        ["keys per query: largest", *(_each(r["counts"].max(("row", "col")), "{:.0f}") for r in results)],
        ["blocks until all reach all", *(_blocks(r["until_global"]) for r in results)],
        ["computed in vain (a)", *(_each(100 * r["masked"], "{:.1f} %") for r in results)],
        ["operations (b)", *(_each(r["flops"] / 1e6, "{:.1f} M") for r in results)],
        ["operations, of full attention's", *(_each(100 * r["flops"] / r["full_flops"], "{:.3g} %") for r in results)],
        ["least bytes (b)", *(f"{float(r['bytes'][0]) / 1e6:.3g} MB" for r in results)],
        ["least bytes, of full attention's", *(_percent(r["bytes"][0] / r["full_bytes"]) for r in results)],
        ["operations per byte", *(_each(r["intensity"], "{:.3g}") for r in results)],
        ["bound by tiles (c)", *(_each(r["tile_bound"], "{:.2f} x") for r in results)],
    ]
    names = [r.attrs["family"] for r in results]
    style = "<style>table.numbers tbody :is(th, td) { white-space: nowrap; }</style>"
    return style + html_table(["per block", *names], rows, "numbers of the patterns") + _notes(results)


def _notes(results: list[xr.Dataset]) -> str:
    """What the numbers assume."""
    usual = "; ".join(f"{r.attrs['family']}: {r.attrs['usual']}" for r in results)
    spec = results[0].attrs["spec"]
    query, key = (f"{rows} x {cols}" for rows, cols in (spec["query_tile"], spec["key_tile"]))
    note = (
        f"(a) share of the pairs that the usual implementation computes and the pattern does not read, as they are "
        f"masked or outside the map; {usual}. (b) 4 x pairs x channels, and q, k, v and the output once, for "
        f"{spec['channels']} channels of {spec['value_bytes']} bytes. (c) key tiles of full attention over those that "
        f"the worst query tile visits, tiles of {query} queries and {key} keys."
    )
    return f"<div style='font-size: 11px; line-height: 1.35; opacity: 0.8'>{html.escape(note)}</div>"


def _each(values: xr.DataArray, form: str) -> str:
    """The values of a cycle's blocks; one value where they are equal."""
    texts = [form.format(float(v)) for v in values.values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _percent(share: xr.DataArray) -> str:
    return f"{100 * float(share):.3g} %"


def _blocks(number: xr.DataArray) -> str:
    return "never" if np.isnan(number) else f"{float(number):.0f}"


def status_line(results: list[xr.Dataset], after: int) -> str:
    """What the picture shows, in words: announced to screen readers when it changes."""
    sentences = []
    for r in results:
        row, col = r.attrs["position"]
        keys = ", then ".join(str(int(n)) for n in r["keys"].values.sum((1, 2)))
        reached = int((r["blocks"].values <= after).sum())
        until = _blocks(r["until_query"])
        whole = "never on all" if until == "never" else f"on all after {until}"
        stack = "1 block" if after == 1 else f"{after} blocks"
        sentences.append(
            f"<b>{html.escape(r.attrs['spec']['pattern'])}</b>: query (row {row}, column {col}) reads {keys} keys of "
            f"{r['blocks'].size}; after {stack} it depends on {reached} positions, {whole}."
        )
    return f"<div role='status' aria-live='polite' style='font-size: 13px'>{'<br>'.join(sentences)}</div>"
